// V's encoder: four convolutions of stride 2 and a linear layer, frames across the lanes.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/aligned.hpp"
#include "core/lock.hpp"
#include "kernels/kernels.hpp"

namespace worldmodels {

inline constexpr int kFrameSide = 64, kFrameChannels = 3;
// The last two lines and columns reach no output of the second convolution.
inline constexpr int kSeenSide = 62;
inline constexpr int kConvolutions = 4, kFeatures = 1024;
inline constexpr std::array<int, kConvolutions> kFilters = {32, 64, 128, 256};
inline constexpr int kConvKernel = 4;

// Row-major weights as PyTorch stores them.
struct EncoderWeights {
    std::array<const float*, kConvolutions> weight;  // (filters, channels, 4, 4)
    std::array<const float*, kConvolutions> bias;    // (filters)
    const float* mu;                                 // (latent, 1024): features ordered (channel, y, x)
    const float* mu_bias;                            // (latent)
    const float* logvar;                             // likewise
    const float* logvar_bias;
};

// The panels of a layer that goes by Winograd's minimal filtering, from its weights (filters, channels, 4, 4)
// and biases (filters). Along an axis a window has two weights of each parity, g0 and g1: product 0 takes g0,
// product 1 half their sum, product 2 g1, product 3 half their difference.
AlignedFloats pack_winograd(const ConvView& conv, const float* weight, const float* bias);

// Safe from any number of threads.
class Encoder {
  public:
    Encoder(const EncoderWeights& weights, int latent);

    int latent() const { return latent_; }
    // frames (count, 64, 64, 3), divided by 255, to mu and logvar (count, latent). A frame's bits do not
    // depend on the others. Throws std::bad_alloc, std::runtime_error (fork).
    void encode_unchecked(const Kernels& kernels, const std::uint8_t* frames, int count, int threads,
                          float* mu, float* logvar) const;

  private:
    struct Buffers {
        AlignedFloats even, odd;  // what the layers read and write in turns
        AlignedFloats scratch;    // for one layer at a time
    };

    void encode_block(const Kernels& kernels, const std::uint8_t* frames, int count, Buffers& buffers,
                      float* mu, float* logvar) const;
    void encode_frame(const Kernels& kernels, const std::uint8_t* frame, Buffers& buffers, float* mu,
                      float* logvar) const;

    int latent_;
    std::array<AlignedFloats, kConvolutions + 1> panels_;
    std::array<ConvView, kConvolutions + 1> layers_;
    mutable Pool<std::vector<Buffers>> scratch_;  // of a call: buffers for every thread of its team
};

}  // namespace worldmodels
