// Symmetric eigendecomposition by SciPy's LAPACK, passed as a function pointer (bindings/bind_cmaes.cpp).
#pragma once

#include <cstdint>
#include <vector>

namespace worldmodels {

// LAPACK's dsyevd with 32-bit integers: jobz, uplo, n, a, lda, w, work, lwork, iwork, liwork, info.
using Dsyevd = void (*)(char*, char*, int*, double*, int*, double*, double*, int*, int*, int*, int*);

// Divide and conquer. The workspace (2 n^2 doubles) is reused by later calls.
class SymmetricEigen {
  public:
    explicit SymmetricEigen(Dsyevd dsyevd) : dsyevd_(dsyevd) {}

    // vectors (n, n): on entry the lower triangle (row-major) of a symmetric matrix, on exit row k is the
    // unit eigenvector of values[k]; values ascend. Throws std::runtime_error when LAPACK does not converge.
    void decompose(std::int64_t n, double* vectors, double* values);

  private:
    Dsyevd dsyevd_;
    std::vector<double> work_;
    std::vector<int> integer_work_;
};

}  // namespace worldmodels
