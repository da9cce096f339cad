// Packing of the LSTM's weights into panels.
#include "core/lstm.hpp"

namespace worldmodels {

AlignedFloats pack_lstm(const ModelView& sizes, const WorldModelWeights& weights) {
    const std::size_t hidden = static_cast<std::size_t>(sizes.hidden),
                      inputs = static_cast<std::size_t>(sizes.inputs());
    const std::size_t panels = (hidden + kPanelUnits - 1) / kPanelUnits;
    const std::size_t columns = 1 + inputs + hidden;
    AlignedFloats packed = aligned_floats(panels * columns * kPanel);
    for (std::size_t unit = 0; unit < hidden; ++unit)
        for (std::size_t gate = 0; gate < 4; ++gate) {
            const std::size_t row = gate * hidden + unit;
            float* to = packed.get() + unit / kPanelUnits * columns * kPanel + unit % kPanelUnits * 4 + gate;
            *to = weights.bias[row];
            for (std::size_t k = 0; k < inputs; ++k) *(to += kPanel) = weights.input[row * inputs + k];
            for (std::size_t k = 0; k < hidden; ++k) *(to += kPanel) = weights.recurrent[row * hidden + k];
        }
    return packed;
}

}  // namespace worldmodels
