// Packing of a layer's weights for Winograd's minimal filtering.
#include "core/pack_winograd.hpp"

#include "core/packing.hpp"

namespace worldmodels {

AlignedFloats pack_winograd(const ConvView& conv, const float* weight, const float* bias) {
    constexpr double kShares[4][2] = {{1.0, 0.0}, {0.5, 0.5}, {0.0, 1.0}, {0.5, -0.5}};
    constexpr int kSide = 4, kWindow = kSide * kSide;
    const int each = conv.products();
    AlignedFloats packed =
        aligned_floats(static_cast<std::size_t>(each * each * conv.panels_size()) + kPanelPadding);
    for (int product = 0; product < each * each; ++product) {
        const int line = product / each, column = product % each;
        for (int filter = 0; filter < conv.filters; ++filter) {
            float* to = packed.get() + product * conv.panels_size() + filter / kPanel * conv.panel_size() +
                        filter % kPanel;
            *to = line == 1 && column == 1 ? bias[filter] : 0.0F;
            for (int odd = 0; odd < 4; ++odd)
                for (int channel = 0; channel < conv.channels; ++channel) {
                    const float* const window =
                        weight + (std::ptrdiff_t{filter} * conv.channels + channel) * kWindow;
                    double sum = 0.0;
                    for (int y = 0; y < 2; ++y)
                        for (int x = 0; x < 2; ++x)
                            sum += kShares[line][y] * kShares[column][x] *
                                   window[(2 * y + odd / 2) * kSide + 2 * x + odd % 2];
                    *(to += kPanel) = static_cast<float>(sum);
                }
        }
    }
    return packed;
}

}  // namespace worldmodels
