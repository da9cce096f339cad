// The tables of the levels, one per ISA file.
#pragma once

#include "kernels/kernels.hpp"

namespace worldmodels {

extern const Kernels baseline_kernels;
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
extern const Kernels neon_kernels;

}  // namespace worldmodels
