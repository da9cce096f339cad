// The inner product of CMA-ES's two matrix products: one 8 x 8 tile of a^T b from packed panels.
#pragma once

#include <cstdint>

namespace worldmodels {

constexpr std::int64_t kTile = 8;

// out[r * 8 + c] = sum over k < depth of a[k * 8 + r] * b[k * 8 + c], summed in the order of k.
using TileProduct = void (*)(std::int64_t depth, const double* a, const double* b, double* out);

// The fastest one this machine can run. All with fused multiply-add give the same bits.
TileProduct tile_product();

}  // namespace worldmodels
