// A small M with random weights, and random controllers for it.
#pragma once

#include <vector>

#include "check.hpp"
#include "core/controller.hpp"
#include "core/world_model.hpp"

namespace worldmodels::test {

struct RandomModel {
    static constexpr std::uint32_t kStarts = 3;

    RandomModel(const WorldModelSizes& sizes_, const ControllerView& controller_, std::uint64_t seed,
                std::size_t candidates)
        : sizes(sizes_),
          controller(controller_),
          inputs(static_cast<std::size_t>(sizes.latent + sizes.action + sizes.restart)),
          hidden(static_cast<std::size_t>(sizes.hidden)),
          params_size(controller_size(controller, sizes.latent, sizes.hidden, sizes.action)) {
        const auto latent = static_cast<std::size_t>(sizes.latent);
        const auto rows =
            static_cast<std::size_t>(sizes.done + sizes.reward + 3 * sizes.latent * sizes.mixtures);
        constexpr float kSpread = 0.8F;
        Numbers numbers(seed);
        input = numbers.floats(4 * hidden * inputs, kSpread);
        recurrent = numbers.floats(4 * hidden * hidden, kSpread);
        bias = numbers.floats(4 * hidden, kSpread);
        head = numbers.floats(rows * hidden, kSpread);
        head_bias = numbers.floats(rows, kSpread);
        mu = numbers.floats(kStarts * latent, kSpread);
        logvar = numbers.floats(kStarts * latent, kSpread);
        params = numbers.floats(candidates * params_size, kSpread);
    }

    WorldModel model(Precision precision, const Termination& termination = {}) const {
        const WorldModelWeights weights{input.data(), recurrent.data(), bias.data(), head.data(),
                                        head_bias.data()};
        return {
            sizes, weights, precision, {mu.data(), logvar.data(), nullptr, nullptr, kStarts}, termination};
    }

    WorldModelSizes sizes;
    ControllerView controller;
    std::size_t inputs, hidden, params_size;
    std::vector<float> input, recurrent, bias, head, head_bias, mu, logvar, params;
};

inline constexpr int kChoices[] = {2, 18, 3};

// All heads, controllers and kinds of tables; sizes that fill no panel, table or vector.
inline const std::vector<std::pair<WorldModelSizes, ControllerView>> kCases = {
    {{5, 2, 7, 3, true, true, true}, {true, true, true, false, 0}},
    {{1, 1, 1, 1, false, false, true}, {false, false, false, false, 0}},
    {{6, 3, 20, 5, false, false, true}, {false, true, true, true, 6}},
    {{11, 1, 31, 9, true, true, true}, {true, false, false, false, 0}},
    {{16, 1, 50, 8, true, true, true}, {true, true, false, false, 5}},
    {{4, 2, 12, 5, true, false, false}, {true, true, true, false, 4}},
    {{6, 23, 9, 3, true, true, true}, {true, true, true, false, 0, kChoices, 3}},
    {{3, 18, 21, 5, true, true, false}, {false, true, false, false, 7, kChoices + 1, 1}},
};

}  // namespace worldmodels::test
