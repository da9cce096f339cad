// Kernels for AVX2 with FMA: 8 lanes.
#include <immintrin.h>

#include "kernels/levels.hpp"

#define WORLDMODELS_LOOKUP

namespace worldmodels {
namespace {

constexpr int kLanes = 8;
constexpr int kRows = 6, kRowsAlone = 12;  // rows at once, for two vectors of lanes and for one
constexpr int kFewLanes = 2, kFewSums = 8;
constexpr int kTileRows = 4, kTileVectors = 2;
using V = float __attribute__((vector_size(32), may_alias));
using Q = float __attribute__((vector_size(16), may_alias));
using I = std::int32_t __attribute__((vector_size(32), may_alias));
using U = std::uint32_t __attribute__((vector_size(32), may_alias));
using D = double __attribute__((vector_size(32), may_alias));

inline V fma(V a, V b, V c) {
    return _mm256_fmadd_ps(a, b, c);
}
inline Q fma(Q a, Q b, Q c) {
    return _mm_fmadd_ps(a, b, c);
}
inline D fma(D a, D b, D c) {
    return _mm256_fmadd_pd(a, b, c);
}
inline V sqrt(V x) {
    return _mm256_sqrt_ps(x);
}
inline U high_product(U a, std::uint32_t b) {
    const __m256i x = reinterpret_cast<__m256i>(a), y = _mm256_set1_epi32(static_cast<int>(b));
    const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(x, y), 32);
    return reinterpret_cast<U>(_mm256_blend_epi32(even, _mm256_mul_epu32(_mm256_srli_epi64(x, 32), y), 0xAA));
}
// Where a table's entries from `first` on are loaded from, and the entries a lane's index names.
inline int lookup_offset(int first) {
    return first < kTable - kLanes ? first : kTable - kLanes;
}
inline V lookup(const float* table, I index) {
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), reinterpret_cast<__m256i>(index));
}

#include "kernels/vecmath.hpp"
//
#include "kernels/body.hpp"
//
#include "kernels/step.hpp"
//
#include "kernels/conv.hpp"
//
#include "kernels/winograd.hpp"
//
#include "kernels/probes.hpp"
//
#include "kernels/tile.hpp"
//
#include "kernels/normals.hpp"
//
#include "kernels/table.hpp"

bool supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

}  // namespace

constinit const Kernels avx2_kernels = level("avx2", supported);

}  // namespace worldmodels
