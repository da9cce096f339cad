// Packing of the MDN head's weights into panels and tables.
#include "core/pack_head.hpp"

namespace worldmodels {
namespace {

// The row of the torch head for dimension d, kind 0 logit, 1 mean, 2 log std, and component k.
std::size_t head_row(const ModelView& sizes, int d, int kind, int k) {
    return static_cast<std::size_t>(sizes.score_row() + (d * 3 + kind) * sizes.mixtures + k);
}

// Writes the bias and then the weights of a head row, `stride` floats apart.
void write_row(const ModelView& sizes, const WorldModelWeights& weights, Precision precision, std::size_t row,
               float* to, std::size_t stride) {
    const std::size_t hidden = static_cast<std::size_t>(sizes.hidden);
    *to = weights.head_bias[row];
    write_packed(precision, weights.head + row * hidden, hidden, to + stride, stride);
}

}  // namespace

AlignedFloats pack_head(const ModelView& sizes, const WorldModelWeights& weights, Precision precision) {
    const std::size_t panel =
        std::size_t{kPanel} * (1 + packed_size(precision, static_cast<std::size_t>(sizes.hidden)));
    AlignedFloats packed = aligned_floats(
        static_cast<std::size_t>(sizes.score_panels + sizes.moment_panels) * panel + kPanelPadding);
    const auto put = [&](std::size_t row, int at) {
        const std::size_t to = static_cast<std::size_t>(at);
        write_row(sizes, weights, precision, row, packed.get() + to / kPanel * panel + to % kPanel, kPanel);
    };
    for (int row = 0; row < sizes.score_row(); ++row) put(static_cast<std::size_t>(row), row);
    for (int d = 0; d < sizes.latent; ++d)
        for (int k = 0; k < sizes.mixtures; ++k) {
            const int at = d * sizes.mixtures + k;
            put(head_row(sizes, d, 0, k), sizes.score_row() + at);
            put(head_row(sizes, d, 1, k), sizes.mean_row() + at);
            put(head_row(sizes, d, 2, k), sizes.mean_row() + sizes.latent * sizes.mixtures + at);
        }
    return packed;
}

AlignedFloats pack_moments(const ModelView& sizes, const WorldModelWeights& weights, Precision precision) {
    if (sizes.mixtures > kTableMixtures) return nullptr;
    const int dims = table_dims(sizes.mixtures);
    const std::size_t group =
        std::size_t{2} * kTable * (1 + packed_size(precision, static_cast<std::size_t>(sizes.hidden)));
    AlignedFloats packed = aligned_floats(static_cast<std::size_t>((sizes.latent + dims - 1) / dims) * group);
    for (int d = 0; d < sizes.latent; ++d)
        for (int kind = 0; kind < 2; ++kind)
            for (int k = 0; k < sizes.mixtures; ++k) {
                const std::size_t at =
                    static_cast<std::size_t>(kind * kTable + d % dims * sizes.mixtures + k);
                write_row(sizes, weights, precision, head_row(sizes, d, 1 + kind, k),
                          packed.get() + static_cast<std::size_t>(d / dims) * group + at,
                          std::size_t{2} * kTable);
            }
    return packed;
}

}  // namespace worldmodels
