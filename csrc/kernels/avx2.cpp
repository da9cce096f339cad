// Kernels for AVX2 with FMA: 8 lanes.
#include <immintrin.h>

#include "kernels/simd_targets.hpp"

#define WORLDMODELS_LOOKUP

namespace worldmodels {
namespace {

constexpr int kLanes = 8;
constexpr int kRows = 6, kRowsAlone = 12;  // rows at once, for two vectors of lanes and for one
constexpr int kNarrowLanes = 2, kNarrowSums = 8;
constexpr int kTileRows = 4, kTileVectors = 2;
constexpr int kMatmulRows = 6;  // of a tile of two vectors
using VecF = float __attribute__((vector_size(32), may_alias));
using VecI = std::int32_t __attribute__((vector_size(32), may_alias));
using VecU = std::uint32_t __attribute__((vector_size(32), may_alias));
using VecD = double __attribute__((vector_size(32), may_alias));

inline VecF fma(VecF a, VecF b, VecF c) {
    return _mm256_fmadd_ps(a, b, c);
}
inline VecD fma(VecD a, VecD b, VecD c) {
    return _mm256_fmadd_pd(a, b, c);
}
inline VecF sqrt(VecF x) {
    return _mm256_sqrt_ps(x);
}
inline VecU high_product(VecU a, std::uint32_t b) {
    const __m256i x = reinterpret_cast<__m256i>(a), y = _mm256_set1_epi32(static_cast<int>(b));
    const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(x, y), 32);
    return reinterpret_cast<VecU>(
        _mm256_blend_epi32(even, _mm256_mul_epu32(_mm256_srli_epi64(x, 32), y), 0xAA));
}
// The offset at which a table is loaded to look up its entries from `first` on, and the lookup itself.
inline int lookup_offset(int first) {
    return first < kTable - kLanes ? first : kTable - kLanes;
}
inline VecF lookup(const float* table, VecI index) {
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), reinterpret_cast<__m256i>(index));
}

#include "kernels/all_kernels-inl.hpp"

bool supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

}  // namespace

constinit const Kernels avx2_kernels = simd_target("avx2", supported);

}  // namespace worldmodels
