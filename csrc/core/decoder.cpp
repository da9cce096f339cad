// V's decoder: weight packing, and frames on threads.
#include "core/decoder.hpp"

#include <utility>

#include "core/packing.hpp"

namespace worldmodels {
namespace {

constexpr std::ptrdiff_t kFrameBytes = std::ptrdiff_t{64} * kFrameLine;

AlignedFloats pack_point(const DecoderWeights& weights, int latent) {
    const std::size_t columns = static_cast<std::size_t>(latent);
    AlignedFloats packed = aligned_floats(std::size_t{kPointRows} * (1 + columns));
    for (std::size_t row = 0; row < std::size_t{kPointRows}; ++row) {
        float* to = packed.get() + row / kFilterPanel * kFilterPanel * (1 + columns) + row % kFilterPanel;
        *to = weights.point_bias[row];
        for (std::size_t k = 0; k < columns; ++k) *(to += kFilterPanel) = weights.point[row * columns + k];
    }
    return packed;
}

// weight: (channels, filters, kernel, kernel)
AlignedFloats pack_deconv(const DeconvView& conv, const float* weight) {
    AlignedFloats packed = aligned_floats(
        static_cast<std::size_t>(conv.merged ? conv.taps(0) * conv.taps(0) * conv.channels * kPanel
                                             : conv.kernel * conv.kernel * conv.channels * conv.filters) +
        kPanelPadding);
    for (int parity = 0; parity < 4; ++parity) {
        const int down = parity / 2, right = parity % 2;
        float* to = packed.get() + (conv.merged ? parity * conv.filters : conv.parity_offset(parity));
        for (int u = 0; u < conv.taps(down); ++u)
            for (int v = conv.taps(right) - 1; v >= 0; --v)
                for (int channel = 0; channel < conv.channels; ++channel, to += conv.columns())
                    for (int filter = 0; filter < conv.filters; ++filter)
                        to[filter] = weight[((channel * conv.filters + filter) * conv.kernel + 2 * u + down) *
                                                conv.kernel +
                                            2 * v + right];
    }
    return packed;
}

}  // namespace

Decoder::Decoder(const DecoderWeights& weights, int latent) : point_(pack_point(weights, latent)) {
    view_ = {.latent = latent, .point = point_.get(), .layers = {}};
    int side = kPointSide, channels = kPointChannels;
    for (std::size_t layer = 0; layer < kDeconvolutions; ++layer) {
        DeconvView& conv = view_.layers[layer];
        conv = {.side = side,
                .channels = channels,
                .filters = kDeconvFilters[layer],
                .kernel = kDeconvKernels[layer],
                .merged = layer + 1 == kDeconvolutions,
                .weights = nullptr,
                .bias = nullptr};
        weights_[layer] = pack_deconv(conv, weights.weight[layer]);
        biases_[layer] = aligned_floats(static_cast<std::size_t>(conv.columns()) + kPanelPadding);
        for (int i = 0; i < conv.columns(); ++i)
            biases_[layer][static_cast<std::size_t>(i)] = weights.bias[layer][i % conv.filters];
        conv.weights = weights_[layer].get();
        conv.bias = biases_[layer].get();
        side = conv.out_side();
        channels = conv.filters;
    }
}

bool Decoder::decode_unchecked(const Kernels& kernels, const float* z, int count, int threads,
                               std::uint8_t* frames, Poll poll) const {
    threads = threads_for(count, threads);
    const auto scratch = scratch_.borrow();
    while (scratch->size() < static_cast<std::size_t>(threads)) {
        Buffers buffers;
        for (std::size_t layer = 0; layer < kDeconvolutions; ++layer) {
            const DeconvView& conv = view_.layers[layer];
            buffers[layer] = aligned_floats(static_cast<std::size_t>(conv.side * conv.in_stride()));
        }
        scratch->push_back(std::move(buffers));
    }
    InterruptiblePool pool(poll);
    parallel_for_blocks(count, threads, pool, [&](int frame, int thread) {
        const Buffers& own = (*scratch)[static_cast<std::size_t>(thread)];
        kernels.decode_frame(view_, z + std::ptrdiff_t{frame} * view_.latent,
                             {{own[0].get(), own[1].get(), own[2].get()}}, frames + frame * kFrameBytes);
    });
    return !pool.stopped();
}

}  // namespace worldmodels
