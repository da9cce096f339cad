// Packing of the MDN head's weights into panels and tables.
#pragma once

#include "core/world_model.hpp"

namespace worldmodels {

// Panels of 12 rows (1 + hidden, 12): [done] [reward] logits (Z, K), padded to a whole panel, then means
// (Z, K) and log stds (Z, K).
AlignedFloats pack_head(const ModelView& sizes, const WorldModelWeights& weights, Precision precision);

// (ceil(Z / D), 1 + hidden, 2, 16): for each group of D dimensions, each input's weights for all means, then
// for all log stds; null where K is too large for a table.
AlignedFloats pack_moments(const ModelView& sizes, const WorldModelWeights& weights, Precision precision);

}  // namespace worldmodels
