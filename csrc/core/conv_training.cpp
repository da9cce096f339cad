// Training of V's convolutions: matrix products of windows, features and weights, where they lie.
#include "core/conv_training.hpp"

#include <algorithm>

#include "core/parallel.hpp"

namespace worldmodels {
namespace {

constexpr int kColumns = 32;          // whole panels on every target
constexpr int kDepth = 256;           // products in a panel that stays in the L1 cache
constexpr int kRows = 96;             // windows for which a panel is read once
constexpr int kTerms = 256;           // products of a weight's gradient that stay in the L2 cache
constexpr int kSlice = 64;            // frames whose windows are copied at once
constexpr std::int64_t kSums = 4096;  // rows of a partial sum of a bias's gradient

constexpr int padded(int count) {
    return (count + kColumns - 1) / kColumns * kColumns;
}
constexpr std::size_t product(int a, int b) {
    return static_cast<std::size_t>(a) * static_cast<std::size_t>(b);
}

}  // namespace

float* ConvTraining::Buffer::reserve(std::size_t count) {
    if (count > size) {
        size = 0;  // stays so when memory runs out
        data.reset();
        data = aligned_floats(count);
        size = count;
    }
    return data.get();
}

ConvTraining::ConvTraining(const ConvShape& shape)
    : shape_(shape), line_(shape.kernel * shape.channels), padded_line_(padded(line_)), length_(line_) {
    while (length_ > kDepth) length_ = length_ % 2 == 0 ? length_ / 2 : shape.channels;
    for (int y = 0; y < shape.kernel; ++y)
        for (int at = 0; at < line_; at += length_)
            segments_.push_back(std::ptrdiff_t{y} * shape.side * shape.channels + at);
}

// Outside the parallel loops, which cannot throw.
void ConvTraining::start_threads(int threads, int rows, std::size_t scratch) {
    if (threads_.size() < static_cast<std::size_t>(threads))
        threads_.resize(static_cast<std::size_t>(threads));
    for (Thread& thread : threads_) {
        thread.in.resize(std::max(thread.in.size(), static_cast<std::size_t>(rows)));
        thread.out.resize(thread.in.size());
        thread.scratch.reserve(scratch);
    }
}

std::size_t ConvTraining::window_at(std::size_t row) const {
    const std::size_t frame = row / static_cast<std::size_t>(shape_.positions());
    const int position = static_cast<int>(row % static_cast<std::size_t>(shape_.positions()));
    const int y = position / shape_.out_side(), x = position % shape_.out_side();
    return frame * shape_.image_size() + product(2 * (y * shape_.side + x), shape_.channels);
}

std::ptrdiff_t ConvTraining::place_of(int column) const {
    return std::ptrdiff_t{column / padded_line_} * shape_.side * shape_.channels + column % padded_line_;
}

void ConvTraining::convolve_unchecked(const Kernels& kernels, int batch, const float* images,
                                      const float* weights, const float* bias, bool relu, int threads,
                                      float* features) {
    const int columns = kernels.conv.columns, window = shape_.window(), filters = shape_.filters;
    const std::size_t rows = product(batch, shape_.positions());
    float* const panels = panels_.reserve(product(window, filters));
    const int blocks = static_cast<int>((rows + kRows - 1) / kRows);
    threads = threads_for(blocks, threads);
    start_threads(threads, kRows, 0);
    parallel_for_blocks(filters / columns, threads, [&](int panel, int) {  // transposed
        const float* const from = weights + product(panel * columns, window);
        float* const to = panels + product(panel * columns, window);
        for (int first = 0; first < window; first += kColumns) {
            const int next = std::min(first + kColumns, window);
            for (int c = 0; c < columns; ++c)
                for (int k = first; k < next; ++k) to[k * columns + c] = from[c * window + k];
        }
    });
    const int at_once = std::max(1, kDepth / length_), segments = static_cast<int>(segments_.size());
    parallel_for_blocks(blocks, threads, [&](int block, int thread) {
        Thread& own = threads_[static_cast<std::size_t>(thread)];
        const std::size_t first = product(block, kRows);
        const std::size_t count = std::min<std::size_t>(kRows, rows - first);
        for (std::size_t i = 0; i < count; ++i) {
            own.in[i] = images + window_at(first + i);
            own.out[i] = features + (first + i) * static_cast<std::size_t>(filters);
            if (bias != nullptr)
                std::copy_n(bias, filters, own.out[i]);
            else
                std::fill_n(own.out[i], filters, 0.0F);
        }
        for (int column = 0; column < filters; column += columns)
            for (int s = 0; s < segments; s += at_once)
                kernels.conv.add_products(static_cast<int>(count), own.in.data(), segments_.data() + s,
                                          std::min(at_once, segments - s), length_,
                                          panels + product(column, window) + product(s * length_, columns),
                                          own.out.data(), column);
        if (relu) {
            float* const out = own.out[0];
            for (std::size_t i = 0; i < count * static_cast<std::size_t>(filters); ++i)
                out[i] = out[i] < 0.0F ? 0.0F : out[i];
        }
    });
}

void ConvTraining::transpose_unchecked(const Kernels& kernels, int batch, const float* features,
                                       const float* weights, const float* bias, bool relu, int threads,
                                       float* images) {
    const int columns = kernels.conv.columns, filters = shape_.filters, channels = shape_.channels;
    const int positions = shape_.positions(), window = shape_.window(), width = padded(window);
    // a panel of one pixel goes where it belongs: no two windows have the pixel in the same place
    const bool whole = channels % kColumns == 0;
    float* const panels = panels_.reserve(product(filters, width));
    // frames of a block, whose windows read a panel once
    const int most = std::max(1, (batch + threads - 1) / threads);
    const int frames = std::clamp((kRows / 2 + positions - 1) / positions, 1, most);
    const int blocks = (batch + frames - 1) / frames;
    threads = threads_for(blocks, threads);
    start_threads(threads, frames * positions, whole ? 0 : product(kRows, width));
    parallel_for_blocks(width / columns, threads, [&](int panel, int) {
        const int count = std::clamp(window - panel * columns, 0, columns);
        float* to = panels + product(filters * panel, columns);
        for (int f = 0; f < filters; ++f, to += columns) {
            std::copy_n(weights + product(f, window) + panel * columns, count, to);
            std::fill_n(to + count, columns - count, 0.0F);
        }
    });
    constexpr std::ptrdiff_t kStart = 0;
    parallel_for_blocks(blocks, threads, [&](int block, int thread) {
        Thread& own = threads_[static_cast<std::size_t>(thread)];
        const int first = block * frames, count = std::min(frames, batch - first), rows = count * positions;
        const std::size_t start = product(first, positions);
        float* const image = images + static_cast<std::size_t>(first) * shape_.image_size();
        const std::size_t size = static_cast<std::size_t>(count) * shape_.image_size();
        if (bias == nullptr)
            std::fill_n(image, size, 0.0F);
        else
            for (std::size_t i = 0; i < size; i += static_cast<std::size_t>(channels))
                std::copy_n(bias, channels, image + i);
        float* const scratch = own.scratch.data.get();
        for (int i = 0; i < rows; ++i) {
            const auto at = static_cast<std::size_t>(i);
            own.in[at] = features + (start + at) * static_cast<std::size_t>(filters);
            own.out[at] = whole ? images + window_at(start + at) : scratch + product(i % kRows, width);
        }
        if (whole)
            for (int column = 0; column < width; column += columns)
                kernels.conv.add_products(rows, own.in.data(), &kStart, 1, filters,
                                          panels + product(column, filters), own.out.data(),
                                          place_of(column));
        else
            for (int from = 0; from < rows; from += kRows) {
                const int some = std::min(kRows, rows - from);
                std::fill_n(scratch, product(some, width), 0.0F);
                for (int column = 0; column < width; column += columns)
                    kernels.conv.add_products(some, own.in.data() + from, &kStart, 1, filters,
                                              panels + product(column, filters), own.out.data(), column);
                for (int i = 0; i < some; ++i) {
                    float* to = images + window_at(start + static_cast<std::size_t>(from + i));
                    for (int y = 0; y < shape_.kernel; ++y, to += product(shape_.side, channels))
                        kernels.conv.add_line(line_, own.out[static_cast<std::size_t>(i)] + y * line_, to);
                }
            }
        if (relu)
            for (std::size_t i = 0; i < size; ++i) image[i] = image[i] < 0.0F ? 0.0F : image[i];
    });
}

void ConvTraining::weight_gradient_unchecked(const Kernels& kernels, int batch, const float* images,
                                             const float* features, int threads, float* gradient) {
    const int columns = kernels.conv.columns, filters = shape_.filters, width = shape_.kernel * padded_line_;
    const int groups = (filters + kernels.conv.filters - 1) / kernels.conv.filters;
    const int panels = width / columns, tiles = panels * groups;
    const int positions = shape_.positions(), frames = std::max(1, kTerms / positions);
    const bool whole =
        line_ == padded_line_;  // else a panel reads beyond a line, and the last one beyond the image
    threads = threads_for(tiles, threads);
    start_threads(threads, frames * positions, product(frames * positions, kernels.conv.filters));
    float* const sums = whole ? gradient : gradient_.reserve(product(filters, width));
    for (int from = 0; from < batch; from += kSlice) {
        const int slice = std::min(kSlice, batch - from);
        const float* image = images + static_cast<std::size_t>(from) * shape_.image_size();
        if (!whole) {
            float* const copy = images_.reserve(
                static_cast<std::size_t>(std::min(batch, kSlice)) * shape_.image_size() + kColumns);
            std::copy_n(image, static_cast<std::size_t>(slice) * shape_.image_size(), copy);
            image = copy;
        }
        const float* const feature = features + static_cast<std::size_t>(from) * shape_.features_size();
        // every thread sums its own tiles, over all frames in their order
        parallel_for_blocks(threads, threads, [&](int part, int thread) {
            Thread& own = threads_[static_cast<std::size_t>(thread)];
            const int begin = static_cast<int>(std::int64_t{tiles} * part / threads);
            const int end = static_cast<int>(std::int64_t{tiles} * (part + 1) / threads);
            float* const left = own.scratch.data.get();
            for (int frame = 0; frame < slice; frame += frames) {
                const int count = std::min(frames, slice - frame) * positions;
                const std::size_t row = product(frame, positions);
                for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i)
                    own.in[i] = image + window_at(row + i);
                for (int tile = begin; tile < end; ++tile) {
                    const int group = tile / panels, column = tile % panels * columns;
                    const int first = static_cast<int>(std::int64_t{filters} * group / groups);
                    const int some = static_cast<int>(std::int64_t{filters} * (group + 1) / groups) - first;
                    if (tile == begin || column == 0) {
                        const float* values = feature + row * static_cast<std::size_t>(filters) + first;
                        for (int i = 0; i < count; ++i, values += filters)
                            std::copy_n(values, some, left + i * some);
                    }
                    kernels.conv.add_outer_products(some, count, left, own.in.data(), place_of(column),
                                                    from == 0 && frame == 0,
                                                    sums + product(first, width) + column, width);
                }
            }
        });
    }
    if (!whole)
        for (int line = 0; line < filters * shape_.kernel; ++line)
            std::copy_n(sums + product(line, padded_line_), line_, gradient + product(line, line_));
}

void relu_backward_unchecked(const Kernels& kernels, std::int64_t count, int channels, const float* output,
                             const float* gradient, int threads, float* before, float* sums) {
    const int blocks = static_cast<int>((count + kSums - 1) / kSums);
    const AlignedFloats partial = aligned_floats(product(blocks, channels));
    parallel_for_blocks(blocks, threads_for(blocks, threads), [&](int block, int) {
        const std::int64_t first = block * kSums;
        kernels.conv.relu_backward(std::min(kSums, count - first), channels, output + first * channels,
                                   gradient + first * channels, before + first * channels,
                                   partial.get() + product(block, channels));
    });
    std::fill_n(sums, channels, 0.0F);
    for (int block = 0; block < blocks; ++block)
        for (int c = 0; c < channels; ++c)
            sums[c] += partial[product(block, channels) + static_cast<std::size_t>(c)];
}

}  // namespace worldmodels
