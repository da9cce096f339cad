// Table 1 of the tutorial, line by line; equation numbers are those of arXiv 1604.00772.
#include "core/cmaes_parameters.hpp"

#include <algorithm>
#include <cmath>

namespace worldmodels {

CmaesParameters cmaes_parameters(std::int64_t n, std::int64_t popsize, bool active, bool separable) {
    CmaesParameters p{};
    p.n = n;
    p.popsize = popsize;
    p.mu = popsize / 2;
    const auto dim = static_cast<double>(n);

    // (49) w'_i = ln((lambda + 1) / 2) - ln i
    p.weights.resize(static_cast<std::size_t>(popsize));
    double sum_positive = 0.0, square_positive = 0.0, sum_negative = 0.0, square_negative = 0.0;
    for (std::int64_t i = 0; i < popsize; ++i) {
        double& w = p.weights[static_cast<std::size_t>(i)];
        w = std::log(static_cast<double>(popsize + 1) / 2.0) - std::log(static_cast<double>(i + 1));
        if (i < p.mu) {
            sum_positive += w;
            square_positive += w * w;
        } else {
            sum_negative -= w;
            square_negative += w * w;
        }
    }
    p.mueff = sum_positive * sum_positive / square_positive;
    const double mueff_negative = square_negative > 0.0 ? sum_negative * sum_negative / square_negative : 0.0;

    // (55) step size
    p.cs = (p.mueff + 2.0) / (dim + p.mueff + 5.0);
    p.damps = 1.0 + 2.0 * std::max(0.0, std::sqrt((p.mueff - 1.0) / (dim + 1.0)) - 1.0) + p.cs;
    // (56), (57), (58) covariance matrix, alpha_cov = 2
    p.cc = (4.0 + p.mueff / dim) / (dim + 4.0 + 2.0 * p.mueff / dim);
    p.c1 = 2.0 / ((dim + 1.3) * (dim + 1.3) + p.mueff);
    p.cmu = std::min(1.0 - p.c1,
                     2.0 * (0.25 + p.mueff + 1.0 / p.mueff - 2.0) / ((dim + 2.0) * (dim + 2.0) + p.mueff));
    if (separable) {
        p.c1 = std::min(1.0, p.c1 * (dim + 2.0) / 3.0);
        p.cmu = std::min(1.0 - p.c1, p.cmu * (dim + 2.0) / 3.0);
    }

    // (53) positive weights sum to one, negative ones to the least of (50), (51), (52)
    double negative_sum = 0.0;
    if (active && sum_negative > 0.0 && p.cmu > 0.0) {
        const double alpha_mu = 1.0 + p.c1 / p.cmu;
        const double alpha_mueff = 1.0 + 2.0 * mueff_negative / (p.mueff + 2.0);
        const double alpha_posdef = (1.0 - p.c1 - p.cmu) / (dim * p.cmu);
        negative_sum = std::max(0.0, std::min({alpha_mu, alpha_mueff, alpha_posdef}));
    }
    for (std::int64_t i = 0; i < popsize; ++i) {
        double& w = p.weights[static_cast<std::size_t>(i)];
        if (i < p.mu) {
            w /= sum_positive;
        } else {
            w = negative_sum > 0.0 ? w * negative_sum / sum_negative : 0.0;
        }
    }

    p.chi_n = std::sqrt(dim) * (1.0 - 1.0 / (4.0 * dim) + 1.0 / (21.0 * dim * dim));
    p.gap = 1.0 / (2.0 * dim * (p.c1 + p.cmu));  // section B.2, see the header
    return p;
}

}  // namespace worldmodels
