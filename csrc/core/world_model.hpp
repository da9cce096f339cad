// M: the sizes and packed weights of an MDN-RNN, its initial states and its termination rule.
#pragma once

#include <cstdint>
#include <vector>

#include "core/packing.hpp"
#include "kernels/kernels.hpp"

namespace worldmodels {

struct WorldModelSizes {
    int latent, action, hidden, mixtures;
    bool restart, done, reward;
};

// Row-major weights as PyTorch stores them: gates in the order i, f, g, o; head rows [done] [reward], then
// per latent dimension K logits, K means, K log stds.
struct WorldModelWeights {
    const float* input;      // (4 hidden, inputs)
    const float* recurrent;  // (4 hidden, hidden)
    const float* bias;       // (4 hidden), both biases added
    const float* head;       // (head rows, hidden)
    const float* head_bias;  // (head rows)
};

// The initial states of episodes. A row whose h and c are zero is the first frame of an episode: its restart
// flag is set. Any other row is a burned-in state.
struct InitialStates {
    const float* mu;      // (rows, latent)
    const float* logvar;  // (rows, latent)
    const float* h;       // (rows, hidden), or null for zeros
    const float* c;       // likewise
    std::uint32_t rows;
};

// How the done logit terminates an episode. threshold: where it is above 0. sample: with M's probability,
// corrected for the positive-class weight of its training loss. expected: never sampled; rewards are weighted
// by the probability of surviving to their step.
struct Termination {
    enum class Mode { threshold, sample, expected };
    Mode mode = Mode::threshold;
    double log_pos_weight = 0.0;
};

class WorldModel {
  public:
    WorldModel(const WorldModelSizes& sizes, const WorldModelWeights& weights, Precision precision,
               const InitialStates& initial, const Termination& termination = {});

    Precision precision() const { return precision_; }
    const Termination& termination() const { return termination_; }
    const ModelView& view() const { return view_; }
    std::uint32_t initial_rows() const { return initial_rows_; }
    const float* initial_mu(std::uint32_t row) const { return initial_mu_.data() + row * latent(); }
    const float* initial_logvar(std::uint32_t row) const { return initial_logvar_.data() + row * latent(); }
    // h, then c (2, hidden); null for the first frame of an episode.
    const float* initial_state(std::uint32_t row) const {
        return burned_in_.empty() || !burned_in_[row] ? nullptr : initial_states_.data() + row * 2 * hidden();
    }

  private:
    std::size_t latent() const { return static_cast<std::size_t>(view_.latent); }
    std::size_t hidden() const { return static_cast<std::size_t>(view_.hidden); }

    Precision precision_;
    Termination termination_;
    ModelView view_;
    AlignedFloats lstm_, head_, moments_;
    std::vector<float> initial_mu_, initial_logvar_, initial_states_;
    std::vector<bool> burned_in_;
    std::uint32_t initial_rows_;
};

}  // namespace worldmodels
