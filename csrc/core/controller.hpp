// C: the number of features and parameters of a controller; models/controller.py defines their order.
#pragma once

#include <cstddef>

#include "kernels/kernels.hpp"

namespace worldmodels {

constexpr std::size_t feature_size(const ControllerView& c, int latent, int hidden) {
    return static_cast<std::size_t>(latent) +
           static_cast<std::size_t>(hidden) * ((c.use_c ? 1 : 0) + (c.use_h ? 1 : 0));
}

constexpr std::size_t controller_size(const ControllerView& c, int latent, int hidden, int action) {
    const std::size_t features = feature_size(c, latent, hidden), actions = static_cast<std::size_t>(action);
    const std::size_t units = static_cast<std::size_t>(c.hidden_units), bias = c.bias ? 1 : 0;
    return units > 0 ? units * (features + bias) + actions * (units + bias) : actions * (features + bias);
}

}  // namespace worldmodels
