// Packed weights: words of one float32 or of two bfloat16, and the writing of one row of a matrix into every
// stride-th.
#pragma once

#include <bit>
#include <cstdint>

#include "core/aligned.hpp"

namespace worldmodels {

enum class Precision { float32, bfloat16 };

inline constexpr std::size_t kPanelPadding = 64;  // kernels for few lanes read on past the last panel

constexpr std::size_t words(Precision precision, std::size_t count) {
    return precision == Precision::bfloat16 ? (count + 1) / 2 : count;
}

// The nearest bfloat16, ties to even.
constexpr std::uint32_t bfloat16(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    return (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
}

// Writes row (count) to to[0], to[stride], ...; returns where the next word goes.
inline float* write_words(Precision precision, const float* row, std::size_t count, float* to,
                          std::size_t stride) {
    if (precision == Precision::float32) {
        for (std::size_t k = 0; k < count; ++k, to += stride) *to = row[k];
        return to;
    }
    for (std::size_t k = 0; k < count; k += 2, to += stride) {
        const std::uint32_t high = k + 1 < count ? bfloat16(row[k + 1]) : 0;
        *to = std::bit_cast<float>(bfloat16(row[k]) | high << 16);
    }
    return to;
}

}  // namespace worldmodels
