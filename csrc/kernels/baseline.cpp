// Kernels for any machine: 4 lanes, no ISA flags. Multiplies and adds round twice, so bits differ from the
// other levels.
#include "kernels/levels.hpp"

namespace worldmodels {
namespace {

constexpr int kLanes = 4;
constexpr int kRows = 4, kRowsAlone = 4;  // rows at once, for two vectors of lanes and for one
constexpr int kFewLanes = 1, kFewSums = 8;
constexpr int kTileRows = 4, kTileVectors = 2;
using V = float __attribute__((vector_size(16), may_alias));
using Q = V;
using I = std::int32_t __attribute__((vector_size(16), may_alias));
using U = std::uint32_t __attribute__((vector_size(16), may_alias));
using D = double __attribute__((vector_size(16), may_alias));

inline V fma(V a, V b, V c) {
    return a * b + c;
}
inline D fma(D a, D b, D c) {
    return a * b + c;
}
inline V sqrt(V x) {
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
    return x;
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

constinit const Kernels baseline_kernels = level("baseline", supported);

}  // namespace worldmodels
