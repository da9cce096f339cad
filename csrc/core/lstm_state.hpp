// M's memory in the real world: the LSTM alone, on latents and actions that come from outside.
#pragma once

#include <vector>

#include "core/lanes.hpp"
#include "core/lock.hpp"

namespace worldmodels {

// What moves on, row by row. Every row's bits depend on that row alone.
struct LstmRows {
    int count;
    const float* z;        // (count, latent)
    const float* actions;  // (count, action)
    const bool* restart;   // (count)
    float* h;              // (count, hidden): before, and then after
    float* c;              // (count, hidden): likewise
};

// Moves memories on, in float32. Safe from any number of threads.
class LstmState {
  public:
    explicit LstmState(const WorldModel& model) : model_(model) {}

    // Throws std::bad_alloc, std::runtime_error (fork).
    void advance_unchecked(const Kernels& kernels, const LstmRows& rows, int threads) const;

  private:
    const WorldModel& model_;
    mutable Pool<std::vector<Lanes>> scratch_;  // of a call: a block for every thread of its team
};

}  // namespace worldmodels
