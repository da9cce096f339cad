// CMA-ES (Hansen, arXiv 1604.00772): sampling and the update of the search distribution, full or diagonal.
#pragma once

#include <cstdint>
#include <vector>

#include "core/cmaes_parameters.hpp"
#include "core/symmetric_eigen.hpp"
#include "kernels/kernels.hpp"

namespace worldmodels {

// Everything that changes from generation to generation; saved and restored as it is.
struct CmaesState {
    std::vector<double> mean;        // (n)
    std::vector<double> ps;          // (n) evolution path of the step size
    std::vector<double> pc;          // (n) evolution path of C
    std::vector<double> covariance;  // (n, n) row-major, lower triangle; (n) when separable
    std::vector<double> axes;        // (n, n) row k is the eigenvector of scales[k]; empty when separable
    std::vector<double> scales;      // (n) roots of the eigenvalues
    std::vector<double> z;  // (popsize, n) N(0, I) in the axes; of the pending generation, as x and y
    std::vector<double> y;  // (popsize, n) = axes^T (scales z) ~ N(0, C)
    std::vector<double> x;  // (popsize, n) = mean + sigma y
    double sigma;
    std::int64_t generation;     // completed ones
    std::int64_t decomposed_at;  // generation whose C the axes belong to
    bool asked;                  // x is out and waits for its values
};

class Cmaes {
  public:
    Cmaes(CmaesParameters parameters, const std::vector<double>& mean, double sigma, std::uint64_t seed,
          bool separable, Dsyevd dsyevd);

    // The solutions (popsize, n) of this generation, the same ones until tell or skip. ask and tell throw
    // std::runtime_error where a forked process wants several threads, before anything changes.
    const std::vector<double>& ask(const Kernels& kernels, int threads);

    // solutions (popsize, n), finite; rank[i] is the place of row i, 0 the best.
    void tell(const Kernels& kernels, const double* solutions, const std::int64_t* rank, int threads);

    // Ends a generation that taught nothing (no finite value): the distribution stays, the next ask draws
    // anew.
    void skip();

    const CmaesParameters& parameters() const { return parameters_; }
    bool separable() const { return separable_; }
    double& gap() { return parameters_.gap; }
    CmaesState& state() { return state_; }

  private:
    void decompose();
    void inject(const double* solutions, int threads);
    void adapt_covariance(const Kernels& kernels, const double* row_weights, bool stalled, int threads);

    CmaesParameters parameters_;
    CmaesState state_;
    std::uint64_t seed_;
    bool separable_;
    SymmetricEigen eigen_;
    std::vector<double> scratch_;    // (n, n)
    std::vector<double> workspace_;  // packed panels of the products
};

}  // namespace worldmodels
