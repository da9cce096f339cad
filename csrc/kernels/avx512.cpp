// Kernels for AVX-512 (F, DQ, BW, VL): 16 lanes.
#include <immintrin.h>

#include "kernels/simd_targets.hpp"

#define WORLDMODELS_LOOKUP

namespace worldmodels {
namespace {

#include "kernels/avx512_vectors-inl.hpp"

constexpr int kTileRows = 8, kTileVectors = 1;
using VecD = double __attribute__((vector_size(64), may_alias));

inline VecD fma(VecD a, VecD b, VecD c) {
    return _mm512_fmadd_pd(a, b, c);
}

#include "kernels/all_kernels-inl.hpp"

// Up to half a vector of lanes is faster in vectors of 8, with the same bits.
int step(const ModelView& m, const ControllerView* controller, const Sampling& s, Block& block, int lanes) {
    if (lanes > kNarrowLanes && lanes <= kLanes / 2) return avx2_kernels.step(m, controller, s, block, lanes);
    return step_lanes<Float32>(m, controller, s, block, lanes);
}

bool supported() {
    return avx2_kernels.supported() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}
bool bfloat16_supported() {
    return supported() && __builtin_cpu_supports("avx512bf16");
}

constexpr Kernels own_step(Kernels kernels) {
    kernels.step = step;
    kernels.widths |= 1U << (kLanes / 2 - 1);
    return kernels;
}
constexpr Kernels with_bfloat16(Kernels kernels) {
    kernels.step_bfloat16 = step_avx512_bfloat16;
    kernels.widths_bfloat16 = full_widths();
    kernels.multiply_adds_bfloat16 = multiply_adds_avx512_bfloat16;
    kernels.conv_bfloat16 = &conv_avx512_bfloat16;
    kernels.rnn_bfloat16 = &rnn_avx512_bfloat16;
    return kernels;
}

}  // namespace

constinit const Kernels avx512_kernels = own_step(simd_target("avx512", supported));
constinit const Kernels avx512_bf16_kernels =
    with_bfloat16(own_step(simd_target("avx512_bf16", bfloat16_supported)));

}  // namespace worldmodels
