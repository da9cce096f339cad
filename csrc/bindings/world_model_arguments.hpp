// What the bindings of M share: checked sizes.
#pragma once

#include "bindings/arguments.hpp"
#include "core/world_model.hpp"

namespace worldmodels {

inline constexpr int kMaxRows = 1 << 20;  // of any buffer: every index of a block fits an int

inline WorldModelSizes checked_sizes(long long latent, long long action, long long hidden, long long mixtures,
                                     bool restart, bool done, bool reward) {
    const WorldModelSizes sizes{checked_integer(latent, 1, "latent_size", kMaxRows),
                                checked_integer(action, 1, "action_size", kMaxRows),
                                checked_integer(hidden, 1, "hidden_size", kMaxRows),
                                checked_integer(mixtures, 1, "mixtures", kMaxRows),
                                restart,
                                done,
                                reward};
    checked_integer((done ? 1 : 0) + (reward ? 1 : 0) + 3 * latent * mixtures, 1, "latent_size * mixtures",
                    kMaxRows);
    return sizes;
}

}  // namespace worldmodels
