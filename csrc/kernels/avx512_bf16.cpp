// The step with products of bfloat16 (AVX-512 BF16): 16 lanes, float32 sums, states and activations.
#include <immintrin.h>

#include "kernels/levels.hpp"

#define WORLDMODELS_LOOKUP

namespace worldmodels {
namespace {

#include "kernels/avx512_vectors.hpp"
//
#include "kernels/vecmath.hpp"
//
#include "kernels/body.hpp"
//
#include "kernels/step.hpp"

// Rounds to the nearest bfloat16, ties to even; the result is in the upper half.
inline U round_bfloat16(V x) {
    const U bits = reinterpret_cast<U>(x);
    return (bits + 0x7FFFU + ((bits >> 16) & 1U)) & 0xFFFF0000U;
}

struct Bfloat16 {
    static constexpr int kPack = 2;
    static V broadcast(const float* p) {
        std::int32_t word;
        __builtin_memcpy(&word, p, sizeof word);
        return as_float(splat_int(word));
    }
    static V one() { return as_float(splat_int(0x3F803F80)); }
    static V multiply_add(V w, V x, V sum) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
    }
    static const float* inputs(const Block& block) { return block.x_words; }
    static const float* hidden(const Block& block) { return block.h_words; }
    // words (ceil(count / 2), kBlock) = pairs of rows of x (count, kBlock), the earlier row in the low half.
    static void pack(const float* x, int count, float* words, int vectors) {
        for (int k = 0; k < count; k += 2)
            for (int n = 0; n < vectors; ++n) {
                const float* const pair = x + k * kBlock + n * kLanes;
                const U low = round_bfloat16(load(pair)) >> 16;
                const U high = k + 1 < count ? round_bfloat16(load(pair + kBlock)) : U{};
                store(words + k / 2 * kBlock + n * kLanes, reinterpret_cast<V>(low | high));
            }
    }
};

}  // namespace

int step_avx512_bfloat16(const ModelView& m, const ControllerView* controller, const Sampling& s,
                         Block& block, int lanes) {
    return step_lanes<Bfloat16>(m, controller, s, block, lanes);
}

double multiply_adds_avx512_bfloat16(int rounds) {
    return multiply_adds<Bfloat16>(rounds);
}

}  // namespace worldmodels
