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

// Where to write the features of the environments: rows (envs, features) of z, then c if use_c, then h if
// use_h.
struct Observations {
    bool use_c, use_h;
    float* rows;
};

// The complete state of the environments.
struct StepperState {
    float* inputs;  // (envs, inputs): z, action, restart flag
    float* h;       // (envs, hidden)
    float* c;       // (envs, hidden)
    std::uint64_t* seeds;
    std::uint32_t *candidates, *episodes, *steps;  // (envs) each, as seeds
};

// M stepped as a batch of environments. Safe from any number of threads: calls are serialized by a lock.
// Masks (envs) hold 0 or any other byte.
class Stepper {
  public:
    Stepper(const WorldModel& model, int envs);

    // Starts an episode in every masked environment.
    void reset_unchecked(const Kernels& kernels, const Streams& streams, const std::uint8_t* mask);
    // One step of every environment. actions (envs, action); rewards, dones (envs).
    void step_unchecked(const Kernels& kernels, float temperature, const float* actions, int threads,
                        float* rewards, bool* dones, const Observations& to);
    // Observes the masked environments. The rows of all others keep their values.
    void observe_unchecked(const std::uint8_t* mask, const Observations& to);
    void get_state_unchecked(const StepperState& to);
    void set_state_unchecked(const StepperState& from);
    int envs() const { return envs_; }

  private:
    int lanes_of(int block) const;
    void observe_lanes(int first, int lanes, const Observations& to) const;
    template <class Copy>
    void copy_state(const StepperState& state, Copy copy);

    const WorldModel& model_;
    int envs_;
    std::vector<Lanes> blocks_;
    std::vector<Scratch> scratch_;  // one per thread
    Lock lock_;
};

}  // namespace worldmodels
