// M: the sizes and the packed weights of an MDN-RNN, and where its episodes start.
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

// Where episodes start. A row whose h and c are zero is an episode's first frame: its restart flag is set.
struct InitialStates {
    const float* mu;      // (rows, latent)
    const float* logvar;  // (rows, latent)
    const float* h;       // (rows, hidden), or null for zeros
    const float* c;       // likewise
    std::uint32_t rows;
};

// When episodes end: where the done logit is above 0, or by chance, with the probability that M gives to it
// once the weight that ends had in its training is taken back.
struct Termination {
    bool by_chance;
    double log_weight;
};

class WorldModel {
  public:
    WorldModel(const WorldModelSizes& sizes, const WorldModelWeights& weights, Precision precision,
               const InitialStates& starts, const Termination& termination = {});

    Precision precision() const { return precision_; }
    const Termination& termination() const { return termination_; }
    const ModelView& view() const { return view_; }
    std::uint32_t initial_rows() const { return initial_rows_; }
    const float* initial_mu(std::uint32_t row) const { return initial_mu_.data() + row * latent(); }
    const float* initial_logvar(std::uint32_t row) const { return initial_logvar_.data() + row * latent(); }
    // h, then c (2, hidden); null at an episode's first frame.
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
