// M: packing of its weights and copies of its initial states.
#include "core/world_model.hpp"

#include <algorithm>

#include "core/pack_head.hpp"
#include "core/pack_lstm.hpp"

namespace worldmodels {
namespace {

ModelView sizes_of(const WorldModelSizes& s) {
    ModelView view{s.latent, s.action, s.hidden, s.mixtures, s.restart, s.done,
                   s.reward, nullptr,  nullptr,  0,          0,         nullptr};
    const int mixture = s.latent * s.mixtures;
    view.score_panels = (view.score_row() + mixture + kPanel - 1) / kPanel;
    view.moment_panels = (2 * mixture + kPanel - 1) / kPanel;
    return view;
}

}  // namespace

WorldModel::WorldModel(const WorldModelSizes& sizes, const WorldModelWeights& weights, Precision precision,
                       const InitialStates& initial, const Termination& termination)
    : precision_(precision),
      termination_(termination),
      view_(sizes_of(sizes)),
      lstm_(pack_lstm(view_, weights, precision)),
      head_(pack_head(view_, weights, precision)),
      moments_(pack_moments(view_, weights, precision)),
      initial_mu_(initial.mu, initial.mu + initial.rows * latent()),
      initial_logvar_(initial.logvar, initial.logvar + initial.rows * latent()),
      initial_rows_(initial.rows) {
    view_.lstm = lstm_.get();
    view_.head = head_.get();
    view_.moments = moments_.get();
    if (initial.h == nullptr) return;
    const auto zero = [](float value) { return value == 0.0F; };
    for (std::size_t row = 0; row < initial.rows; ++row) {
        for (const float* part : {initial.h, initial.c})
            initial_states_.insert(initial_states_.end(), part + row * hidden(), part + (row + 1) * hidden());
        burned_in_.push_back(!std::all_of(initial_states_.end() - static_cast<std::ptrdiff_t>(2 * hidden()),
                                          initial_states_.end(), zero));
    }
}

}  // namespace worldmodels
