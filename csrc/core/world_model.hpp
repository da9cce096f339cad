// M: the sizes and the packed weights of an MDN-RNN, and where its episodes start.
#pragma once

#include <cstdint>
#include <vector>

#include "core/words.hpp"
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

class WorldModel {
  public:
    WorldModel(const WorldModelSizes& sizes, const WorldModelWeights& weights, Precision precision,
               const float* initial_mu, const float* initial_logvar, std::uint32_t initial_rows);

    Precision precision() const { return precision_; }
    const ModelView& view() const { return view_; }
    std::uint32_t initial_rows() const { return initial_rows_; }
    const float* initial_mu(std::uint32_t row) const {
        return initial_mu_.data() + std::size_t{row} * latent();
    }
    const float* initial_logvar(std::uint32_t row) const {
        return initial_logvar_.data() + std::size_t{row} * latent();
    }

  private:
    std::size_t latent() const { return static_cast<std::size_t>(view_.latent); }

    Precision precision_;
    ModelView view_;
    AlignedFloats lstm_, head_, moments_;
    std::vector<float> initial_mu_, initial_logvar_;
    std::uint32_t initial_rows_;
};

}  // namespace worldmodels
