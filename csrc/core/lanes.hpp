// The lanes of a block: their buffers, and episodes that start, move and terminate in its columns.
#pragma once

#include "core/controller.hpp"
#include "core/world_model.hpp"

namespace worldmodels {

// The constants of sampling for a seed and a temperature.
Sampling make_sampling(std::uint64_t seed, float temperature);

// One step of the first `lanes` lanes in the model's precision. Returns the number of lanes computed.
inline int step(const Kernels& kernels, const WorldModel& model, const ControllerView* controller,
                const Sampling& sampling, Block& block, int lanes) {
    const auto play = model.precision() == Precision::bfloat16 ? kernels.step_bfloat16 : kernels.step;
    return play(model.view(), controller, sampling, block, lanes);
}

// The buffers of a step that hold nothing between two steps. One serves any number of blocks, one at a time.
class Scratch {
  public:
    Scratch(const WorldModel& model, const ControllerView* controller);

    // Lends all buffers to a block.
    void lend(Block& block) const;
    // Takes them back after a step, which has swapped h and h_next.
    void take_back(const Block& block) { buffers_.h_next = block.h_next; }

  private:
    AlignedFloats storage_;
    Aligned<std::int32_t> components_;
    Block buffers_{};
};

// Floats of a lane's state between two steps: its inputs, h and c.
inline std::size_t lane_state_size(const ModelView& m) {
    return static_cast<std::size_t>(m.inputs()) + 2 * static_cast<std::size_t>(m.hidden);
}

class Lanes {
  public:
    // Without a controller (null) the caller sets the actions, and every lane has a seed of its own. Starts
    // and steps need a Scratch, which outlives the lanes.
    Lanes(const WorldModel& model, const ControllerView* controller)
        : Lanes(model, controller, model.termination()) {}
    Lanes(const WorldModel& model, const ControllerView* controller, const Termination& termination);

    Block& block() { return block_; }
    const Block& block() const { return block_; }
    float action(int lane, int a) const { return block_.x[(view_.latent + a) * kBlock + lane]; }
    void set_action(int lane, int a, float value) { block_.x[(view_.latent + a) * kBlock + lane] = value; }
    float z(int lane, int d) const { return block_.x[d * kBlock + lane]; }
    float done_logit(int lane) const { return block_.head[lane]; }
    // M's probability that the episode terminates with the last step, corrected for the positive-class
    // weight.
    double termination_probability(int lane) const;
    // Whether the episode terminates with the last step, by threshold or sampled; NaN terminates. Called
    // before the lane's step counter advances.
    bool done(int lane, std::uint64_t seed) const;
    // Adds the last step of a lane to its episode's sums and advances its step counter. Returns whether the
    // episode terminates; where termination is expected, whether its survival probability is below 1 %.
    bool finish_step(int lane, std::uint64_t seed, double& total, double& survival, int& length);
    // The seed of a lane's episode, for lanes without a controller.
    std::uint64_t seed(int lane) const {
        return std::uint64_t{block_.keys[kBlock + lane]} << 32 | block_.keys[lane];
    }
    void set_seed(int lane, std::uint64_t seed);
    float reward(int lane) const {
        return view_.reward ? block_.head[(view_.done ? kBlock : 0) + lane] : 1.0F;
    }

    // Starts an episode in a lane; params is the controller's (size) row, or null.
    void start(const Kernels& kernels, const WorldModel& model, std::uint64_t seed, std::uint32_t candidate,
               std::uint32_t episode, const float* params, int lane);
    void move(int from, int to);
    // Copies the state of a lane to (lane_state_size), and back to a lane whose next step has this number.
    void save(int lane, float* to) const;
    void restore(const float* from, std::uint32_t candidate, std::uint32_t episode, std::uint32_t step,
                 const float* params, int lane);

  private:
    void set_stream(std::uint32_t candidate, std::uint32_t episode, std::uint32_t step, const float* params,
                    int lane);

    ModelView view_;
    Termination termination_;
    std::size_t params_ = 0;
    AlignedFloats storage_;
    Aligned<std::uint32_t> counters_;  // candidate, episode, step and, without a controller, keys
    Block block_{};
};

}  // namespace worldmodels
