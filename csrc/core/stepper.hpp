// M stepped as a batch of environments.
#pragma once

#include <vector>

#include "core/lanes.hpp"
#include "core/lock.hpp"

namespace worldmodels {

// The random streams of the episodes to start, (envs) each.
struct Streams {
    const std::uint64_t* seeds;
    const std::uint32_t* candidates;
    const std::uint32_t* episodes;
};

// The complete state of the environments.
struct StepperState {
    float* inputs;  // (envs, inputs): z, action, restart flag
    float* h;       // (envs, hidden)
    float* c;       // (envs, hidden)
    std::uint64_t* seeds;
    std::uint32_t *candidates, *episodes, *steps;  // (envs) each, as seeds
};

// M stepped as a batch of environments. Safe from any number of threads: calls are serialised by a lock.
class Stepper {
  public:
    Stepper(const WorldModel& model, int envs);

    // Starts an episode in every masked environment.
    void reset_unchecked(const Kernels& kernels, const Streams& streams, const bool* mask);
    // One step of every environment. actions (envs, action); rewards, dones (envs).
    void step_unchecked(const Kernels& kernels, float temperature, const float* actions, int threads,
                        float* rewards, bool* dones);
    // out (envs, features): z, then c if use_c, then h if use_h.
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
