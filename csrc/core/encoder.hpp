// V's encoder: four convolutions of stride 2 and a linear layer, with frames across the lanes.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/aligned.hpp"
#include "core/lock.hpp"
#include "core/parallel.hpp"
#include "kernels/kernels.hpp"

namespace worldmodels {

inline constexpr int kFrameSide = 64, kFrameChannels = 3;
// The last two lines and columns of a frame reach no output of the second convolution and are left out.
inline constexpr int kSeenSide = 62;
inline constexpr int kConvolutions = 4, kFeatures = 1024;
inline constexpr std::array<int, kConvolutions> kFilters = {32, 64, 128, 256};
inline constexpr int kConvKernel = 4;

// Row-major weights as PyTorch stores them.
struct EncoderWeights {
    std::array<const float*, kConvolutions> weight;  // (filters, channels, 4, 4)
    std::array<const float*, kConvolutions> bias;    // (filters)
    const float* mu;                                 // (latent, 1024), features in the order (channel, y, x)
    const float* mu_bias;                            // (latent)
    const float* logvar;                             // (latent, 1024)
    const float* logvar_bias;
};

// V's encoder. Thread-safe.
class Encoder {
  public:
    Encoder(const EncoderWeights& weights, int latent);

    int latent() const { return latent_; }
    // frames (count, 64, 64, 3) uint8, divided by 255, to mu and logvar (count, latent). The result of
    // a frame does not depend on the batch. Returns false if `poll` requested a stop. Throws std::bad_alloc,
    // and std::runtime_error after a fork (see check_not_forked).
    bool encode_unchecked(const Kernels& kernels, const std::uint8_t* frames, int count, int threads,
                          float* mu, float* logvar, Poll poll = {}) const;

  private:
    struct Buffers {
        AlignedFloats even, odd;  // input and output of a layer, swapped after each
        AlignedFloats scratch;    // ConvView::scratch_size of the largest layer
    };

    void encode_block(const Kernels& kernels, const std::uint8_t* frames, int count, Buffers& buffers,
                      float* mu, float* logvar) const;
    void encode_frame(const Kernels& kernels, const std::uint8_t* frame, Buffers& buffers, float* mu,
                      float* logvar) const;

    int latent_;
    std::array<AlignedFloats, kConvolutions + 1> panels_;
    std::array<ConvView, kConvolutions + 1> layers_;
    mutable Pool<std::vector<Buffers>> scratch_;  // one set of buffers per thread of a call
};

}  // namespace worldmodels
