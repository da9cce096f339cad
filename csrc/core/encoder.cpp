// V's encoder: weight packing, and blocks of frames on threads.
#include "core/encoder.hpp"

#include <algorithm>

#include "core/pack_winograd.hpp"
#include "core/packing.hpp"

namespace worldmodels {
namespace {

// Blocks are multiples of this many frames, which fill whole vectors.
constexpr int kFrameGroup = 8;
// Up to this many frames per thread, single frames are faster than a block.
constexpr int kMaxSingleFrames = 5;

// byte / 255 in float32.
constexpr std::array<float, 256> kBrightness = [] {
    std::array<float, 256> values{};
    for (std::size_t byte = 0; byte < values.size(); ++byte) values[byte] = static_cast<float>(byte) / 255.0F;
    return values;
}();

std::size_t floats_of(int side, int channels) {
    return static_cast<std::size_t>(side) * static_cast<std::size_t>(side) *
           static_cast<std::size_t>(channels) * kBlock;
}

// The panels of a layer, from weight(filter, channel, y, x) and bias(filter). Missing filters are zero.
template <class Weight, class Bias>
AlignedFloats pack(const ConvView& conv, Weight weight, Bias bias) {
    AlignedFloats packed = aligned_floats(static_cast<std::size_t>(conv.panels_size()) + kPanelPadding);
    for (int filter = 0; filter < conv.filters; ++filter) {
        float* to = packed.get() + filter / kPanel * conv.panel_size() + filter % kPanel;
        *to = bias(filter);
        for (int y = 0; y < conv.kernel; ++y)
            for (int x = 0; x < conv.kernel; ++x)
                for (int channel = 0; channel < conv.channels; ++channel)
                    *(to += kPanel) = weight(filter, channel, y, x);
    }
    return packed;
}

}  // namespace

Encoder::Encoder(const EncoderWeights& weights, int latent) : latent_(latent) {
    int side = kSeenSide, channels = kFrameChannels;
    for (std::size_t layer = 0; layer < kConvolutions; ++layer) {
        ConvView& conv = layers_[layer];
        conv = {.side = side,
                .channels = channels,
                .filters = kFilters[layer],
                .kernel = kConvKernel,
                .stride = 2,
                .relu = true,
                .winograd = channels % kBlock == 0,
                .panels = nullptr};
        const float* const weight = weights.weight[layer];
        const float* const bias = weights.bias[layer];
        if (conv.winograd)
            panels_[layer] = pack_winograd(conv, weight, bias);
        else
            panels_[layer] = pack(
                conv,
                [&](int filter, int channel, int y, int x) {
                    return weight[((std::ptrdiff_t{filter} * channels + channel) * kConvKernel + y) *
                                      kConvKernel +
                                  x];
                },
                [&](int filter) { return bias[filter]; });
        side = conv.out_side();
        channels = conv.filters;
    }
    ConvView& last = layers_[kConvolutions];  // mu and logvar: a convolution as large as its input
    last = {.side = side,
            .channels = channels,
            .filters = 2 * latent,
            .kernel = side,
            .stride = 1,
            .relu = false,
            .winograd = false,
            .panels = nullptr};
    panels_[kConvolutions] = pack(
        last,
        [&](int row, int channel, int y, int x) {
            const std::ptrdiff_t column = (channel * side + y) * side + x;
            return row < latent ? weights.mu[row * kFeatures + column]
                                : weights.logvar[(row - latent) * kFeatures + column];
        },
        [&](int row) { return row < latent ? weights.mu_bias[row] : weights.logvar_bias[row - latent]; });
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) layers_[layer].panels = panels_[layer].get();
}

void Encoder::encode_block(const Kernels& kernels, const std::uint8_t* frames, int count, Buffers& buffers,
                           float* mu, float* logvar) const {
    constexpr int kLine = kFrameSide * kFrameChannels, kSeen = kSeenSide * kFrameChannels;
    float* in = buffers.even.get();
    float* out = buffers.odd.get();
    for (int line = 0; line < kSeenSide; ++line)
        for (int lane = 0; lane < count; ++lane) {
            const std::uint8_t* const from =
                frames + std::ptrdiff_t{lane} * kFrameSide * kLine + line * kLine;
            float* const to = in + line * kSeen * kBlock + lane;
            for (int i = 0; i < kSeen; ++i) to[i * kBlock] = kBrightness[from[i]];
        }
    for (const ConvView& conv : layers_) {
        kernels.convolve(conv, in, buffers.scratch.get(), out, count);
        std::swap(in, out);
    }
    for (int lane = 0; lane < count; ++lane)
        for (int i = 0; i < latent_; ++i) {
            mu[std::ptrdiff_t{lane} * latent_ + i] = in[i * kBlock + lane];
            logvar[std::ptrdiff_t{lane} * latent_ + i] = in[(latent_ + i) * kBlock + lane];
        }
}

void Encoder::encode_frame(const Kernels& kernels, const std::uint8_t* frame, Buffers& buffers, float* mu,
                           float* logvar) const {
    constexpr int kLine = kFrameSide * kFrameChannels, kSeen = kSeenSide * kFrameChannels;
    float* in = buffers.even.get();
    float* out = buffers.odd.get();
    for (int line = 0; line < kSeenSide; ++line)
        for (int i = 0; i < kSeen; ++i) in[line * kSeen + i] = kBrightness[frame[line * kLine + i]];
    for (const ConvView& conv : layers_) {
        kernels.convolve_frame(conv, in, buffers.scratch.get(), out);
        std::swap(in, out);
    }
    std::copy_n(in, latent_, mu);
    std::copy_n(in + latent_, latent_, logvar);
}

bool Encoder::encode_unchecked(const Kernels& kernels, const std::uint8_t* frames, int count, int threads,
                               float* mu, float* logvar, Poll poll) const {
    constexpr std::ptrdiff_t kBytes = kFrameSide * kFrameSide * kFrameChannels;
    const int wanted = std::max(1, std::min(threads, (count + kFrameGroup - 1) / kFrameGroup));
    const bool single = (count - 1) / kMaxSingleFrames < threads;
    const int size =
        single ? 1
               : std::min(kBlock, (count + wanted * kFrameGroup - 1) / (wanted * kFrameGroup) * kFrameGroup);
    const int blocks = (count + size - 1) / size;
    threads = threads_for(blocks, threads);
    const auto scratch = scratch_.borrow();
    while (scratch->size() < static_cast<std::size_t>(threads)) {
        std::array<std::size_t, 3> largest = {floats_of(kSeenSide, kFrameChannels), 0, 0};
        for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
            const ConvView& conv = layers_[layer];
            std::size_t& floats = largest[(layer + 1) % 2];
            floats = std::max(floats, floats_of(conv.out_side(), conv.filters));
            largest[2] = std::max(largest[2], static_cast<std::size_t>(conv.scratch_size()));
        }
        scratch->push_back(
            {aligned_floats(largest[0]), aligned_floats(largest[1]), aligned_floats(largest[2])});
    }
    InterruptiblePool pool(poll);
    parallel_for_blocks(blocks, threads, pool, [&](int b, int thread) {
        const std::ptrdiff_t first = std::ptrdiff_t{b} * size;
        Buffers& buffers = (*scratch)[static_cast<std::size_t>(thread)];
        float* const to_mu = mu + first * latent_;
        float* const to_logvar = logvar + first * latent_;
        if (single)
            encode_frame(kernels, frames + first * kBytes, buffers, to_mu, to_logvar);
        else
            encode_block(kernels, frames + first * kBytes, std::min(size, count - b * size), buffers, to_mu,
                         to_logvar);
    });
    return !pool.stopped();
}

}  // namespace worldmodels
