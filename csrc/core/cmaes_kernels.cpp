// Packing, tiling and threads of the products; the arithmetic of a tile is kernels/tile-inl.hpp.
#include "core/cmaes_kernels.hpp"

#include <omp.h>

#include <algorithm>
#include <vector>

#include "core/parallel.hpp"

namespace worldmodels {
namespace {

// Adjacent tiles of columns packed together: a row is fetched once for all of them.
constexpr std::int64_t kGroup = 4;

// panels[q][k][0..8) = v[k, column + 8 q..column + 8 q + 8), q < count, zeros past the end.
void pack_columns(const double* v, std::int64_t depth, std::int64_t n, std::int64_t column,
                  std::int64_t count, double* panels) {
    constexpr std::int64_t kAhead =
        16;  // rows to prefetch; each is in another page, beyond the hardware prefetcher
    for (std::int64_t k = 0; k < depth; ++k) {
        for (std::int64_t q = 0; q < count; ++q) {
            const std::int64_t start = column + q * kTile;
            const double* from = v + k * n + start;
            double* to = panels + (q * depth + k) * kTile;
            if (k + kAhead < depth) __builtin_prefetch(from + kAhead * n);
            if (start + kTile <= n) {
                std::copy_n(from, kTile, to);
            } else {
                for (std::int64_t c = 0; c < kTile; ++c) to[c] = start + c < n ? from[c] : 0.0;
            }
        }
    }
}

// panel[k][0..8) = a[row..row + 8, k]: eight rows side by side.
void pack_rows(const double* a, std::int64_t rows, std::int64_t depth, std::int64_t row, double* panel) {
    for (std::int64_t r = 0; r < kTile; ++r) {
        for (std::int64_t k = 0; k < depth; ++k)
            panel[k * kTile + r] = row + r < rows ? a[(row + r) * depth + k] : 0.0;
    }
}

std::int64_t tiles(std::int64_t length) {
    return (length + kTile - 1) / kTile;
}

double* room(std::vector<double>& workspace, std::int64_t size) {
    if (workspace.size() < static_cast<std::size_t>(size)) workspace.resize(static_cast<std::size_t>(size));
    return workspace.data();
}

}  // namespace

void matrix_product(const Kernels& kernels, const double* a, const double* b, double* out, std::int64_t rows,
                    std::int64_t depth, std::int64_t columns, int threads, std::vector<double>& workspace) {
    const auto product = kernels.tile_product;
    const std::int64_t row_tiles = tiles(rows);
    const std::int64_t column_tiles = tiles(columns);
    const std::int64_t panel = depth * kTile;
    check_not_forked(threads);
    const std::int64_t groups = (column_tiles + kGroup - 1) / kGroup;
    double* const left = room(workspace, (row_tiles + threads * kGroup) * panel);
    double* const right = left + row_tiles * panel;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (std::int64_t i = 0; i < row_tiles; ++i) pack_rows(a, rows, depth, i * kTile, left + i * panel);
        double* own = right + omp_get_thread_num() * kGroup * panel;
#pragma omp for schedule(dynamic)
        for (std::int64_t group = 0; group < groups; ++group) {
            double tile[kTile * kTile];
            const std::int64_t first = group * kGroup;
            const std::int64_t count = std::min(kGroup, column_tiles - first);
            pack_columns(b, depth, columns, first * kTile, count, own);
            for (std::int64_t i = 0; i < row_tiles; ++i) {
                const std::int64_t height = std::min(kTile, rows - i * kTile);
                for (std::int64_t q = 0; q < count; ++q) {
                    product(depth, left + i * panel, own + q * panel, tile);
                    const std::int64_t column = (first + q) * kTile;
                    const std::int64_t width = std::min(kTile, columns - column);
                    for (std::int64_t r = 0; r < height; ++r) {
                        std::copy_n(tile + r * kTile, width, out + (i * kTile + r) * columns + column);
                    }
                }
            }
        }
    }
}

void reserve_symmetric_update(std::int64_t n, std::int64_t depth, std::vector<double>& workspace) {
    room(workspace, 2 * tiles(n) * depth * kTile);
}

void symmetric_update(const Kernels& kernels, double* c, std::int64_t n, double decay, const double* weights,
                      const double* v, std::int64_t depth, int threads, std::vector<double>& workspace) {
    const auto product = kernels.tile_product;
    const std::int64_t count = tiles(n);
    const std::int64_t panel = depth * kTile;
    check_not_forked(threads);
    reserve_symmetric_update(n, depth, workspace);
    double* const left = workspace.data();
    double* const right = left + count * panel;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (std::int64_t i = 0; i < count; i += kGroup) {
            const std::int64_t packed = std::min(kGroup, count - i);
            pack_columns(v, depth, n, i * kTile, packed, right + i * panel);
            for (std::int64_t row = i * depth; row < (i + packed) * depth; ++row) {
                const double weight = weights[row % depth];
                for (std::int64_t s = 0; s < kTile; ++s)
                    left[row * kTile + s] = weight * right[row * kTile + s];
            }
        }
        // Long rows of tiles first, for load balance.
#pragma omp for schedule(dynamic)
        for (std::int64_t rank = 0; rank < count; ++rank) {
            const std::int64_t i = count - 1 - rank;
            const std::int64_t height = std::min(kTile, n - i * kTile);
            double tile[kTile * kTile];
            for (std::int64_t j = 0; j <= i; ++j) {
                product(depth, left + i * panel, right + j * panel, tile);
                for (std::int64_t r = 0; r < height; ++r) {
                    double* row = c + (i * kTile + r) * n + j * kTile;
                    const double* added = tile + r * kTile;
                    if (j < i) {
                        for (std::int64_t s = 0; s < kTile; ++s) row[s] = decay * row[s] + added[s];
                    } else {
                        for (std::int64_t s = 0; s <= r; ++s) row[s] = decay * row[s] + added[s];
                    }
                }
            }
        }
    }
}

void weighted_rows(const double* x, const double* m, double* out, std::int64_t rows, std::int64_t columns,
                   int threads) {
    constexpr std::int64_t kStrip = 64;
    const std::int64_t strips = (columns + kStrip - 1) / kStrip;
    check_not_forked(threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t strip = 0; strip < strips; ++strip) {
        double sum[kStrip] = {};
        const std::int64_t start = strip * kStrip;
        const std::int64_t width = std::min(kStrip, columns - start);
        for (std::int64_t k = 0; k < rows; ++k) {
            for (std::int64_t c = 0; c < width; ++c) sum[c] += x[k] * m[k * columns + start + c];
        }
        std::copy_n(sum, width, out + start);
    }
}

}  // namespace worldmodels
