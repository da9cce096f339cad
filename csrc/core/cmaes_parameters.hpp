// Strategy parameters of CMA-ES: Table 1 of Hansen's tutorial (arXiv 1604.00772), functions of N and lambda
// alone.
#pragma once

#include <cstdint>
#include <vector>

namespace worldmodels {

struct CmaesParameters {
    std::int64_t n;
    std::int64_t popsize;
    std::int64_t mu;              // number of positive weights' ranks, floor(lambda / 2)
    std::vector<double> weights;  // (popsize) by rank, the first mu positive and summing to one
    double mueff;
    double c1;
    double cmu;
    double cc;
    double cs;
    double damps;
    double chi_n;  // E ||N(0, I)||
    // A decomposition lasts for this many generations: 1 / (2 N (c1 + cmu)) is that of Hansen's purecma, the
    // tutorial's section B.2 has 10 for the 2. Either makes it cost O(N^2) a generation and keeps C positive
    // definite meanwhile. A diagonal C is taken as it is every generation.
    double gap;
};

// active: negative weights for the worse half. separable: learning rates (n + 2) / 3 as large, for a diagonal
// C (Ros and Hansen 2008).
CmaesParameters cmaes_parameters(std::int64_t n, std::int64_t popsize, bool active, bool separable);

}  // namespace worldmodels
