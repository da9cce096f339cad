// Packed weights: floats that hold one float32 or two bfloat16 each, and the packing of a matrix row.
#pragma once

#include "core/aligned.hpp"
#include "kernels/bfloat16.hpp"

namespace worldmodels {

enum class Precision { float32, bfloat16 };

// Floats that kernels with filters or rows in a vector read past the last panel.
inline constexpr std::size_t kPanelPadding = 64;

// Number of floats that hold `count` weights.
constexpr std::size_t packed_size(Precision precision, std::size_t count) {
    return precision == Precision::bfloat16 ? (count + 1) / 2 : count;
}

// Writes row (count) to to[0], to[stride], ... and returns the address of the float that follows.
inline float* write_packed(Precision precision, const float* row, std::size_t count, float* to,
                           std::size_t stride) {
    if (precision == Precision::float32) {
        for (std::size_t k = 0; k < count; ++k, to += stride) *to = row[k];
        return to;
    }
    for (std::size_t k = 0; k < count; k += 2, to += stride)
        *to = bfloat16_pair(row[k], k + 1 < count ? row[k + 1] : 0.0F);
    return to;
}

}  // namespace worldmodels
