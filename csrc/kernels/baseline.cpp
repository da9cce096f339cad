// Kernels for any machine: 4 lanes, no ISA flags. Multiplies and adds round twice, so bits differ from the
// other targets.
#include "kernels/simd_targets.hpp"

namespace worldmodels {
namespace {

constexpr int kLanes = 4;
constexpr int kRows = 4, kRowsAlone = 4;  // rows at once, for two vectors of lanes and for one
constexpr int kNarrowLanes = 1, kNarrowSums = 8;
constexpr int kTileRows = 4, kTileVectors = 2;
constexpr int kMatmulRows = 4;  // of a tile of two vectors
using VecF = float __attribute__((vector_size(16), may_alias));
using VecI = std::int32_t __attribute__((vector_size(16), may_alias));
using VecU = std::uint32_t __attribute__((vector_size(16), may_alias));
using VecD = double __attribute__((vector_size(16), may_alias));

inline VecF fma(VecF a, VecF b, VecF c) {
    return a * b + c;
}
inline VecD fma(VecD a, VecD b, VecD c) {
    return a * b + c;
}
inline VecF sqrt(VecF x) {
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
    return x;
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

constinit const Kernels baseline_kernels = simd_target("baseline", supported);

}  // namespace worldmodels
