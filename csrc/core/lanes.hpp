// Lanes: a block's buffers and what moves episodes in and out of its columns.
#pragma once

#include "core/controller.hpp"
#include "core/world_model.hpp"

namespace worldmodels {

// The draws of one dream: its seed and temperature.
Sampling make_sampling(std::uint64_t seed, float temperature);

// Plays one step of the first `lanes` lanes in the model's precision; returns the lanes computed.
inline int step(const Kernels& kernels, const WorldModel& model, const ControllerView* controller,
                const Sampling& sampling, Block& block, int lanes) {
    const auto play = model.precision() == Precision::bfloat16 ? kernels.step_bfloat16 : kernels.step;
    return play(model.view(), controller, sampling, block, lanes);
}

class Lanes {
  public:
    // controller may be null: then the caller writes the actions, and every lane has a seed of its own.
    Lanes(const WorldModel& model, const ControllerView* controller);

    Block& block() { return block_; }
    const Block& block() const { return block_; }
    float action(int lane, int a) const { return block_.x[(view_.latent + a) * kBlock + lane]; }
    void set_action(int lane, int a, float value) { block_.x[(view_.latent + a) * kBlock + lane] = value; }
    float z(int lane, int d) const { return block_.x[d * kBlock + lane]; }
    float done_logit(int lane) const { return block_.head[lane]; }
    // That the episode ends with the step just played, where ends come by chance.
    double termination_probability(int lane) const;
    // Whether the episode ends with the step just played, whose number the block still holds.
    bool done(int lane, std::uint64_t seed) const;
    // The seed that a lane was started with, in lanes without a controller.
    std::uint64_t seed(int lane) const {
        return std::uint64_t{block_.keys[kBlock + lane]} << 32 | block_.keys[lane];
    }
    void set_seed(int lane, std::uint64_t seed);
    float reward(int lane) const {
        return view_.reward ? block_.head[(view_.done ? kBlock : 0) + lane] : 1.0F;
    }

    // Begins an episode in a lane; params is the controller's (size) row, or null.
    void start(const Kernels& kernels, const WorldModel& model, std::uint64_t seed, std::uint32_t candidate,
               std::uint32_t episode, const float* params, int lane);
    void move(int from, int to);

  private:
    ModelView view_;
    Termination termination_;
    std::size_t params_ = 0;
    AlignedFloats storage_;
    Aligned<std::int32_t> components_;
    Aligned<std::uint32_t> counters_;  // candidate, episode, step and, without a controller, keys
    Block block_{};
};

}  // namespace worldmodels
