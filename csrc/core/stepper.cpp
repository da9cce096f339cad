// M stepped as a batch of environments.
#include <algorithm>

#include "core/dream.hpp"

namespace worldmodels {

Stepper::Stepper(const WorldModel& model, int envs) : model_(model), envs_(envs) {
    for (int first = 0; first < envs; first += kBlock) blocks_.emplace_back(model, nullptr);
}

int Stepper::lanes_of(std::size_t block) const {
    return std::min(kBlock, envs_ - static_cast<int>(block) * kBlock);
}

void Stepper::reset_unchecked(const Kernels& kernels, std::uint64_t seed, const std::uint32_t* episodes,
                              const bool* mask) {
    for (int env = 0; env < envs_; ++env)
        if (mask[env])
            blocks_[static_cast<std::size_t>(env / kBlock)].start(
                kernels, model_, seed, static_cast<std::uint32_t>(env), episodes[env], nullptr, env % kBlock);
}

void Stepper::step_unchecked(const Kernels& kernels, std::uint64_t seed, float temperature,
                             const float* actions, int threads, float* rewards, bool* dones) {
    const Sampling sampling = make_sampling(seed, temperature);
    const ModelView& m = model_.view();
    const auto step_block = [&](std::size_t b) {
        Lanes& lanes = blocks_[b];
        const int first = static_cast<int>(b) * kBlock, count = lanes_of(b);
        for (int lane = 0; lane < count; ++lane)
            for (int a = 0; a < m.action; ++a)
                lanes.set_action(lane, a, actions[std::ptrdiff_t{first + lane} * m.action + a]);
        step(kernels, model_, nullptr, sampling, lanes.block(), count);
        for (int lane = 0; lane < count; ++lane) {
            ++lanes.block().step[lane];
            rewards[first + lane] = lanes.reward(lane);
            dones[first + lane] = lanes.done(lane);
        }
    };
    const int team = std::min(threads, static_cast<int>(blocks_.size()));
    check_not_forked(team);
    if (team == 1) {
        for (std::size_t b = 0; b < blocks_.size(); ++b) step_block(b);
        return;
    }
#pragma omp parallel for num_threads(team) schedule(dynamic)
    for (std::size_t b = 0; b < blocks_.size(); ++b) step_block(b);
}

void Stepper::observe_unchecked(bool use_c, bool use_h, int threads, float* out) const {
    const ModelView& m = model_.view();
    const std::ptrdiff_t size = m.latent + m.hidden * ((use_c ? 1 : 0) + (use_h ? 1 : 0));
    const auto observe_block = [&](std::size_t b) {
        const Block& block = blocks_[b].block();
        const int count = lanes_of(b);
        float* row = out + static_cast<std::ptrdiff_t>(b) * kBlock * size;
        for (int lane = 0; lane < count; ++lane) {
            for (int d = 0; d < m.latent; ++d) *row++ = block.x[d * kBlock + lane];
            for (int k = 0; use_c && k < m.hidden; ++k) *row++ = block.c[k * kBlock + lane];
            for (int k = 0; use_h && k < m.hidden; ++k) *row++ = block.h[k * kBlock + lane];
        }
    };
    const int team = std::min(threads, static_cast<int>(blocks_.size()));
    check_not_forked(team);
    if (team == 1) {
        for (std::size_t b = 0; b < blocks_.size(); ++b) observe_block(b);
        return;
    }
#pragma omp parallel for num_threads(team) schedule(static)
    for (std::size_t b = 0; b < blocks_.size(); ++b) observe_block(b);
}

}  // namespace worldmodels
