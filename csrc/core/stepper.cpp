// M stepped as a batch of environments.
#include <algorithm>

#include "core/dream.hpp"

namespace worldmodels {

Stepper::Stepper(const WorldModel& model, int envs) : model_(model), envs_(envs) {
    for (int first = 0; first < envs; first += kBlock) blocks_.emplace_back(model, nullptr);
}

int Stepper::lanes_of(int block) const {
    return std::min(kBlock, envs_ - block * kBlock);
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
    const auto step_block = [&](int b, int) {
        Lanes& lanes = blocks_[static_cast<std::size_t>(b)];
        const int first = b * kBlock, count = lanes_of(b);
        for (int lane = 0; lane < count; ++lane)
            for (int a = 0; a < m.action; ++a)
                lanes.set_action(lane, a, actions[std::ptrdiff_t{first + lane} * m.action + a]);
        step(kernels, model_, nullptr, sampling, lanes.block(), count);
        for (int lane = 0; lane < count; ++lane) {
            rewards[first + lane] = lanes.reward(lane);
            dones[first + lane] = lanes.done(lane, seed);
            ++lanes.block().step[lane];
        }
    };
    const int blocks = static_cast<int>(blocks_.size());
    share_blocks(blocks, team_for(blocks, threads), step_block);
}

void Stepper::observe_unchecked(bool use_c, bool use_h, int threads, float* out) const {
    const ModelView& m = model_.view();
    const std::ptrdiff_t size = m.latent + m.hidden * ((use_c ? 1 : 0) + (use_h ? 1 : 0));
    const auto observe_block = [&](int b, int) {
        const Block& block = blocks_[static_cast<std::size_t>(b)].block();
        const int count = lanes_of(b);
        float* row = out + std::ptrdiff_t{b} * kBlock * size;
        for (int lane = 0; lane < count; ++lane) {
            for (int d = 0; d < m.latent; ++d) *row++ = block.x[d * kBlock + lane];
            for (int k = 0; use_c && k < m.hidden; ++k) *row++ = block.c[k * kBlock + lane];
            for (int k = 0; use_h && k < m.hidden; ++k) *row++ = block.h[k * kBlock + lane];
        }
    };
    const int blocks = static_cast<int>(blocks_.size());
    share_blocks(blocks, team_for(blocks, threads), observe_block);
}

}  // namespace worldmodels
