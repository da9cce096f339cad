// Training of M: the losses of a batch of sequences and their gradient by backpropagation through time.
#pragma once

#include <optional>
#include <vector>

#include "core/aligned.hpp"
#include "core/parallel.hpp"
#include "core/world_model.hpp"

namespace worldmodels {

// A batch of B sequences of T steps. Flags are 0 or 1; null where M has no such input or head.
struct RNNBatch {
    int sequences, steps;
    const float* z;                  // (B, T + 1, latent): inputs, and targets one step later
    const float* actions;            // (B, T, action)
    const float* restart;            // (B, T): the state is zeroed before these steps
    const float* has_next;           // (B, T): 0 where the target is not the next latent
    const float* done;               // (B, T): termination targets
    const float* termination_known;  // (B, T): 0 where termination is unknown
    const float* reward;             // (B, T): reward targets
    const float* valid;              // (B, T): 0 where the reward does not count
    const float* h;                  // (B, hidden) state before the first step
    const float* c;
};

// Factors of the three sums of RNNLosses in the total whose gradient is computed.
struct RNNLossScales {
    double z, done, reward, done_pos_weight;
};

// Sums over the batch: negative log-likelihood of the next latents in nats, weighted cross-entropy of
// termination, squared error of the reward.
struct RNNLosses {
    double z = 0.0, done = 0.0, reward = 0.0;
};

struct RNNOutputs {
    float* h;  // (B, hidden) state after the last step
    float* c;
    float* done_logit;  // (B, T); null without a termination head
};

// The gradient of the scaled total, with the layouts of WorldModelWeights; input is null for losses alone.
struct RNNGradient {
    float* input = nullptr;
    float* recurrent = nullptr;
    float* bias = nullptr;
    float* head = nullptr;
    float* head_bias = nullptr;
};

// Computes losses and gradients. Keeps its memory for the next batch. One call at a time.
//
// Sequences are divided between the threads, which run through time without waiting for each other. The
// results do not depend on the number of threads.
class RNNTraining {
  public:
    explicit RNNTraining(const WorldModelSizes& sizes);

    const WorldModelSizes& sizes() const { return sizes_; }
    // Number of rows of the head.
    int head_rows() const { return flags_ + 3 * sizes_.latent * sizes_.mixtures; }

    // Empty when the call was interrupted. Throws std::bad_alloc, and std::runtime_error as check_not_forked.
    std::optional<RNNLosses> run_unchecked(const RNNKernels& kernels, const WorldModelWeights& weights,
                                           const RNNBatch& batch, const RNNLossScales& scales, int threads,
                                           const RNNOutputs& outputs, const RNNGradient& gradient,
                                           Poll poll = {});

  private:
    using Buffer = GrowingFloats;
    // The packed right operands: [h, x] to gates, h to head, head to h, gates to h.
    struct Packed {
        Buffer gates, head, head_back, recurrent_back;
    };
    struct Thread {
        Buffer left, dh, scratch, right;
        std::vector<const float*> in;
        std::vector<float*> out;
    };
    struct Call;

    int head_row(int column) const;  // of PyTorch's layout; -1 for padding
    void reserve(const Call& call, int threads, int count);
    void copy_weights(const Call& call, int part, int parts);
    void pack_weights(const Call& call, int part, int parts, Thread& thread);
    void load_state(const RNNBatch& batch);
    void copy_state(const RNNBatch& batch, const RNNOutputs& outputs) const;
    void forward(const Call& call, int part, int first, int count, Thread& thread, RNNLosses* losses);
    void losses_of(const Call& call, int sequence, int step, float* head, Thread& thread,
                   RNNLosses& sum) const;
    void heads(const Call& call, int from, int to, int first, int count, Thread& thread, RNNLosses* losses);
    void backward(const Call& call, int part, int first, int count, Thread& thread);
    void weight_gradients(const Call& call, int part, int parts, Thread& thread);
    void copy_gradient(const RNNGradient& gradient, int part, int parts) const;
    const float* c_before(const Call& call, int sequence, int step) const;

    WorldModelSizes sizes_;
    int flags_;          // rows of the head before the mixtures
    int units_;          // hidden, padded
    int inputs_;         // latent + action + restart flag
    int width_;          // latent, padded
    int head_columns_;   // mixtures as (3, K, width), then done and reward; padded
    int input_columns_;  // [h, x], padded
    Packed packed_;
    Buffer weights_, head_weights_;           // (4 units, units + inputs), (head columns, units)
    Buffer bias_, head_bias_;                 // in the order of the padded columns
    Buffer x_, gates_, c_, h_, dh_, head_;    // (T, B, columns), c_ and h_ (T + 1, B, units)
    Buffer zeros_;                            // (input columns)
    Buffer gates_sum_, head_sum_, bias_sum_;  // the weights' gradient, padded
    std::vector<Thread> threads_;
};

}  // namespace worldmodels
