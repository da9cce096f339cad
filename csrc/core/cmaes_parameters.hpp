// Strategy parameters of CMA-ES as functions of N and lambda: Table 1 of Hansen's tutorial (arXiv
// 1604.00772).
#pragma once

#include <cstdint>
#include <vector>

namespace worldmodels {

struct CmaesParameters {
    std::int64_t n;
    std::int64_t popsize;
    std::int64_t mu;              // number of parents, floor(lambda / 2)
    std::vector<double> weights;  // (popsize) by rank, the first mu positive and summing to one
    double mueff;
    double c1;
    double cmu;
    double cc;
    double cs;
    double damps;
    double chi_n;  // E ||N(0, I)||
    // Generations between decompositions of C: 1 / (2 N (c1 + cmu)) as in Hansen's purecma; section B.2 of
    // the tutorial has 10 instead of 2. Either bounds the cost at O(N^2) per generation. Unused by a diagonal
    // C.
    double gap;
};

// active: negative weights for the worse half. separable: learning rates (n + 2) / 3 times as large, for a
// diagonal C (Ros and Hansen 2008).
CmaesParameters cmaes_parameters(std::int64_t n, std::int64_t popsize, bool active, bool separable);

}  // namespace worldmodels
