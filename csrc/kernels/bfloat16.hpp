// Rounding to bfloat16, for the kernels and the core. Always inlined: no ISA's copy serves another.
#pragma once

#include <cstdint>

namespace worldmodels {

// The nearest bfloat16 of float32 bits, ties to even, in the upper half. NaN stays NaN. Bits: one number, or
// a vector of them.
template <class Bits>
[[gnu::always_inline]] constexpr Bits round_bfloat16(Bits bits) {
    return ((bits & 0x7FFFFFFFU) > 0x7F800000U ? bits | 0x00400000U : bits + 0x7FFFU + ((bits >> 16) & 1U)) &
           0xFFFF0000U;
}

// A pair of bfloat16 in one float, the earlier one in the low half.
[[gnu::always_inline]] constexpr float bfloat16_pair(float low, float high) {
    return __builtin_bit_cast(float, round_bfloat16(__builtin_bit_cast(std::uint32_t, low)) >> 16 |
                                         round_bfloat16(__builtin_bit_cast(std::uint32_t, high)));
}

}  // namespace worldmodels
