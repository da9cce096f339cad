// CMA-ES (Hansen, arXiv 1604.00772): sampling and update of a search distribution with full or diagonal C.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "core/cmaes_parameters.hpp"
#include "core/symmetric_eigen.hpp"
#include "kernels/kernels.hpp"

namespace worldmodels {

// The state of a run, C = B D^2 B^T; saved and restored as it is.
struct CmaesState {
    std::vector<double> mean;        // (n)
    std::vector<double> ps;          // (n) evolution path of the step size
    std::vector<double> pc;          // (n) evolution path of C
    std::vector<double> covariance;  // (n, n) row-major, lower triangle; (n) when separable
    std::vector<double> B;           // (n, n) row k is the eigenvector of D[k]; empty when separable
    std::vector<double> D;           // (n) square roots of the eigenvalues of C
    std::vector<double> z;           // (popsize, n) ~ N(0, I), of the pending generation like y and x
    std::vector<double> y;           // (popsize + 1, n) = B D z ~ N(0, C); the last row is scratch
    std::vector<double> x;           // (popsize, n) = mean + sigma y
    double sigma;
    std::int64_t generation;     // completed ones
    std::int64_t decomposed_at;  // generation whose C was decomposed into B and D
    bool asked;                  // between ask and tell
};

class Cmaes {
  public:
    Cmaes(CmaesParameters parameters, const std::vector<double>& mean, double sigma, std::uint64_t seed,
          bool separable, Dsyevd dsyevd);

    // The solutions (popsize, n) of this generation, the same ones until tell or skip. ask and tell throw
    // std::runtime_error where a forked process wants several threads, before anything changes.
    const std::vector<double>& ask(const Kernels& kernels, int threads);

    // solutions (popsize, n), finite; rank[i] is the rank of row i, 0 for the best. Throws std::bad_alloc
    // before anything changes.
    void tell(const Kernels& kernels, const double* solutions, const std::int64_t* rank, int threads);

    // Skips a generation without finite values: the distribution is unchanged, the next ask samples again.
    void skip();

    const CmaesParameters& parameters() const { return parameters_; }
    bool separable() const { return separable_; }
    const CmaesState& state() const { return state_; }
    // The sizes of the state must be those of state().
    void set_state(CmaesState state) { state_ = std::move(state); }
    void set_gap(double gap) { parameters_.gap = gap; }

  private:
    void decompose();
    void inject(const double* solutions, int threads);
    // weights (popsize + 1), of the rows: consumed.
    void adapt_covariance(const Kernels& kernels, std::vector<double>& weights, bool stalled, int threads);

    CmaesParameters parameters_;
    CmaesState state_;
    std::uint64_t seed_;
    bool separable_;
    SymmetricEigen eigen_;
    std::vector<double> next_B_;     // (n, n) eigenvectors while they are computed
    std::vector<double> Dz_;         // (popsize, n) D z of a full C
    std::vector<double> workspace_;  // packed panels of the products
};

}  // namespace worldmodels
