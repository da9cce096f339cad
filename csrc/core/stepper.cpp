// M stepped as a batch of environments, a block at a time.
#include "core/stepper.hpp"

#include <algorithm>
#include <mutex>

#include "core/parallel.hpp"

namespace worldmodels {

Stepper::Stepper(const WorldModel& model, int envs) : model_(model), envs_(envs) {
    for (int first = 0; first < envs; first += kBlock) blocks_.emplace_back(model, nullptr);
}

int Stepper::lanes_of(int block) const {
    return std::min(kBlock, envs_ - block * kBlock);
}

void Stepper::reset_unchecked(const Kernels& kernels, const Streams& streams, const bool* mask) {
    const std::lock_guard hold(lock_);
    for (int env = 0; env < envs_; ++env)
        if (mask[env])
            blocks_[static_cast<std::size_t>(env / kBlock)].start(
                kernels, model_, streams.seeds[env], streams.candidates[env], streams.episodes[env], nullptr,
                env % kBlock);
}

void Stepper::step_unchecked(const Kernels& kernels, float temperature, const float* actions, int threads,
                             float* rewards, bool* dones) {
    const Sampling sampling = make_sampling(0, temperature);  // the lanes have seeds of their own
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
            dones[first + lane] = lanes.done(lane, lanes.seed(lane));
            ++lanes.block().step[lane];
        }
    };
    const int blocks = static_cast<int>(blocks_.size());
    threads = threads_for(blocks, threads);
    const std::lock_guard hold(lock_);
    parallel_for_blocks(blocks, threads, step_block);
}

void Stepper::observe_unchecked(bool use_c, bool use_h, int threads, float* out) {
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
    threads = threads_for(blocks, threads);
    const std::lock_guard hold(lock_);
    parallel_for_blocks(blocks, threads, observe_block);
}

// Calls copy(lane, state) for every pair of numbers but the seeds.
template <class Copy>
void Stepper::copy_state(const StepperState& state, Copy copy) {
    const ModelView& m = model_.view();
    for (int env = 0; env < envs_; ++env) {
        Block& block = blocks_[static_cast<std::size_t>(env / kBlock)].block();
        const int lane = env % kBlock;
        const auto columns = [&](float* rows, int size, float* to) {
            for (int k = 0; k < size; ++k) copy(rows[k * kBlock + lane], to[std::ptrdiff_t{env} * size + k]);
        };
        columns(block.x, m.inputs(), state.inputs);
        columns(block.h, m.hidden, state.h);
        columns(block.c, m.hidden, state.c);
        copy(block.candidate[lane], state.candidates[env]);
        copy(block.episode[lane], state.episodes[env]);
        copy(block.step[lane], state.steps[env]);
    }
}

void Stepper::get_state_unchecked(const StepperState& to) {
    const std::lock_guard hold(lock_);
    copy_state(to, [](const auto& lane, auto& state) { state = lane; });
    for (int env = 0; env < envs_; ++env)
        to.seeds[env] = blocks_[static_cast<std::size_t>(env / kBlock)].seed(env % kBlock);
}

void Stepper::set_state_unchecked(const StepperState& from) {
    const std::lock_guard hold(lock_);
    copy_state(from, [](auto& lane, const auto& state) { lane = state; });
    for (int env = 0; env < envs_; ++env)
        blocks_[static_cast<std::size_t>(env / kBlock)].set_seed(env % kBlock, from.seeds[env]);
}

}  // namespace worldmodels
