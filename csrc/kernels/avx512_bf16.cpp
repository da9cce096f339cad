// The step with bfloat16 products (AVX-512 BF16): 16 lanes; sums, states and activations are float32.
#include <immintrin.h>

#include "kernels/simd_targets.hpp"

#define WORLDMODELS_LOOKUP

namespace worldmodels {
namespace {

// clang-format off
#include "kernels/avx512_vectors-inl.hpp"
#include "kernels/step_kernels-inl.hpp"
#include "kernels/bfloat16-inl.hpp"
#include "kernels/matmul-inl.hpp"
#include "kernels/rnn_training-inl.hpp"
#include "kernels/conv_training-inl.hpp"
// clang-format on

struct Bfloat16 : Bfloat16Pairs {
    static VecF one() { return as_float(splat_int(0x3F803F80)); }
    static VecF multiply_add(VecF w, VecF x, VecF sum) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
    }
    static const float* inputs(const Block& block) { return block.x_packed; }
    static const float* hidden(const Block& block) { return block.h_packed; }
    // packed (ceil(count / 2), kBlock) = pairs of rows of x (count, kBlock), the earlier row in the low half.
    static void pack(const float* x, int count, float* packed, int vectors) {
        for (int k = 0; k < count; k += 2)
            for (int n = 0; n < vectors; ++n) {
                const float* const pair = x + k * kBlock + n * kLanes;
                const VecU low = round_bfloat16(load(pair)) >> 16;
                const VecU high = k + 1 < count ? round_bfloat16(load(pair + kBlock)) : VecU{};
                store(packed + k / 2 * kBlock + n * kLanes, reinterpret_cast<VecF>(low | high));
            }
    }
};

}  // namespace

int step_avx512_bfloat16(const ModelView& m, const ControllerView* controller, const Sampling& s,
                         Block& block, int lanes) {
    return step_lanes<Bfloat16>(m, controller, s, block, lanes);
}

constinit const ConvTrainingKernels conv_avx512_bfloat16 = conv_training_kernels<Bfloat16>();
constinit const RNNKernels rnn_avx512_bfloat16 = rnn_kernels<Bfloat16>();

double multiply_adds_avx512_bfloat16(int rounds) {
    return multiply_adds<Bfloat16>(rounds);
}

}  // namespace worldmodels
