// The three products of a CMA-ES generation that cost O(N^2) and more. The bits never depend on `threads`. A
// `workspace` is reused by later calls, which saves page faults. All throw std::runtime_error in a forked
// process that wants several threads (check_not_forked).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.hpp"

namespace worldmodels {

// out (rows, columns) = a (rows, depth) b (depth, columns), all row-major.
void matrix_product(const Kernels& kernels, const double* a, const double* b, double* out, std::int64_t rows,
                    std::int64_t depth, std::int64_t columns, int threads, std::vector<double>& workspace);

// Allocates the workspace of symmetric_update.
void reserve_symmetric_update(std::int64_t n, std::int64_t depth, std::vector<double>& workspace);

// Lower triangle of c (n, n), row-major: c <- decay c + sum_k weights[k] v_k v_k^T, v (depth, n) row-major.
void symmetric_update(const Kernels& kernels, double* c, std::int64_t n, double decay, const double* weights,
                      const double* v, std::int64_t depth, int threads, std::vector<double>& workspace);

// out (columns) = sum over k < rows of x[k] m[k, :], m (rows, columns) row-major.
void weighted_rows(const double* x, const double* m, double* out, std::int64_t rows, std::int64_t columns,
                   int threads);

}  // namespace worldmodels
