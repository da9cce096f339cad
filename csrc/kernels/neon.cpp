// Kernels for aarch64: 4 lanes, fused multiply-adds.
#include <arm_neon.h>

#include "kernels/simd_targets.hpp"

namespace worldmodels {
namespace {

constexpr int kLanes = 4;
constexpr int kRows = 12, kRowsAlone = 12;  // rows at once, for two vectors of lanes and for one
constexpr int kNarrowLanes = 2, kNarrowSums = 12;
constexpr int kTileRows = 4, kTileVectors = 4;
constexpr int kMatmulRows = 8;  // of a tile of two vectors
using VecF = float __attribute__((vector_size(16), may_alias));
using VecI = std::int32_t __attribute__((vector_size(16), may_alias));
using VecU = std::uint32_t __attribute__((vector_size(16), may_alias));
using VecD = double __attribute__((vector_size(16), may_alias));

inline VecF fma(VecF a, VecF b, VecF c) {
    return reinterpret_cast<VecF>(vfmaq_f32(reinterpret_cast<float32x4_t>(c),
                                            reinterpret_cast<float32x4_t>(a),
                                            reinterpret_cast<float32x4_t>(b)));
}
inline VecD fma(VecD a, VecD b, VecD c) {
    return reinterpret_cast<VecD>(vfmaq_f64(reinterpret_cast<float64x2_t>(c),
                                            reinterpret_cast<float64x2_t>(a),
                                            reinterpret_cast<float64x2_t>(b)));
}
inline VecF sqrt(VecF x) {
    return reinterpret_cast<VecF>(vsqrtq_f32(reinterpret_cast<float32x4_t>(x)));
}
inline VecU high_product(VecU a, std::uint32_t b) {
    VecU high;
    for (int lane = 0; lane < kLanes; ++lane)
        high[lane] = static_cast<std::uint32_t>((std::uint64_t{a[lane]} * b) >> 32);
    return high;
}

#include "kernels/all_kernels-inl.hpp"

bool supported() {
    return true;
}

}  // namespace

constinit const Kernels neon_kernels = simd_target("neon", supported);

}  // namespace worldmodels
