// The LSTM state of environments, advanced a block of rows at a time.
#include "core/lstm_state.hpp"

#include <algorithm>

#include "core/parallel.hpp"

namespace worldmodels {
namespace {

// Copies rows (count, size) to columns (size, kBlock), and back.
void to_columns(const float* rows, int count, int size, float* columns) {
    for (int row = 0; row < count; ++row)
        for (int k = 0; k < size; ++k) columns[k * kBlock + row] = rows[std::ptrdiff_t{row} * size + k];
}
void to_rows(const float* columns, int count, int size, float* rows) {
    for (int row = 0; row < count; ++row)
        for (int k = 0; k < size; ++k) rows[std::ptrdiff_t{row} * size + k] = columns[k * kBlock + row];
}

void advance_block(const Kernels& kernels, const ModelView& m, const LstmRows& rows, int first,
                   Block& block) {
    const int count = std::min(kBlock, rows.count - first);
    const std::ptrdiff_t at = first;
    to_columns(rows.z + at * m.latent, count, m.latent, block.x);
    to_columns(rows.actions + at * m.action, count, m.action, block.x + m.latent * kBlock);
    if (m.restart)
        for (int row = 0; row < count; ++row)
            block.x[(m.inputs() - 1) * kBlock + row] = rows.restart[first + row] != 0 ? 1.0F : 0.0F;
    to_columns(rows.h + at * m.hidden, count, m.hidden, block.h);
    to_columns(rows.c + at * m.hidden, count, m.hidden, block.c);
    kernels.lstm_step(m, block, count);
    to_rows(block.h, count, m.hidden, rows.h + at * m.hidden);
    to_rows(block.c, count, m.hidden, rows.c + at * m.hidden);
}

}  // namespace

void LstmState::advance_unchecked(const Kernels& kernels, const LstmRows& rows, int threads) const {
    const int blocks = (rows.count + kBlock - 1) / kBlock;
    threads = threads_for(blocks, threads);
    const auto workers = workers_.borrow();
    while (workers->size() < static_cast<std::size_t>(threads)) workers->emplace_back(model_);
    parallel_for_blocks(blocks, threads, [&](int b, int thread) {
        advance_block(kernels, model_.view(), rows, b * kBlock,
                      (*workers)[static_cast<std::size_t>(thread)].lanes.block());
    });
}

}  // namespace worldmodels
