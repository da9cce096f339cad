// The LSTM state (h, c) of environments, advanced by given latents and actions. The MDN head is not
// evaluated.
#pragma once

#include <vector>

#include "core/lanes.hpp"
#include "core/lock.hpp"

namespace worldmodels {

// A batch of states and their inputs. Every row's bits depend on that row alone.
struct LstmRows {
    int count;
    const float* z;               // (count, latent)
    const float* actions;         // (count, action)
    const std::uint8_t* restart;  // (count): 0 or any other byte
    float* h;                     // (count, hidden), advanced in place
    float* c;                     // (count, hidden), advanced in place
};

// Advances batches of LSTM states in float32. Safe from any number of threads.
class LstmState {
  public:
    explicit LstmState(const WorldModel& model) : model_(model) {}

    // Throws std::bad_alloc, and std::runtime_error as check_not_forked.
    void advance_unchecked(const Kernels& kernels, const LstmRows& rows, int threads) const;

  private:
    struct Worker {
        explicit Worker(const WorldModel& model) : scratch(model, nullptr), lanes(model, nullptr) {
            scratch.lend(lanes.block());
        }
        Scratch scratch;
        Lanes lanes;
    };

    const WorldModel& model_;
    mutable Pool<std::vector<Worker>> workers_;  // one per thread of a call
};

}  // namespace worldmodels
