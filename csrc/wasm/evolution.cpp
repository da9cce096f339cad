// Generations of CMA-ES: candidates' episodes in the lanes of a block, then the update.
#include "wasm/evolution.hpp"

#include <algorithm>
#include <numeric>

namespace worldmodels {

Evolution::Evolution(const Kernels& kernels, const WorldModel& model, const EvolutionSettings& settings)
    : kernels_(kernels),
      model_(model),
      settings_(settings),
      cmaes_(cmaes_parameters(
                 static_cast<std::int64_t>(controller_size(settings.controller, model.view().latent,
                                                           model.view().hidden, model.view().action)),
                 settings.popsize, true, true),
             std::vector<double>(controller_size(settings.controller, model.view().latent,
                                                 model.view().hidden, model.view().action),
                                 0.0),
             settings.sigma0, settings.seed, true, nullptr),
      scratch_(model, &settings_.controller),
      lanes_(model, &settings_.controller, settings.termination),
      totals_(static_cast<std::size_t>(settings.popsize * settings.episodes)),
      returns_(static_cast<std::size_t>(settings.popsize)) {
    scratch_.lend(lanes_.block());
}

void Evolution::begin() {
    const std::vector<double>& solutions = cmaes_.ask(kernels_, 1);
    params_.assign(solutions.begin(), solutions.end());
    next_ = played_ = 0;
    const std::size_t lanes = std::min<std::size_t>(totals_.size(), kBlock);
    while (running_.size() < lanes) {
        running_.emplace_back();
        enter(static_cast<int>(running_.size()) - 1);
    }
}

// Starts the next episode in a lane.
void Evolution::enter(int lane) {
    const std::int64_t job = next_++;
    const std::size_t size = cmaes_.state().mean.size();
    const auto candidate = static_cast<std::size_t>(job / settings_.episodes);
    lanes_.start(kernels_, model_, settings_.seed + static_cast<std::uint64_t>(generation()) + 1, 0,
                 static_cast<std::uint32_t>(job % settings_.episodes), params_.data() + candidate * size,
                 lane);
    running_[static_cast<std::size_t>(lane)] = {job, 0.0, 1.0, 0};
}

void Evolution::step() {
    const std::uint64_t seed = settings_.seed + static_cast<std::uint64_t>(generation()) + 1;
    const Sampling sampling = make_sampling(seed, settings_.temperature);
    int active = static_cast<int>(running_.size());
    played_ += active;
    worldmodels::step(kernels_, model_, &settings_.controller, sampling, lanes_.block(), active);
    for (int lane = active - 1; lane >= 0; --lane) {
        Running& run = running_[static_cast<std::size_t>(lane)];
        const bool done = lanes_.finish_step(lane, seed, run.total, run.survival, run.length);
        if (!done && run.length < settings_.max_steps) continue;
        totals_[static_cast<std::size_t>(run.job)] = static_cast<float>(run.total);
        if (next_ < static_cast<std::int64_t>(totals_.size())) {
            enter(lane);
        } else {
            --active;
            lanes_.move(active, lane);
            run = running_.back();
            running_.pop_back();
        }
    }
}

void Evolution::tell() {
    const auto episodes = static_cast<std::size_t>(settings_.episodes);
    for (std::size_t candidate = 0; candidate < returns_.size(); ++candidate) {
        const float* const first = totals_.data() + candidate * episodes;
        returns_[candidate] = std::accumulate(first, first + episodes, 0.0) / settings_.episodes;
    }
    std::vector<std::int64_t> order(returns_.size()), rank(returns_.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
        return returns_[static_cast<std::size_t>(a)] > returns_[static_cast<std::size_t>(b)];
    });
    for (std::size_t at = 0; at < order.size(); ++at)
        rank[static_cast<std::size_t>(order[at])] = static_cast<std::int64_t>(at);
    const std::size_t size = cmaes_.state().mean.size(), best = static_cast<std::size_t>(order[0]);
    best_.assign(params_.data() + best * size, params_.data() + (best + 1) * size);
    const std::vector<double> solutions = cmaes_.state().x;
    cmaes_.tell(kernels_, solutions.data(), rank.data(), 1);
    steps_ = played_;
}

bool Evolution::advance(int steps) {
    if (running_.empty()) begin();
    while (steps-- > 0 && !running_.empty()) step();
    if (!running_.empty()) return false;
    tell();
    return true;
}

}  // namespace worldmodels
