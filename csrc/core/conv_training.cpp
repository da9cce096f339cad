// Training of V's convolutions: matrix products of windows, features and weights, where they lie.
#include "core/conv_training.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "core/packing.hpp"
#include "core/parallel.hpp"

namespace worldmodels {
namespace {

constexpr int kColumns = 32;          // a multiple of a panel's on every target
constexpr int kDepth = 128;           // products in a panel that stays in the L1 cache
constexpr int kRows = 96;             // windows for which a panel is read once
constexpr int kTerms = 256;           // products of a weight's gradient that stay in the L2 cache
constexpr int kSlice = 16;            // frames that are copied at once
constexpr std::int64_t kSums = 4096;  // rows of a partial sum of a bias's gradient

float bfloat16_pair(float low, float high) {
    return std::bit_cast<float>(bfloat16(low) | bfloat16(high) << 16);
}
constexpr std::size_t product(int a, int b) {
    return static_cast<std::size_t>(a) * static_cast<std::size_t>(b);
}
// The first row of one of `groups` groups of nearly equal size, and their number.
std::pair<int, int> rows_of(int rows, int group, int groups) {
    const auto first = static_cast<int>(std::int64_t{rows} * group / groups);
    return {first, static_cast<int>(std::int64_t{rows} * (group + 1) / groups) - first};
}

}  // namespace

// pixel: floats of a pixel.
ConvTraining::Operand ConvTraining::operand(const ConvShape& shape, int pixel) {
    Operand found{pixel, shape.side * pixel, shape.kernel * pixel, {}};
    const int line = found.length;
    while (found.length > kDepth) found.length = found.length % 2 == 0 ? found.length / 2 : pixel;
    for (int y = 0; y < shape.kernel; ++y)
        for (int at = 0; at < line; at += found.length)
            found.segments.push_back(std::ptrdiff_t{y} * found.line + at);
    return found;
}

ConvTraining::ConvTraining(const ConvShape& shape)
    : shape_(shape),
      line_(shape.kernel * shape.channels),
      narrow_(shape.channels % kColumns != 0),
      whole_(operand(shape, shape.channels)),
      half_(operand(shape, (shape.channels + 1) / 2)) {}

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

std::size_t ConvTraining::window_at(const Operand& operand, std::size_t row) const {
    const std::size_t frame = row / static_cast<std::size_t>(shape_.positions());
    const int position = static_cast<int>(row % static_cast<std::size_t>(shape_.positions()));
    const int y = position / shape_.out_side(), x = position % shape_.out_side();
    return (frame * static_cast<std::size_t>(shape_.side) + static_cast<std::size_t>(2 * y)) *
               static_cast<std::size_t>(operand.line) +
           product(2 * x, operand.pixel);
}

std::ptrdiff_t ConvTraining::place_of(int column) const {
    return std::ptrdiff_t{column / line_} * whole_.line + column % line_;
}

void ConvTraining::convolve_unchecked(const ConvTrainingKernels& kernels, int batch, const float* images,
                                      const float* weights, const float* bias, bool relu, int threads,
                                      float* features) {
    const bool pairs = kernels.pack == 2;
    const Operand& operand = pairs ? half_ : whole_;
    const int columns = kernels.columns, filters = shape_.filters, channels = shape_.channels;
    const int taps = shape_.kernel * shape_.kernel, depth = taps * operand.pixel;
    const std::size_t rows = product(batch, shape_.positions());
    float* const panels = panels_.reserve(product(depth, filters));
    const int blocks = static_cast<int>((rows + kRows - 1) / kRows);
    threads = threads_for(blocks, threads);
    start_threads(threads, kRows, 0);
    parallel_for_blocks(filters / columns, threads, [&](int panel, int) {  // transposed
        const float* const from = weights + product(panel * columns, shape_.window());
        float* const to = panels + product(panel * columns, depth);
        for (int first = 0; first < depth; first += kColumns) {
            const int next = std::min(first + kColumns, depth);
            for (int c = 0; c < columns; ++c) {
                const float* const own = from + product(c, shape_.window());
                for (int k = first; k < next; ++k) {
                    const int channel = 2 * (k % operand.pixel);
                    const float* const pair = own + k / operand.pixel * channels + channel;
                    to[k * columns + c] =
                        pairs ? bfloat16_pair(pair[0], channel + 1 < channels ? pair[1] : 0.0F) : own[k];
                }
            }
        }
    });
    if (pairs) {
        const std::size_t size = product(shape_.side, operand.line);
        float* const packed = right_.reserve(static_cast<std::size_t>(batch) * size);
        parallel_for_blocks(batch, threads, [&](int frame, int) {
            const float* from = images + static_cast<std::size_t>(frame) * shape_.image_size();
            float* to = packed + static_cast<std::size_t>(frame) * size;
            if (channels % 2 == 0)
                return kernels.pack_neighbours(static_cast<std::int64_t>(2 * size), from, to);
            for (int pixel = 0; pixel < shape_.side * shape_.side; ++pixel, from += channels)
                for (int c = 0; c < channels; c += 2)
                    *to++ = bfloat16_pair(from[c], c + 1 < channels ? from[c + 1] : 0.0F);
        });
        images = packed;
    }
    const int at_once = std::max(1, kDepth / operand.length);
    const int segments = static_cast<int>(operand.segments.size());
    parallel_for_blocks(blocks, threads, [&](int block, int thread) {
        Thread& own = threads_[static_cast<std::size_t>(thread)];
        const std::size_t first = product(block, kRows);
        const std::size_t count = std::min<std::size_t>(kRows, rows - first);
        for (std::size_t i = 0; i < count; ++i) {
            own.in[i] = images + window_at(operand, first + i);
            own.out[i] = features + (first + i) * static_cast<std::size_t>(filters);
            if (bias != nullptr)
                std::copy_n(bias, filters, own.out[i]);
            else
                std::fill_n(own.out[i], filters, 0.0F);
        }
        for (int column = 0; column < filters; column += columns)
            for (int s = 0; s < segments; s += at_once)
                kernels.add_products(static_cast<int>(count), own.in.data(), operand.segments.data() + s,
                                     std::min(at_once, segments - s), operand.length,
                                     panels + product(column, depth) + product(s * operand.length, columns),
                                     own.out.data(), column);
        if (relu) {
            float* const out = own.out[0];
            for (std::size_t i = 0; i < count * static_cast<std::size_t>(filters); ++i)
                out[i] = out[i] < 0.0F ? 0.0F : out[i];
        }
    });
}

void ConvTraining::transpose_unchecked(const ConvTrainingKernels& kernels, int batch, const float* features,
                                       const float* weights, const float* bias, bool relu, int threads,
                                       float* images) {
    if (narrow_) return transpose_narrow(kernels, batch, features, weights, bias, relu, threads, images);
    const bool pairs = kernels.pack == 2;
    const int columns = kernels.columns, filters = shape_.filters, channels = shape_.channels;
    const int depth = filters / kernels.pack;
    const int positions = shape_.positions(), window = shape_.window();
    float* const panels = panels_.reserve(product(depth, window));
    // frames of a block, whose windows read a panel once
    const int most = std::max(1, (batch + threads - 1) / threads);
    const int frames = std::clamp((kRows / 2 + positions - 1) / positions, 1, most);
    const int blocks = (batch + frames - 1) / frames;
    threads = threads_for(blocks, threads);
    start_threads(threads, frames * positions, 0);
    parallel_for_blocks(window / columns, threads, [&](int panel, int) {
        float* to = panels + product(depth, panel * columns);
        for (int f = 0; f < filters; f += kernels.pack, to += columns) {
            const float* const row = weights + product(f, window) + panel * columns;
            if (pairs)
                kernels.pack_rows(columns, row, row + window, to);
            else
                std::copy_n(row, columns, to);
        }
    });
    if (pairs) {
        const std::size_t size = shape_.features_size();
        float* const packed = left_.reserve(static_cast<std::size_t>(batch) * size / 2);
        parallel_for_blocks(batch, threads, [&](int frame, int) {
            const std::size_t at = static_cast<std::size_t>(frame) * size;
            kernels.pack_neighbours(static_cast<std::int64_t>(size), features + at, packed + at / 2);
        });
        features = packed;
    }
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
        for (int i = 0; i < rows; ++i) {
            const auto at = static_cast<std::size_t>(i);
            own.in[at] = features + (start + at) * static_cast<std::size_t>(depth);
            own.out[at] = images + window_at(whole_, start + at);
        }
        // a panel is of one pixel, which no two windows have in the same place
        for (int column = 0; column < window; column += columns)
            kernels.add_products(rows, own.in.data(), &kStart, 1, depth, panels + product(column, depth),
                                 own.out.data(), place_of(column));
        if (relu)
            for (std::size_t i = 0; i < size; ++i) image[i] = image[i] < 0.0F ? 0.0F : image[i];
    });
}

// Pixels (2 i, 2 j) to (2 i + 1, 2 j + 1) depend on the same taps x taps features, up to (i, j): a
// convolution of stride 1 of the features with zeros around them.
void ConvTraining::transpose_narrow(const ConvTrainingKernels& kernels, int batch, const float* features,
                                    const float* weights, const float* bias, bool relu, int threads,
                                    float* images) {
    const bool pairs = kernels.pack == 2;
    const int filters = shape_.filters, channels = shape_.channels, side = shape_.side;
    const int depth = filters / kernels.pack, pixel = 4 * channels, half = 2 * channels;
    const bool one_vector = pixel <= kernels.lanes;
    const int columns = one_vector ? kernels.lanes : kernels.columns;
    const int width = (pixel + columns - 1) / columns * columns;
    const auto add_products = one_vector ? kernels.add_vector_products : kernels.add_products;
    const int taps = (shape_.kernel + 1) / 2, length = taps * depth;
    const int out = shape_.out_side(), blocks = (side + 1) / 2, padded_side = blocks + taps - 1;
    const std::size_t padded_size = product(padded_side, padded_side * depth);
    float* const panels = panels_.reserve(product(taps * length, width));
    threads = threads_for(batch, threads);
    start_threads(threads, blocks, padded_size + product(blocks, width));
    for (Thread& thread : threads_) std::fill_n(thread.scratch.data.get(), padded_size, 0.0F);
    std::fill_n(panels, product(taps * length, width), 0.0F);
    for (int tap = 0; tap < taps * taps; ++tap)
        for (int part = 0; part < 4; ++part) {
            const int y = 2 * (taps - 1 - tap / taps) + part / 2, x = 2 * (taps - 1 - tap % taps) + part % 2;
            if (y >= shape_.kernel || x >= shape_.kernel) continue;
            const float* from = weights + product(y * shape_.kernel + x, channels);
            for (int f = 0; f < depth; ++f, from += kernels.pack * shape_.window())
                for (int c = 0; c < channels; ++c) {
                    const int column = part * channels + c;
                    panels[product(column / columns * taps * length + tap * depth + f, columns) +
                           static_cast<std::size_t>(column % columns)] =
                        pairs ? bfloat16_pair(from[c], from[shape_.window() + c]) : from[c];
                }
        }
    std::vector<std::ptrdiff_t> lines(static_cast<std::size_t>(taps));
    for (int tap = 0; tap < taps; ++tap)
        lines[static_cast<std::size_t>(tap)] = std::ptrdiff_t{tap} * padded_side * depth;
    std::vector<float> start(static_cast<std::size_t>(width), 0.0F);
    if (bias != nullptr)
        for (int column = 0; column < pixel; ++column)
            start[static_cast<std::size_t>(column)] = bias[column % channels];
    parallel_for_blocks(batch, threads, [&](int frame, int thread) {
        Thread& own = threads_[static_cast<std::size_t>(thread)];
        float* const padded = own.scratch.data.get();
        float* const sums = padded + padded_size;
        const float* from = features + static_cast<std::size_t>(frame) * shape_.features_size();
        for (int y = 0; y < out; ++y, from += product(out, filters)) {
            float* const to = padded + product((y + taps - 1) * padded_side + taps - 1, depth);
            if (pairs)
                kernels.pack_neighbours(std::int64_t{out} * filters, from, to);
            else
                std::copy_n(from, product(out, filters), to);
        }
        for (int j = 0; j < blocks; ++j) own.out[static_cast<std::size_t>(j)] = sums + product(j, width);
        float* line = images + static_cast<std::size_t>(frame) * shape_.image_size();
        for (int i = 0; i < blocks; ++i) {
            for (int j = 0; j < blocks; ++j) {
                own.in[static_cast<std::size_t>(j)] = padded + product(i * padded_side + j, depth);
                std::copy_n(start.data(), width, sums + product(j, width));
            }
            for (int column = 0; column < width; column += columns)
                add_products(blocks, own.in.data(), lines.data(), taps, length,
                             panels + product(column, taps * length), own.out.data(), column);
            for (int a = 0; a < std::min(2, side - 2 * i); ++a, line += whole_.line) {
                float* to = line;
                const float* sum = sums + a * half;
                for (int j = 0; j < side / 2; ++j, sum += width, to += half)
                    if (half == 6)
                        std::copy_n(sum, 6, to);  // a few instructions, for frames
                    else
                        std::copy_n(sum, half, to);
                if (side % 2 != 0) std::copy_n(sum, channels, to);
                if (relu)
                    for (int k = 0; k < whole_.line; ++k) line[k] = line[k] < 0.0F ? 0.0F : line[k];
            }
        }
    });
}

void ConvTraining::weight_gradient_unchecked(const ConvTrainingKernels& kernels, int batch,
                                             const float* images, const float* features, int threads,
                                             float* gradient) {
    const bool pairs = kernels.pack == 2;  // of a window and the one to its right
    const int filters = shape_.filters, window = shape_.window();
    // Products of features and windows; of windows and features where windows are narrow.
    const int width = narrow_ ? filters : window, panels = width / kernels.columns;
    const int lines = narrow_ ? shape_.kernel : 1, rows = narrow_ ? line_ : filters;
    const int groups = (rows + kernels.rows - 1) / kernels.rows, tiles = lines * groups * panels;
    const int out = shape_.out_side(), across = (out + kernels.pack - 1) / kernels.pack, terms = out * across;
    const int frames = std::max(1, kTerms / terms);
    const std::size_t size = shape_.image_size(), features_size = product(terms, filters);
    threads = threads_for(tiles, threads);
    start_threads(threads, frames * terms, product(frames * terms, kernels.rows));
    float* const sums = narrow_ ? gradient_.reserve(product(window, filters)) : gradient;
    for (int from = 0; from < batch; from += kSlice) {
        const int slice = std::min(kSlice, batch - from);
        const float* image = images + static_cast<std::size_t>(from) * size;
        const float* feature = features + static_cast<std::size_t>(from) * shape_.features_size();
        if (pairs) {
            const auto most = static_cast<std::size_t>(std::min(batch, kSlice));
            float* const image_pairs = right_.reserve(most * size);
            float* const feature_pairs = left_.reserve(most * features_size);
            const auto next = product(2, shape_.channels);  // from a window to the one to its right
            const std::size_t paired = size - std::min(size, next);
            parallel_for_blocks(slice, threads, [&](int frame, int) {
                const float* const own = image + static_cast<std::size_t>(frame) * size;
                float* const to = image_pairs + static_cast<std::size_t>(frame) * size;
                kernels.pack_rows(static_cast<std::int64_t>(paired), own, own + next, to);
                kernels.pack_rows(static_cast<std::int64_t>(size - paired), own + paired, nullptr,
                                  to + paired);
                const float* row = feature + static_cast<std::size_t>(frame) * shape_.features_size();
                float* row_to = feature_pairs + static_cast<std::size_t>(frame) * features_size;
                for (int y = 0; y < out; ++y)
                    for (int x = 0; x < out; x += 2, row_to += filters) {
                        kernels.pack_rows(filters, row, x + 1 < out ? row + filters : nullptr, row_to);
                        row += x + 1 < out ? 2 * filters : filters;
                    }
            });
            image = image_pairs;
            feature = feature_pairs;
        }
        // every thread sums its own tiles, over all frames in their order
        parallel_for_blocks(threads, threads, [&](int part, int thread) {
            Thread& own = threads_[static_cast<std::size_t>(thread)];
            const int begin = static_cast<int>(std::int64_t{tiles} * part / threads);
            const int end = static_cast<int>(std::int64_t{tiles} * (part + 1) / threads);
            float* const group_features = own.scratch.data.get();
            for (int frame = 0; frame < slice; frame += frames) {
                const int count = std::min(frames, slice - frame) * terms;
                const bool from_zero = from == 0 && frame == 0;
                for (int i = 0; i < count; ++i) {
                    const int y = i % terms / across, x = i % across * kernels.pack;
                    own.in[static_cast<std::size_t>(i)] =
                        image + window_at(whole_, product(frame + i / terms, out * out) +
                                                      static_cast<std::size_t>(y * out + x));
                }
                const float* const values = feature + static_cast<std::size_t>(frame) * features_size;
                for (int tile = begin; tile < end; ++tile) {
                    const int group = tile / panels, column = tile % panels * kernels.columns;
                    const auto [first, some] = rows_of(rows, group % groups, groups);
                    if (narrow_) {
                        const int line = group / groups, row = line * line_ + first;
                        kernels.add_window_products(some, count, own.in.data(), line * whole_.line + first,
                                                    values + column, from_zero,
                                                    sums + product(row, filters) + column, filters);
                        continue;
                    }
                    if (tile == begin || column == 0)
                        for (int i = 0; i < count; ++i)
                            std::copy_n(values + product(i, filters) + first, some,
                                        group_features + i * some);
                    kernels.add_outer_products(some, count, group_features, own.in.data(), place_of(column),
                                               from_zero, sums + product(first, window) + column, window);
                }
            }
        });
    }
    if (narrow_)
        for (int f = 0; f < filters; ++f)
            for (int i = 0; i < window; ++i) gradient[product(f, window) + i] = sums[product(i, filters) + f];
}

void relu_backward_unchecked(const ConvTrainingKernels& kernels, std::int64_t count, int channels,
                             const float* output, const float* gradient, int threads, float* before,
                             float* sums) {
    const int blocks = static_cast<int>((count + kSums - 1) / kSums);
    const AlignedFloats partial = aligned_floats(product(blocks, channels));
    parallel_for_blocks(blocks, threads_for(blocks, threads), [&](int block, int) {
        const std::int64_t first = block * kSums;
        kernels.relu_backward(std::min(kSums, count - first), channels, output + first * channels,
                              gradient + first * channels, before + first * channels,
                              partial.get() + product(block, channels));
    });
    std::fill_n(sums, channels, 0.0F);
    for (int block = 0; block < blocks; ++block)
        for (int c = 0; c < channels; ++c)
            sums[c] += partial[product(block, channels) + static_cast<std::size_t>(c)];
}

}  // namespace worldmodels
