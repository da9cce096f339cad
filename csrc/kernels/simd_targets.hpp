// The tables of the SIMD targets, one per ISA file.
#pragma once

#include "kernels/bfloat16.hpp"
#include "kernels/kernels.hpp"

namespace worldmodels {

extern const Kernels baseline_kernels;
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
extern const Kernels avx512_bf16_kernels;
extern const Kernels neon_kernels;

// Defined in avx512_bf16.cpp, the only file built with -mavx512bf16.
int step_avx512_bfloat16(const ModelView&, const ControllerView*, const Sampling&, Block&, int lanes);
double multiply_adds_avx512_bfloat16(int rounds);
extern const ConvTrainingKernels conv_avx512_bfloat16;
extern const RNNKernels rnn_avx512_bfloat16;

}  // namespace worldmodels
