// Training of M: forward and backward through time in blocks of sequences, then the weights' gradient.
#include "core/rnn_training.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace worldmodels {
namespace {

constexpr int kPanelColumns = 32;  // columns: whole panels on every target
constexpr int kHeadRows = 96;      // rows of the head's products, from several steps
constexpr int kGradientRows = 96;  // columns of the gates or the head per packed left operand
constexpr int kGradientDepth = 512;

// The first and the next after the last of one of `parts` nearly equal parts.
std::pair<int, int> part_of(int count, int part, int parts) {
    return {static_cast<int>(std::int64_t{count} * part / parts),
            static_cast<int>(std::int64_t{count} * (part + 1) / parts)};
}

constexpr int padded(int count) {
    return (count + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
}

// Cross-entropy of a logit and its derivative.
double cross_entropy(double logit, double target, double& slope) {
    slope = 1.0 / (1.0 + std::exp(-logit)) - target;
    return std::max(logit, 0.0) - logit * target + std::log1p(std::exp(-std::abs(logit)));
}

}  // namespace

struct RNNTraining::Call {
    const RNNKernels& kernels;
    const WorldModelWeights& weights;
    const RNNBatch& batch;
    const RNNLossScales& scales;
    const RNNOutputs& outputs;
    const RNNGradient& gradient;
    InterruptiblePool& pool;

    bool restarts(int row, int step) const {
        return batch.restart != nullptr && batch.restart[product(row, batch.steps) + step] != 0.0F;
    }
    // Floats of a packed operand.
    std::size_t words(int depth) const {
        return static_cast<std::size_t>((depth + kernels.pack - 1) / kernels.pack);
    }
};

RNNTraining::RNNTraining(const WorldModelSizes& sizes)
    : sizes_(sizes),
      flags_((sizes.done ? 1 : 0) + (sizes.reward ? 1 : 0)),
      units_(padded(sizes.hidden)),
      inputs_(sizes.latent + sizes.action + (sizes.restart ? 1 : 0)),
      width_((sizes.latent + 15) / 16 * 16),
      head_columns_(padded(3 * sizes.mixtures * width_ + flags_)),
      input_columns_(units_ + padded(inputs_)) {}

int RNNTraining::head_row(int column) const {
    const int mixtures = 3 * sizes_.mixtures * width_;
    if (column >= mixtures) return column - mixtures < flags_ ? column - mixtures : -1;
    const int d = column % width_, part = column / width_ / sizes_.mixtures;
    const int k = column / width_ % sizes_.mixtures;
    return d < sizes_.latent ? flags_ + (3 * d + part) * sizes_.mixtures + k : -1;
}

const float* RNNTraining::c_before(const Call& call, int sequence, int step) const {
    if (call.restarts(sequence, step)) return zeros_.data.get();
    return c_.data.get() + (product(step, call.batch.sequences) + static_cast<std::size_t>(sequence)) *
                               static_cast<std::size_t>(units_);
}

// One of `parts` parts of the weights and biases, padded. The padding is zero from the start and stays so.
void RNNTraining::copy_weights(const Call& call, int part, int parts) {
    const int hidden = sizes_.hidden;
    const auto [first, next] = part_of(hidden, part, parts);
    for (int gate = 0; gate < 4; ++gate)
        for (int u = first; u < next; ++u) {
            const int column = gate * units_ + u, row = gate * hidden + u;
            bias_.data[static_cast<std::size_t>(column)] = call.weights.bias[row];
            float* const to = weights_.data.get() + product(column, units_ + inputs_);
            std::copy_n(call.weights.recurrent + product(row, hidden), hidden, to);
            std::copy_n(call.weights.input + product(row, inputs_), inputs_, to + units_);
        }
    const auto [begin, end] = part_of(head_columns_, part, parts);
    for (int column = begin; column < end; ++column) {
        const int row = head_row(column);
        if (row < 0) continue;
        head_bias_.data[static_cast<std::size_t>(column)] = call.weights.head_bias[row];
        std::copy_n(call.weights.head + product(row, hidden), hidden,
                    head_weights_.data.get() + product(column, units_));
    }
}

// One of `parts` parts of the packed weights: transposed for the forward products, as they are for the
// backward.
void RNNTraining::pack_weights(const Call& call, int part, int parts, Thread& thread) {
    const auto pack = [&](const float* weights, int rows, int columns, Buffer& forward, Buffer& backward) {
        const auto rows_of = [&](int first, int count, int at) {
            for (int r = 0; r < count; ++r)
                thread.in[static_cast<std::size_t>(r)] = weights + product(first + r, columns) + at;
            return thread.in.data();
        };
        const auto panels = [&](int count, std::size_t words, float* to, const auto& pack_panel) {
            const auto [first, next] = part_of(count / kPanelColumns, part, parts);
            for (int at = first * kPanelColumns; at < next * kPanelColumns; at += kPanelColumns)
                pack_panel(at, to + static_cast<std::size_t>(at) * words);
        };
        panels(rows, call.words(columns), forward.data.get(), [&](int at, float* to) {
            call.kernels.pack_right_columns(rows_of(at, kPanelColumns, 0), columns, kPanelColumns, to);
        });
        if (call.gradient.input == nullptr) return;
        panels(units_, call.words(rows), backward.data.get(), [&](int at, float* to) {
            call.kernels.pack_right(rows_of(0, rows, at), rows, kPanelColumns, to);
        });
    };
    pack(weights_.data.get(), 4 * units_, units_ + inputs_, packed_.gates, packed_.recurrent_back);
    pack(head_weights_.data.get(), head_columns_, units_, packed_.head, packed_.head_back);
}

// The losses of one step of a sequence. head (head columns): in, logits and predictions; out, their gradient.
void RNNTraining::losses_of(const Call& call, int sequence, int step, float* head, Thread& thread,
                            RNNLosses& sum) const {
    const RNNBatch& b = call.batch;
    const int mixtures = 3 * sizes_.mixtures * width_;
    const std::size_t at = product(sequence, b.steps) + static_cast<std::size_t>(step);
    float* flag = head + mixtures;
    if (sizes_.done) {
        const double logit = static_cast<double>(*flag), target = static_cast<double>(b.done[at]);
        const double weight = static_cast<double>(b.termination_known[at]) *
                              (1.0 + (call.scales.done_pos_weight - 1.0) * target);
        double slope;
        sum.done += weight * cross_entropy(logit, target, slope);
        call.outputs.done_logit[at] = *flag;
        *flag++ = static_cast<float>(call.scales.done * weight * slope);
    }
    if (sizes_.reward) {
        const double error = static_cast<double>(*flag) - static_cast<double>(b.reward[at]);
        const double valid = static_cast<double>(b.valid[at]);
        sum.reward += valid * error * error;
        *flag = static_cast<float>(2.0 * call.scales.reward * valid * error);
    }
    if (b.has_next[at] != 0.0F)
        sum.z += call.kernels.mdn_loss(
            sizes_.latent, width_, sizes_.mixtures, static_cast<float>(call.scales.z),
            b.z + (product(sequence, b.steps + 1) + static_cast<std::size_t>(step) + 1) *
                      static_cast<std::size_t>(sizes_.latent),
            head, thread.scratch.data.get());
    else
        std::fill_n(head, mixtures, 0.0F);
}

// Steps `from` to `to` of the sequences: logits, losses, and the gradients of head and h.
void RNNTraining::heads(const Call& call, int from, int to, int first, int count, Thread& thread,
                        RNNLosses* losses) {
    const RNNBatch& b = call.batch;
    const int rows = (to - from) * count;
    const auto row_of = [&](int i) {
        return product(from + i / count, b.sequences) + static_cast<std::size_t>(first + i % count);
    };
    for (int i = 0; i < rows; ++i) {
        const std::size_t row = row_of(i);
        const auto at = static_cast<std::size_t>(i);
        thread.in[at] =
            h_.data.get() + (row + static_cast<std::size_t>(b.sequences)) * static_cast<std::size_t>(units_);
        thread.out[at] = head_.data.get() + row * static_cast<std::size_t>(head_columns_);
    }
    float* const left = thread.left.data.get();
    call.kernels.pack_left(thread.in.data(), rows, units_, left);
    call.kernels.matmul(left, packed_.head.data.get(), rows, head_columns_, units_, head_bias_.data.get(),
                        thread.out.data());
    for (int i = 0; i < rows; ++i) {
        const int sequence = first + i % count;
        losses_of(call, sequence, from + i / count, thread.out[static_cast<std::size_t>(i)], thread,
                  losses[sequence]);
    }
    if (call.gradient.input == nullptr) return;
    for (int i = 0; i < rows; ++i) {
        const auto at = static_cast<std::size_t>(i);
        thread.in[at] = thread.out[at];
        thread.out[at] = dh_.data.get() + row_of(i) * static_cast<std::size_t>(units_);
    }
    call.kernels.pack_left(thread.in.data(), rows, head_columns_, left);
    call.kernels.matmul(left, packed_.head_back.data.get(), rows, units_, head_columns_, zeros_.data.get(),
                        thread.out.data());
}

void RNNTraining::forward(const Call& call, int part, int first, int count, Thread& thread,
                          RNNLosses* losses) {
    const RNNBatch& b = call.batch;
    const auto units = static_cast<std::size_t>(units_);
    const int window = std::max(1, kHeadRows / count), depth = units_ + inputs_;
    int from = 0;
    for (int step = 0; step < b.steps && !call.pool.stopped(); ++step, call.pool.tick(part)) {
        for (int i = 0; i < count; ++i) {
            const int sequence = first + i;
            const std::size_t row = product(step, b.sequences) + static_cast<std::size_t>(sequence);
            const std::size_t at = product(sequence, b.steps) + static_cast<std::size_t>(step);
            const bool restart = call.restarts(sequence, step);
            float* x = x_.data.get() + row * static_cast<std::size_t>(input_columns_);
            std::copy_n(restart ? zeros_.data.get() : h_.data.get() + row * units, units, x);
            x = std::copy_n(
                b.z + (at + static_cast<std::size_t>(sequence)) * static_cast<std::size_t>(sizes_.latent),
                sizes_.latent, x + units);
            x = std::copy_n(b.actions + at * static_cast<std::size_t>(sizes_.action), sizes_.action, x);
            if (sizes_.restart) *x = restart ? 1.0F : 0.0F;
            thread.in[static_cast<std::size_t>(i)] =
                x_.data.get() + row * static_cast<std::size_t>(input_columns_);
            thread.out[static_cast<std::size_t>(i)] = gates_.data.get() + row * 4 * units;
        }
        float* const left = thread.left.data.get();
        call.kernels.pack_left(thread.in.data(), count, depth, left);
        call.kernels.matmul(left, packed_.gates.data.get(), count, 4 * units_, depth, bias_.data.get(),
                            thread.out.data());
        for (int i = 0; i < count; ++i) {
            const std::size_t row =
                (product(step, b.sequences) + static_cast<std::size_t>(first + i)) * units;
            const std::size_t next = row + product(b.sequences, units_);
            call.kernels.lstm_forward(units_, thread.out[static_cast<std::size_t>(i)],
                                      c_before(call, first + i, step), c_.data.get() + next,
                                      h_.data.get() + next);
        }
        if (step + 1 - from == window || step + 1 == b.steps) {
            heads(call, from, step + 1, first, count, thread, losses);
            from = step + 1;
        }
    }
}

void RNNTraining::backward(const Call& call, int part, int first, int count, Thread& thread) {
    const RNNBatch& b = call.batch;
    const auto units = static_cast<std::size_t>(units_);
    float* const carried =
        thread.dh.data.get();  // gradient of h and c from the next step, (count, units) each
    float* const dc = carried + product(count, units_);
    std::fill_n(carried, 2 * product(count, units_), 0.0F);
    for (int step = b.steps; step-- > 0 && !call.pool.stopped(); call.pool.tick(part)) {
        for (int i = 0; i < count; ++i) {
            const std::size_t row = product(step, b.sequences) + static_cast<std::size_t>(first + i);
            float* const dh = dh_.data.get() + row * units;
            float* const from_next = carried + product(i, units_);
            for (std::size_t u = 0; u < units; ++u) dh[u] += from_next[u];
            float* const gates = gates_.data.get() + row * 4 * units;
            call.kernels.lstm_backward(units_, gates, c_before(call, first + i, step),
                                       c_.data.get() + (row + static_cast<std::size_t>(b.sequences)) * units,
                                       dh, dc + product(i, units_));
            thread.in[static_cast<std::size_t>(i)] = gates;
            thread.out[static_cast<std::size_t>(i)] = from_next;
        }
        if (step == 0) break;
        float* const left = thread.left.data.get();
        call.kernels.pack_left(thread.in.data(), count, 4 * units_, left);
        call.kernels.matmul(left, packed_.recurrent_back.data.get(), count, units_, 4 * units_,
                            zeros_.data.get(), thread.out.data());
        for (int i = 0; i < count; ++i)
            if (call.restarts(first + i, step)) {
                std::fill_n(carried + product(i, units_), units, 0.0F);
                std::fill_n(dc + product(i, units_), units, 0.0F);
            }
    }
}

// One of `parts` parts of the rows of both matrices' gradient: sums over all steps and sequences, in order.
void RNNTraining::weight_gradients(const Call& call, int part, int parts, Thread& thread) {
    const auto units = static_cast<std::size_t>(units_);
    const int lines = call.batch.steps * call.batch.sequences;
    const float* const h = h_.data.get() + product(call.batch.sequences, units_);
    struct Matrix {
        const float* left;  // (lines, rows)
        int rows;
        const float* right;  // (lines, columns)
        int columns, stride;
        float* sum;       // (rows, stride)
        float* bias_sum;  // (rows)
    };
    const Matrix matrices[] = {{gates_.data.get(), 4 * units_, x_.data.get(), units_ + inputs_,
                                input_columns_, gates_sum_.data.get(), bias_sum_.data.get()},
                               {head_.data.get(), head_columns_, h, units_, units_, head_sum_.data.get(),
                                bias_sum_.data.get() + 4 * units}};
    for (const Matrix& m : matrices) {
        const auto [begin, end] = part_of(m.rows, part, parts);
        std::fill(m.bias_sum + begin, m.bias_sum + end, 0.0F);
        for (int line = 0; line < lines && !call.pool.stopped();
             line += kGradientDepth, call.pool.tick(part)) {
            const int depth = std::min(kGradientDepth, lines - line);
            for (int k = 0; k < depth; ++k)
                thread.in[static_cast<std::size_t>(k)] = m.right + product(line + k, m.stride);
            call.kernels.pack_right(thread.in.data(), depth, m.columns, thread.right.data.get());
            for (int k = 0; k < depth; ++k)
                thread.in[static_cast<std::size_t>(k)] = m.left + product(line + k, m.rows);
            for (int first = begin; first < end; first += kGradientRows) {
                const int rows = std::min(kGradientRows, end - first);
                for (int r = 0; r < rows; ++r)
                    thread.out[static_cast<std::size_t>(r)] = m.sum + product(first + r, m.stride);
                call.kernels.add_rows(thread.in.data(), depth, first, rows, m.bias_sum + first);
                call.kernels.pack_left_columns(thread.in.data(), first, rows, depth, thread.left.data.get());
                call.kernels.matmul_columns(thread.left.data.get(), thread.right.data.get(), rows, m.columns,
                                            depth, line > 0 ? nullptr : zeros_.data.get(), thread.out.data());
            }
        }
    }
}

// Copies one of `parts` parts of the sums to PyTorch's layout.
void RNNTraining::copy_gradient(const RNNGradient& gradient, int part, int parts) const {
    const int hidden = sizes_.hidden;
    const auto [first, next] = part_of(4 * hidden, part, parts);
    for (int row = first; row < next; ++row) {
        const int padded_row = row / hidden * units_ + row % hidden;
        const float* const sum = gates_sum_.data.get() + product(padded_row, input_columns_);
        std::copy_n(sum, hidden, gradient.recurrent + product(row, hidden));
        std::copy_n(sum + units_, inputs_, gradient.input + product(row, inputs_));
        gradient.bias[row] = bias_sum_.data[static_cast<std::size_t>(padded_row)];
    }
    const auto [begin, end] = part_of(head_columns_, part, parts);
    for (int column = begin; column < end; ++column) {
        const int row = head_row(column);
        if (row < 0) continue;
        std::copy_n(head_sum_.data.get() + product(column, units_), hidden,
                    gradient.head + product(row, hidden));
        gradient.head_bias[row] = bias_sum_.data[static_cast<std::size_t>(4 * units_ + column)];
    }
}

// Memory for a call on `threads` threads with at most `count` sequences each.
void RNNTraining::reserve(const Call& call, int threads, int count) {
    const auto sequences = static_cast<std::size_t>(call.batch.sequences);
    const auto units = static_cast<std::size_t>(units_);
    const std::size_t rows = product(call.batch.steps, call.batch.sequences);
    const std::size_t gates_depth = call.words(units_ + inputs_), units_depth = call.words(units_);
    const std::size_t back_depth = call.words(4 * units_), head_depth = call.words(head_columns_);
    const std::size_t blocks = std::max({gates_depth, back_depth, head_depth, call.words(kGradientDepth)}) /
                                   static_cast<std::size_t>(call.kernels.depth) +
                               1;
    const int most = std::max({count, kHeadRows, kGradientRows});
    const std::size_t gates = 4 * units, columns = static_cast<std::size_t>(head_columns_);
    threads_.resize(static_cast<std::size_t>(threads));
    for (Thread& thread : threads_) {
        thread.left.reserve(static_cast<std::size_t>(most) * blocks *
                            static_cast<std::size_t>(call.kernels.depth));
        thread.dh.reserve(2 * product(count, units_));
        thread.scratch.reserve(product(3 * sizes_.mixtures, kBlock));
        thread.right.reserve(call.words(kGradientDepth) * static_cast<std::size_t>(input_columns_));
        thread.in.resize(
            static_cast<std::size_t>(std::max({most, kGradientDepth, 4 * units_, head_columns_})));
        thread.out.resize(static_cast<std::size_t>(most));
    }
    weights_.reserve(product(4 * units_, units_ + inputs_));
    head_weights_.reserve(product(head_columns_, units_));
    bias_.reserve(gates);
    head_bias_.reserve(columns);
    packed_.gates.reserve(gates * gates_depth);
    packed_.head.reserve(columns * units_depth);
    zeros_.reserve(std::max(units, static_cast<std::size_t>(input_columns_)));
    x_.reserve(rows * static_cast<std::size_t>(input_columns_));
    gates_.reserve(rows * 4 * units);
    head_.reserve(rows * static_cast<std::size_t>(head_columns_));
    h_.reserve((rows + sequences) * units);
    c_.reserve((rows + sequences) * units);
    if (call.gradient.input == nullptr) return;
    packed_.recurrent_back.reserve(units * back_depth);
    packed_.head_back.reserve(units * head_depth);
    dh_.reserve(rows * units);
    gates_sum_.reserve(product(4 * units_, input_columns_));
    head_sum_.reserve(product(head_columns_, units_));
    bias_sum_.reserve(static_cast<std::size_t>(4 * units_ + head_columns_));
}

// The states before the first step, padded.
void RNNTraining::load_state(const RNNBatch& batch) {
    const auto hidden = static_cast<std::size_t>(sizes_.hidden);
    const auto padding = static_cast<std::size_t>(units_) - hidden;  // NaN after a call that diverged
    for (int i = 0; i < batch.sequences; ++i) {
        const std::size_t from = product(i, sizes_.hidden), to = product(i, units_);
        std::fill_n(std::copy_n(batch.h + from, hidden, h_.data.get() + to), padding, 0.0F);
        std::fill_n(std::copy_n(batch.c + from, hidden, c_.data.get() + to), padding, 0.0F);
    }
}

// Copies the states after the last step.
void RNNTraining::copy_state(const RNNBatch& batch, const RNNOutputs& outputs) const {
    for (int i = 0; i < batch.sequences; ++i) {
        const std::size_t from = (product(batch.steps, batch.sequences) + static_cast<std::size_t>(i)) *
                                 static_cast<std::size_t>(units_);
        std::copy_n(h_.data.get() + from, sizes_.hidden, outputs.h + product(i, sizes_.hidden));
        std::copy_n(c_.data.get() + from, sizes_.hidden, outputs.c + product(i, sizes_.hidden));
    }
}

std::optional<RNNLosses> RNNTraining::run_unchecked(const RNNKernels& kernels,
                                                    const WorldModelWeights& weights, const RNNBatch& batch,
                                                    const RNNLossScales& scales, int threads,
                                                    const RNNOutputs& outputs, const RNNGradient& gradient,
                                                    Poll poll) {
    check_not_forked(threads);
    InterruptiblePool pool(poll);
    const Call call{kernels, weights, batch, scales, outputs, gradient, pool};
    const int blocks = std::min(threads, batch.sequences);  // of sequences
    const bool differentiate = gradient.input != nullptr;
    reserve(call, threads, (batch.sequences + blocks - 1) / blocks);
    std::vector<RNNLosses> losses(static_cast<std::size_t>(batch.sequences));
    load_state(batch);
    const auto in_parallel = [threads](int parts, const auto& work) {
        if (threads == 1) return work(0);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int part = 0; part < parts; ++part) work(part);
    };
    in_parallel(threads, [&](int part) { copy_weights(call, part, threads); });
    in_parallel(threads, [&](int part) {
        pack_weights(call, part, threads, threads_[static_cast<std::size_t>(part)]);
    });
    in_parallel(blocks, [&](int part) {
        const auto [first, next] = part_of(batch.sequences, part, blocks);
        Thread& thread = threads_[static_cast<std::size_t>(part)];
        forward(call, part, first, next - first, thread, losses.data());
        if (differentiate) backward(call, part, first, next - first, thread);
    });
    if (differentiate) {
        in_parallel(threads, [&](int part) {
            weight_gradients(call, part, threads, threads_[static_cast<std::size_t>(part)]);
        });
        in_parallel(threads, [&](int part) { copy_gradient(gradient, part, threads); });
    }
    if (pool.stopped()) return std::nullopt;
    copy_state(batch, outputs);
    RNNLosses total;
    for (const RNNLosses& each : losses) {
        total.z += each.z;
        total.done += each.done;
        total.reward += each.reward;
    }
    return total;
}

}  // namespace worldmodels
