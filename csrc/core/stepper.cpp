// M stepped as a batch of environments, a block at a time.
#include "core/stepper.hpp"

#include <algorithm>
#include <mutex>

#include "core/parallel.hpp"

namespace worldmodels {
namespace {

// Transposes rows (count, kBlock) to to[lane * stride], 16 rows of every lane at a time.
void to_lanes(const float* rows, int count, int lanes, std::ptrdiff_t stride, float* to) {
    constexpr int kLine = 16;
    for (int first = 0; first < count; first += kLine) {
        const int last = std::min(first + kLine, count);
        for (int lane = 0; lane < lanes; ++lane)
            for (int k = first; k < last; ++k) to[lane * stride + k] = rows[k * kBlock + lane];
    }
}

}  // namespace

Stepper::Stepper(const WorldModel& model, int envs) : model_(model), envs_(envs) {
    for (int first = 0; first < envs; first += kBlock) blocks_.emplace_back(model, nullptr);
    scratch_.emplace_back(model, nullptr);
}

int Stepper::lanes_of(int block) const {
    return std::min(kBlock, envs_ - block * kBlock);
}

void Stepper::reset_unchecked(const Kernels& kernels, const Streams& streams, const std::uint8_t* mask) {
    const std::lock_guard hold(lock_);
    for (int env = 0; env < envs_; ++env) {
        if (mask[env] == 0) continue;
        Lanes& lanes = blocks_[static_cast<std::size_t>(env / kBlock)];
        scratch_[0].lend(lanes.block());
        lanes.start(kernels, model_, streams.seeds[env], streams.candidates[env], streams.episodes[env],
                    nullptr, env % kBlock);
    }
}

void Stepper::step_unchecked(const Kernels& kernels, float temperature, const float* actions, int threads,
                             float* rewards, bool* dones, const Observations& to) {
    const Sampling sampling = make_sampling(0, temperature);  // the lanes have seeds of their own
    const ModelView& m = model_.view();
    const auto step_block = [&](int b, int thread) {
        Lanes& lanes = blocks_[static_cast<std::size_t>(b)];
        Scratch& scratch = scratch_[static_cast<std::size_t>(thread)];
        const int first = b * kBlock, count = lanes_of(b);
        for (int lane = 0; lane < count; ++lane)
            for (int a = 0; a < m.action; ++a)
                lanes.set_action(lane, a, actions[std::ptrdiff_t{first + lane} * m.action + a]);
        scratch.lend(lanes.block());
        step(kernels, model_, nullptr, sampling, lanes.block(), count);
        scratch.take_back(lanes.block());
        for (int lane = 0; lane < count; ++lane) {
            rewards[first + lane] = lanes.reward(lane);
            dones[first + lane] = lanes.done(lane, lanes.seed(lane));
            ++lanes.block().step[lane];
        }
        observe_lanes(first, count, to);
    };
    const int blocks = static_cast<int>(blocks_.size());
    threads = threads_for(blocks, threads);
    const std::lock_guard hold(lock_);
    while (scratch_.size() < static_cast<std::size_t>(threads)) scratch_.emplace_back(model_, nullptr);
    parallel_for_blocks(blocks, threads, step_block);
}

// Observes `lanes` environments of one block, from `first` on.
void Stepper::observe_lanes(int first, int lanes, const Observations& to) const {
    const ModelView& m = model_.view();
    const Block& block = blocks_[static_cast<std::size_t>(first / kBlock)].block();
    const std::ptrdiff_t size = m.latent + m.hidden * ((to.use_c ? 1 : 0) + (to.use_h ? 1 : 0));
    float* column = to.rows + first * size;
    const auto features = [&](const float* rows, int count) {
        to_lanes(rows + first % kBlock, count, lanes, size, column);
        column += count;
    };
    features(block.x, m.latent);
    if (to.use_c) features(block.c, m.hidden);
    if (to.use_h) features(block.h, m.hidden);
}

void Stepper::observe_unchecked(const std::uint8_t* mask, const Observations& to) {
    const std::lock_guard hold(lock_);
    int last = 0;
    for (int first = 0; first < envs_; first = last) {  // neighbours of a block at once
        last = first + 1;
        while (last % kBlock != 0 && last < envs_ && (mask[last] != 0) == (mask[first] != 0)) ++last;
        if (mask[first] != 0) observe_lanes(first, last - first, to);
    }
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
