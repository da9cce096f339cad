// Packing of the LSTM's weights into panels.
#include "core/pack_lstm.hpp"

namespace worldmodels {

AlignedFloats pack_lstm(const ModelView& sizes, const WorldModelWeights& weights, Precision precision) {
    const std::size_t hidden = static_cast<std::size_t>(sizes.hidden);
    const std::size_t inputs = static_cast<std::size_t>(sizes.inputs());
    const std::size_t panels = (hidden + kPanelUnits - 1) / kPanelUnits;
    const std::size_t columns = 1 + packed_size(precision, inputs) + packed_size(precision, hidden);
    AlignedFloats packed = aligned_floats(panels * columns * kPanel + kPanelPadding);
    for (std::size_t unit = 0; unit < hidden; ++unit)
        for (std::size_t gate = 0; gate < 4; ++gate) {
            const std::size_t row = gate * hidden + unit;
            float* to = packed.get() + unit / kPanelUnits * columns * kPanel + unit % kPanelUnits * 4 + gate;
            *to = weights.bias[row];
            to = write_packed(precision, weights.input + row * inputs, inputs, to + kPanel, kPanel);
            write_packed(precision, weights.recurrent + row * hidden, hidden, to, kPanel);
        }
    return packed;
}

}  // namespace worldmodels
