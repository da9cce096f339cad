// V's decoder, folded: a matrix and three transposed convolutions of stride 2, a frame at a time.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/aligned.hpp"
#include "core/lock.hpp"
#include "core/parallel.hpp"
#include "kernels/kernels.hpp"

namespace worldmodels {

inline constexpr int kDeconvolutions = 3;
inline constexpr int kPointSide = 5, kPointChannels = 128;  // of the image that the matrix produces
inline constexpr int kPointRows = kPointSide * kPointSide * kPointChannels;
inline constexpr std::array<int, kDeconvolutions> kDeconvFilters = {64, 32, 3}, kDeconvKernels = {5, 6, 6};

// Row-major weights.
struct DecoderWeights {
    const float* point;                                // (3200, latent), rows in the order (y, x, channel)
    const float* point_bias;                           // (3200)
    std::array<const float*, kDeconvolutions> weight;  // (channels, filters, kernel, kernel), as PyTorch's
    std::array<const float*, kDeconvolutions> bias;    // (filters)
};

// V's decoder. Safe from any number of threads.
class Decoder {
  public:
    Decoder(const DecoderWeights& weights, int latent);

    int latent() const { return view_.latent; }
    // z (count, latent) to frames (count, 64, 64, 3), brightness * 255 rounded. A frame's bits do not depend
    // on the other frames. Returns false when the poll asked to stop. Throws std::bad_alloc, and
    // std::runtime_error as check_not_forked.
    bool decode_unchecked(const Kernels& kernels, const float* z, int count, int threads,
                          std::uint8_t* frames, Poll poll = {}) const;

  private:
    using Buffers = std::array<AlignedFloats, kDeconvolutions>;

    DecoderView view_;
    AlignedFloats point_;
    std::array<AlignedFloats, kDeconvolutions> weights_, biases_;
    mutable Pool<std::vector<Buffers>> scratch_;  // one set of buffers per thread of a call
};

}  // namespace worldmodels
