// M: the sizes and the packed weights of an MDN-RNN, and where its episodes start.
#include "core/world_model.hpp"

#include "core/lstm.hpp"
#include "core/mdn.hpp"

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
                       const float* initial_mu, const float* initial_logvar, std::uint32_t initial_rows)
    : precision_(precision),
      view_(sizes_of(sizes)),
      lstm_(pack_lstm(view_, weights, precision)),
      head_(pack_head(view_, weights, precision)),
      moments_(pack_moments(view_, weights, precision)),
      initial_mu_(initial_mu, initial_mu + std::size_t{initial_rows} * latent()),
      initial_logvar_(initial_logvar, initial_logvar + std::size_t{initial_rows} * latent()),
      initial_rows_(initial_rows) {
    view_.lstm = lstm_.get();
    view_.head = head_.get();
    view_.moments = moments_.get();
}

}  // namespace worldmodels
