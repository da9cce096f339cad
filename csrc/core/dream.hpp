// Dreams: whole episodes of many controllers inside M, and M stepped as an environment.
#pragma once

#include <vector>

#include "core/lanes.hpp"
#include "core/lock.hpp"
#include "core/parallel.hpp"

namespace worldmodels {

// What one recorded episode writes: (max_steps + 1, latent), (max_steps, action), (max_steps), (max_steps).
struct Record {
    float* z;
    float* action;
    float* done_logit;  // null without a done head
    float* reward;
};

struct RolloutArgs {
    const float* params;  // (candidates, controller size)
    std::uint32_t candidates, episodes;
    std::uint32_t first_candidate, first_episode;
    std::uint64_t seed;
    bool common_random_numbers;  // every candidate sees the draws of candidate 0
    bool expected;  // no end is drawn: a reward counts as likely as the episode is to have come so far
    float temperature;
    int max_steps;
    int threads;
    Record* record;          // of the only episode, or null
    float* returns;          // (candidates, episodes)
    std::int32_t* lengths;   // (candidates, episodes)
    std::int64_t* computed;  // (1), or null: adds the steps computed, idle lanes included
};

// Plays candidates x episodes; false when the poll asked to stop. Throws std::bad_alloc, std::runtime_error
// (fork).
bool rollout_unchecked(const Kernels& kernels, const WorldModel& model, const ControllerView& controller,
                       const RolloutArgs& args, Poll poll);

// The streams that environments play from now on, (envs) each.
struct Streams {
    const std::uint64_t* seeds;
    const std::uint32_t* candidates;
    const std::uint32_t* episodes;
};

// Everything that a step of environments depends on, and changes.
struct StepperState {
    float* inputs;  // (envs, inputs): z, action, restart flag
    float* h;       // (envs, hidden)
    float* c;       // (envs, hidden)
    std::uint64_t* seeds;
    std::uint32_t *candidates, *episodes, *steps;  // (envs) each, as seeds
};

// Environments that step together. Safe from any number of threads: calls take turns.
class Stepper {
  public:
    Stepper(const WorldModel& model, int envs);

    // Starts an episode in every environment whose mask is set.
    void reset_unchecked(const Kernels& kernels, const Streams& streams, const bool* mask);
    // One step of every environment. actions (envs, action); rewards, dones (envs).
    void step_unchecked(const Kernels& kernels, float temperature, const float* actions, int threads,
                        float* rewards, bool* dones);
    // out (envs, features): [z, c, h], those wanted.
    void observe_unchecked(bool use_c, bool use_h, int threads, float* out);
    void get_state_unchecked(const StepperState& to);
    void set_state_unchecked(const StepperState& from);
    int envs() const { return envs_; }

  private:
    int lanes_of(int block) const;
    template <class Copy>
    void copy_state(const StepperState& state, Copy copy);

    const WorldModel& model_;
    int envs_;
    std::vector<Lanes> blocks_;
    Lock lock_;
};

}  // namespace worldmodels
