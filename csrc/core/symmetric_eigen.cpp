// LAPACK's dsyevd on row-major memory: its "upper" triangle is the lower one here, its columns are rows.
#include "core/symmetric_eigen.hpp"

#include <cmath>
#include <stdexcept>
#include <string>

#include "core/lapack_threads.hpp"

namespace worldmodels {

void SymmetricEigen::decompose(std::int64_t n, double* vectors, double* values) {
    const SingleLapackThread one_thread;
    char jobz = 'V';
    char uplo = 'U';
    int order = static_cast<int>(n);
    int info = 0;
    if (work_.empty()) {
        double work_size = 0.0;
        int integer_size = 0;
        int query = -1;
        dsyevd_(&jobz, &uplo, &order, vectors, &order, values, &work_size, &query, &integer_size, &query,
                &info);
        if (info != 0)
            throw std::runtime_error("dsyevd: the workspace query failed, info " + std::to_string(info));
        work_.resize(static_cast<std::size_t>(work_size));
        integer_work_.resize(static_cast<std::size_t>(integer_size));
    }
    int work_size = static_cast<int>(work_.size());
    int integer_size = static_cast<int>(integer_work_.size());
    dsyevd_(&jobz, &uplo, &order, vectors, &order, values, work_.data(), &work_size, integer_work_.data(),
            &integer_size, &info);
    bool finite = info == 0;
    for (std::int64_t k = 0; finite && k < n; ++k) finite = std::isfinite(values[k]);
    if (!finite) {
        throw std::runtime_error("dsyevd: the covariance matrix could not be decomposed, info " +
                                 std::to_string(info));
    }
}

}  // namespace worldmodels
