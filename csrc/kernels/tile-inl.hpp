// The inner loop of CMA-ES's matrix products. Needs VecD (doubles), its fma, and kTileRows x kTileVectors
// vectors of sums that fit the registers.

void tile_product(std::int64_t depth, const double* a, const double* b, double* out) {
    constexpr int kWidth = static_cast<int>(sizeof(VecD) / sizeof(double));
    for (int row = 0; row < kTile; row += kTileRows) {
        for (int column = 0; column < kTile; column += kTileVectors * kWidth) {
            VecD sum[kTileRows][kTileVectors] = {};
            for (std::int64_t k = 0; k < depth; ++k) {
                VecD right[kTileVectors];
#pragma GCC unroll 8
                for (int v = 0; v < kTileVectors; ++v)
                    __builtin_memcpy(&right[v], b + k * kTile + column + v * kWidth, sizeof(VecD));
#pragma GCC unroll 8
                for (int r = 0; r < kTileRows; ++r) {
                    const VecD left = a[k * kTile + row + r] - VecD{};
#pragma GCC unroll 8
                    for (int v = 0; v < kTileVectors; ++v) sum[r][v] = fma(left, right[v], sum[r][v]);
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
                for (int v = 0; v < kTileVectors; ++v)
                    __builtin_memcpy(out + (row + r) * kTile + column + v * kWidth, &sum[r][v], sizeof(VecD));
            }
        }
    }
}
