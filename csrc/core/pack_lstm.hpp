// Packing of the LSTM's weights into panels.
#pragma once

#include "core/world_model.hpp"

namespace worldmodels {

// (ceil(hidden / 3), 1 + inputs + hidden, 12): each panel holds three units' gates i, f, g, o; missing units
// are zero. bfloat16 has half as many columns, see ModelView.
AlignedFloats pack_lstm(const ModelView& sizes, const WorldModelWeights& weights, Precision precision);

}  // namespace worldmodels
