// Packing of a layer's weights for Winograd's minimal filtering (kernels/winograd-inl.hpp).
#pragma once

#include "core/aligned.hpp"
#include "kernels/kernels.hpp"

namespace worldmodels {

// The panels of a layer, from weights (filters, channels, 4, 4) and biases (filters). Along an axis a window
// has two weights of each parity, g0 and g1: product 0 takes g0, product 1 half their sum, product 2 g1,
// product 3 half their difference.
AlignedFloats pack_winograd(const ConvView& conv, const float* weight, const float* bias);

}  // namespace worldmodels
