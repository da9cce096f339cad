// Kernels for aarch64: 4 lanes, fused multiply-adds.
#include <arm_neon.h>

#include "kernels/levels.hpp"

namespace worldmodels {
namespace {

constexpr int kLanes = 4;
constexpr int kRows = 12, kRowsAlone = 12;  // rows at once, for two vectors of lanes and for one
constexpr int kFewLanes = 2, kFewSums = 12;
constexpr int kTileRows = 4, kTileVectors = 4;
using V = float __attribute__((vector_size(16), may_alias));
using Q = V;
using I = std::int32_t __attribute__((vector_size(16), may_alias));
using U = std::uint32_t __attribute__((vector_size(16), may_alias));
using D = double __attribute__((vector_size(16), may_alias));

inline V fma(V a, V b, V c) {
    return reinterpret_cast<V>(vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a),
                                         reinterpret_cast<float32x4_t>(b)));
}
inline D fma(D a, D b, D c) {
    return reinterpret_cast<D>(vfmaq_f64(reinterpret_cast<float64x2_t>(c), reinterpret_cast<float64x2_t>(a),
                                         reinterpret_cast<float64x2_t>(b)));
}
inline V sqrt(V x) {
    return reinterpret_cast<V>(vsqrtq_f32(reinterpret_cast<float32x4_t>(x)));
}
inline U high_product(U a, std::uint32_t b) {
    U high;
    for (int lane = 0; lane < kLanes; ++lane)
        high[lane] = static_cast<std::uint32_t>((std::uint64_t{a[lane]} * b) >> 32);
    return high;
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
    return true;
}

}  // namespace

constinit const Kernels neon_kernels = level("neon", supported);

}  // namespace worldmodels
