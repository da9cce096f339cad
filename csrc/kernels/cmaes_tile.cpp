// The 8 x 8 tile product: one body, compiled for each ISA by a target attribute, chosen when first used.
#include "kernels/cmaes_tile.hpp"

#include <cstring>

namespace worldmodels {
namespace {

template <int Bytes>
struct Vector {
    typedef double type __attribute__((vector_size(Bytes)));
};

// Rows x (Columns vectors of Bytes) accumulators live in registers while k runs over the depth.
template <int Bytes, int Rows, int Columns>
__attribute__((always_inline)) inline void product(std::int64_t depth, const double* a, const double* b,
                                                   double* out) {
    using V = typename Vector<Bytes>::type;
    constexpr int kWidth = Bytes / static_cast<int>(sizeof(double));
    for (int row = 0; row < kTile; row += Rows) {
        for (int column = 0; column < kTile; column += Columns * kWidth) {
            V sum[Rows][Columns] = {};
            for (std::int64_t k = 0; k < depth; ++k) {
                V right[Columns];
#pragma GCC unroll 8
                for (int c = 0; c < Columns; ++c)
                    std::memcpy(&right[c], b + k * kTile + column + c * kWidth, sizeof(V));
#pragma GCC unroll 8
                for (int r = 0; r < Rows; ++r) {
                    const double left = a[k * kTile + row + r];
#pragma GCC unroll 8
                    for (int c = 0; c < Columns; ++c) sum[r][c] += left * right[c];
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
                for (int c = 0; c < Columns; ++c) {
                    std::memcpy(out + (row + r) * kTile + column + c * kWidth, &sum[r][c], sizeof(V));
                }
            }
        }
    }
}

void product_baseline(std::int64_t depth, const double* a, const double* b, double* out) {
    product<16, 4, 2>(depth, a, b, out);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void product_avx2(std::int64_t depth, const double* a, const double* b,
                                                      double* out) {
    product<32, 4, 2>(depth, a, b, out);
}
__attribute__((target("avx512f"))) void product_avx512(std::int64_t depth, const double* a, const double* b,
                                                       double* out) {
    product<64, 8, 1>(depth, a, b, out);
}
#endif

}  // namespace

TileProduct tile_product() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return product_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return product_avx2;
#endif
    return product_baseline;
}

}  // namespace worldmodels
