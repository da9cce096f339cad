// CMA-ES on controllers in the dream, a few steps at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "core/cmaes.hpp"
#include "core/lanes.hpp"

namespace worldmodels {

struct EvolutionSettings {
    ControllerView controller;  // its choices outlive the search
    Termination termination;
    int popsize, episodes, max_steps;
    double sigma0;
    float temperature;
    std::uint64_t seed;
};

// CMA-ES with a diagonal covariance matrix, whose mean starts at zero. Generation g (from 1) evaluates each
// candidate on `episodes` episodes of seed + g, with common random numbers.
class Evolution {
  public:
    Evolution(const Kernels& kernels, const WorldModel& model, const EvolutionSettings& settings);

    // Plays up to this many steps of a block of lanes. Returns whether they completed the generation.
    bool advance(int steps);

    std::int64_t generation() const { return cmaes_.state().generation; }
    double sigma() const { return cmaes_.state().sigma; }
    const std::vector<double>& mean() const { return cmaes_.state().mean; }
    // Of the last completed generation: its steps, the candidates' mean returns and the best parameters.
    std::int64_t steps() const { return steps_; }
    const std::vector<double>& returns() const { return returns_; }
    const std::vector<float>& best() const { return best_; }

  private:
    struct Running {
        std::int64_t job;  // candidate * episodes + episode
        double total, survival;
        int length;
    };

    void begin();
    void enter(int lane);
    void step();
    void tell();

    const Kernels& kernels_;
    const WorldModel& model_;
    EvolutionSettings settings_;
    Cmaes cmaes_;
    Scratch scratch_;
    Lanes lanes_;
    std::vector<float> params_;  // (popsize, size) of the current generation
    std::vector<float> totals_;  // (popsize, episodes) returns
    std::vector<double> returns_;
    std::vector<float> best_;
    std::vector<Running> running_;  // episodes of the first lanes
    std::int64_t next_ = 0;         // job that starts next
    std::int64_t played_ = 0, steps_ = 0;
};

}  // namespace worldmodels
