// Training of V's convolutions: matrix products of windows, features and weights, where they lie.
#include "core/conv_training.hpp"

#include <algorithm>
#include <utility>

#include "core/parallel.hpp"
#include "kernels/bfloat16.hpp"

namespace worldmodels {
namespace {

constexpr int kColumns = 32;          // a multiple of a panel's on every target
constexpr int kDepth = 128;           // products in a panel that stays in the L1 cache
constexpr int kWindows = 96;          // windows for which a panel is read once
constexpr int kTerms = 256;           // products of a weight's gradient that stay in the L2 cache
constexpr int kSlice = 16;            // frames that are copied at once
constexpr std::int64_t kSums = 4096;  // rows of a partial sum of a bias's gradient

// The first row of one of `groups` groups of nearly equal size, and their number.
std::pair<int, int> rows_of(int rows, int group, int groups) {
    const auto first = static_cast<int>(std::int64_t{rows} * group / groups);
    return {first, static_cast<int>(std::int64_t{rows} * (group + 1) / groups) - first};
}
void apply_relu(float* x, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) x[i] = x[i] < 0.0F ? 0.0F : x[i];
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

// The panels of the weights' transpose, for threads that have started with a panel's rows or more.
const float* ConvTraining::pack_filters(const ConvTrainingKernels& kernels, const float* weights,
                                        int threads) {
    const int pixel = (kernels.pack == 2 ? half_ : whole_).pixel;
    const int depth = shape_.kernel * shape_.kernel * pixel;
    const int columns = kernels.columns, channels = shape_.channels;
    float* const panels = panels_.reserve(product(depth, shape_.filters));
    parallel_for_blocks(shape_.filters / columns, threads, [&](int panel, int thread) {
        const float* const from = weights + product(panel * columns, shape_.window());
        float* const to = panels + product(panel * columns, depth);
        const float** const rows = threads_[static_cast<std::size_t>(thread)].in.data();
        for (int c = 0; c < columns; ++c) rows[c] = from + product(c, shape_.window());
        if (channels % kernels.pack == 0)
            return kernels.pack_right_columns(rows, shape_.window(), columns, to);
        for (int k = 0; k < depth; ++k) {
            const int at = k / pixel * channels + 2 * (k % pixel);
            const bool alone = 2 * (k % pixel) + 1 == channels;
            for (int c = 0; c < columns; ++c)
                to[product(k, columns) + static_cast<std::size_t>(c)] =
                    bfloat16_pair(rows[c][at], alone ? 0.0F : rows[c][at + 1]);
        }
    });
    return panels;
}

// The images as pairs of neighbouring channels.
const float* ConvTraining::pack_images(const ConvTrainingKernels& kernels, int batch, const float* images,
                                       int threads) {
    const int channels = shape_.channels;
    const std::size_t size = product(shape_.side, half_.line);
    float* const packed = right_.reserve(static_cast<std::size_t>(batch) * size);
    parallel_for_blocks(batch, threads, [&](int frame, int) {
        const float* from = images + static_cast<std::size_t>(frame) * shape_.image_size();
        float* to = packed + static_cast<std::size_t>(frame) * size;
        if (channels % 2 == 0) return kernels.pack_neighbours(static_cast<std::int64_t>(2 * size), from, to);
        for (int pixel = 0; pixel < shape_.side * shape_.side; ++pixel, from += channels)
            for (int c = 0; c < channels; c += 2)
                *to++ = bfloat16_pair(from[c], c + 1 < channels ? from[c + 1] : 0.0F);
    });
    return packed;
}

void ConvTraining::convolve_unchecked(const ConvTrainingKernels& kernels, int batch, const float* images,
                                      const float* weights, const float* bias, bool relu, int threads,
                                      float* features) {
    const bool pairs = kernels.pack == 2;
    const Operand& operand = pairs ? half_ : whole_;
    const int filters = shape_.filters, depth = shape_.kernel * shape_.kernel * operand.pixel;
    const std::size_t rows = product(batch, shape_.positions());
    const auto share = (rows + static_cast<std::size_t>(threads) - 1) / static_cast<std::size_t>(threads);
    const std::size_t windows = std::min<std::size_t>(kWindows, share);  // of a block
    const int blocks = static_cast<int>((rows + windows - 1) / windows);
    threads = threads_for(std::max(blocks, filters / kernels.columns), threads);
    start_threads(threads, kWindows, 0);
    const float* const panels = pack_filters(kernels, weights, threads);
    if (pairs) images = pack_images(kernels, batch, images, threads);
    const int at_once = std::max(1, kDepth / operand.length);
    const int segments = static_cast<int>(operand.segments.size());
    parallel_for_blocks(blocks, threads, [&](int block, int thread) {
        Thread& own = threads_[static_cast<std::size_t>(thread)];
        const std::size_t first = static_cast<std::size_t>(block) * windows;
        const std::size_t count = std::min(windows, rows - first);
        for (std::size_t i = 0; i < count; ++i) {
            own.in[i] = images + window_at(operand, first + i);
            own.out[i] = features + (first + i) * static_cast<std::size_t>(filters);
            if (bias != nullptr)
                std::copy_n(bias, filters, own.out[i]);
            else
                std::fill_n(own.out[i], filters, 0.0F);
        }
        for (int column = 0; column < filters; column += kernels.columns)
            for (int s = 0; s < segments; s += at_once)
                kernels.add_products(
                    static_cast<int>(count), own.in.data(), operand.segments.data() + s,
                    std::min(at_once, segments - s), operand.length,
                    panels + product(column, depth) + product(s * operand.length, kernels.columns),
                    own.out.data(), column);
        if (relu) apply_relu(own.out[0], count * static_cast<std::size_t>(filters));
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
    const int frames = std::clamp((kWindows / 2 + positions - 1) / positions, 1, most);
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
        if (relu) apply_relu(image, size);
    });
}

// Pixels (2 i, 2 j) to (2 i + 1, 2 j + 1) depend on the same taps x taps features, up to (i, j): a
// convolution of stride 1 of the features with zeros around them.
struct ConvTraining::Narrow {
    Narrow(const ConvShape& shape, const ConvTrainingKernels& kernels)
        : one_vector(4 * shape.channels <= kernels.lanes),
          columns(one_vector ? kernels.lanes : kernels.columns),
          width((4 * shape.channels + columns - 1) / columns * columns),
          depth(shape.filters / kernels.pack),
          taps((shape.kernel + 1) / 2),
          length(taps * depth),
          blocks((shape.side + 1) / 2),
          padded_side(blocks + taps - 1) {}
    std::size_t padded_size() const { return product(padded_side, padded_side * depth); }

    bool one_vector;     // the panels are of one vector
    int columns, width;  // of a panel; of the four pixels, rounded up to whole panels
    int depth;           // floats of a position's features
    int taps, length;    // along an axis; floats of a line of taps
    int blocks, padded_side;
};

// The panels of the weights, one row per tap and feature.
const float* ConvTraining::pack_taps(const ConvTrainingKernels& kernels, const Narrow& n,
                                     const float* weights) {
    const int channels = shape_.channels, window = shape_.window(), rows = n.taps * n.length;
    float* const panels = panels_.reserve(product(rows, n.width));
    std::fill_n(panels, product(rows, n.width), 0.0F);
    for (int tap = 0; tap < n.taps * n.taps; ++tap)
        for (int part = 0; part < 4; ++part) {
            const int y = 2 * (n.taps - 1 - tap / n.taps) + part / 2;
            const int x = 2 * (n.taps - 1 - tap % n.taps) + part % 2;
            if (y >= shape_.kernel || x >= shape_.kernel) continue;
            const float* from = weights + product(y * shape_.kernel + x, channels);
            for (int f = 0; f < n.depth; ++f, from += kernels.pack * window)
                for (int c = 0; c < channels; ++c) {
                    const int column = part * channels + c;
                    panels[product(column / n.columns * rows + tap * n.depth + f, n.columns) +
                           static_cast<std::size_t>(column % n.columns)] =
                        kernels.pack == 2 ? bfloat16_pair(from[c], from[window + c]) : from[c];
                }
        }
    return panels;
}

// Copies a frame's features into the middle of `padded`.
void ConvTraining::pad_features(const ConvTrainingKernels& kernels, const Narrow& n, const float* features,
                                float* padded) const {
    const std::size_t line = product(shape_.out_side(), shape_.filters);
    for (int y = 0; y < shape_.out_side(); ++y, features += line) {
        float* const to = padded + product((y + n.taps - 1) * n.padded_side + n.taps - 1, n.depth);
        if (kernels.pack == 2)
            kernels.pack_neighbours(static_cast<std::int64_t>(line), features, to);
        else
            std::copy_n(features, line, to);
    }
}

// Copies one of the two lines of pixels in the sums (blocks, width) to an image.
void ConvTraining::copy_line(const Narrow& n, const float* sums, float* line) const {
    const int channels = shape_.channels;
    float* to = line;
    for (int j = 0; j < shape_.side / 2; ++j, sums += n.width, to += 2 * channels)
        if (channels == 3)
            std::copy_n(sums, 6, to);  // a few instructions, for frames
        else
            std::copy_n(sums, 2 * channels, to);
    if (shape_.side % 2 != 0) std::copy_n(sums, channels, to);
}

void ConvTraining::transpose_narrow(const ConvTrainingKernels& kernels, int batch, const float* features,
                                    const float* weights, const float* bias, bool relu, int threads,
                                    float* images) {
    const Narrow n(shape_, kernels);
    const int channels = shape_.channels, side = shape_.side, rows = n.taps * n.length;
    const auto add_products = n.one_vector ? kernels.add_vector_products : kernels.add_products;
    threads = threads_for(batch, threads);
    start_threads(threads, n.blocks, n.padded_size() + product(n.blocks, n.width));
    for (Thread& thread : threads_) std::fill_n(thread.scratch.data.get(), n.padded_size(), 0.0F);
    const float* const panels = pack_taps(kernels, n, weights);
    std::vector<std::ptrdiff_t> lines(static_cast<std::size_t>(n.taps));
    for (int tap = 0; tap < n.taps; ++tap)
        lines[static_cast<std::size_t>(tap)] = std::ptrdiff_t{tap} * n.padded_side * n.depth;
    std::vector<float> start(static_cast<std::size_t>(n.width), 0.0F);
    if (bias != nullptr)
        for (int column = 0; column < 4 * channels; ++column)
            start[static_cast<std::size_t>(column)] = bias[column % channels];
    parallel_for_blocks(batch, threads, [&](int frame, int thread) {
        Thread& own = threads_[static_cast<std::size_t>(thread)];
        float* const padded = own.scratch.data.get();
        float* const sums = padded + n.padded_size();
        pad_features(kernels, n, features + static_cast<std::size_t>(frame) * shape_.features_size(), padded);
        for (int j = 0; j < n.blocks; ++j) own.out[static_cast<std::size_t>(j)] = sums + product(j, n.width);
        float* line = images + static_cast<std::size_t>(frame) * shape_.image_size();
        for (int i = 0; i < n.blocks; ++i) {
            for (int j = 0; j < n.blocks; ++j) {
                own.in[static_cast<std::size_t>(j)] = padded + product(i * n.padded_side + j, n.depth);
                std::copy_n(start.data(), n.width, sums + product(j, n.width));
            }
            for (int column = 0; column < n.width; column += n.columns)
                add_products(n.blocks, own.in.data(), lines.data(), n.taps, n.length,
                             panels + product(column, rows), own.out.data(), column);
            for (int a = 0; a < std::min(2, side - 2 * i); ++a, line += whole_.line) {
                copy_line(n, sums + a * 2 * channels, line);
                if (relu) apply_relu(line, static_cast<std::size_t>(whole_.line));
            }
        }
    });
}

// Products of features and windows; of windows and features where windows are narrow. In bfloat16, a pair is
// of a window and the one to its right.
struct ConvTraining::Tiles {
    Tiles(const ConvShape& shape, bool narrow, const ConvTrainingKernels& kernels)
        : rows(narrow ? shape.kernel * shape.channels : shape.filters),
          groups((rows + kernels.rows - 1) / kernels.rows),
          panels((narrow ? shape.filters : shape.window()) / kernels.columns),
          count((narrow ? shape.kernel : 1) * groups * panels),
          across((shape.out_side() + kernels.pack - 1) / kernels.pack),
          terms(shape.out_side() * across),
          frames(std::max(1, kTerms / terms)) {}

    int rows, groups;   // of the left operand: a window's line, or all filters
    int panels, count;  // of the right operand; of all tiles
    int across, terms;  // pairs in a line of windows; in a frame
    int frames;         // summed at once
};

// Packs frames and their features as pairs: a value of a window and that of the window to its right.
void ConvTraining::pack_windows(const ConvTrainingKernels& kernels, const Tiles& t, int frames,
                                const float* images, const float* features, int threads, float* image_pairs,
                                float* feature_pairs) const {
    const int filters = shape_.filters, out = shape_.out_side();
    const std::size_t size = shape_.image_size();
    const auto next = product(2, shape_.channels);  // from a window to the one to its right
    const std::size_t paired = size - std::min(size, next);
    parallel_for_blocks(frames, threads, [&](int frame, int) {
        const float* const own = images + static_cast<std::size_t>(frame) * size;
        float* const to = image_pairs + static_cast<std::size_t>(frame) * size;
        kernels.pack_rows(static_cast<std::int64_t>(paired), own, own + next, to);
        kernels.pack_rows(static_cast<std::int64_t>(size - paired), own + paired, nullptr, to + paired);
        const float* row = features + static_cast<std::size_t>(frame) * shape_.features_size();
        float* row_to = feature_pairs + product(frame, t.terms) * static_cast<std::size_t>(filters);
        for (int y = 0; y < out; ++y)
            for (int x = 0; x < out; x += 2, row_to += filters) {
                kernels.pack_rows(filters, row, x + 1 < out ? row + filters : nullptr, row_to);
                row += x + 1 < out ? 2 * filters : filters;
            }
    });
}

// Adds the terms of some frames, whose windows are own.in, to the sums of tiles `begin` to `end`.
void ConvTraining::sum_tiles(const ConvTrainingKernels& kernels, const Tiles& t, int begin, int end,
                             int terms, const float* features, bool from_zero, Thread& own,
                             float* sums) const {
    const int filters = shape_.filters, window = shape_.window();
    float* const group_features = own.scratch.data.get();
    for (int tile = begin; tile < end; ++tile) {
        const int group = tile / t.panels, column = tile % t.panels * kernels.columns;
        const auto [first, some] = rows_of(t.rows, group % t.groups, t.groups);
        if (narrow_) {
            const int line = group / t.groups, row = line * line_ + first;
            kernels.add_window_products(some, terms, own.in.data(), line * whole_.line + first,
                                        features + column, from_zero, sums + product(row, filters) + column,
                                        filters);
            continue;
        }
        if (tile == begin || column == 0)
            for (int i = 0; i < terms; ++i)
                std::copy_n(features + product(i, filters) + first, some, group_features + i * some);
        kernels.add_outer_products(some, terms, group_features, own.in.data(), place_of(column), from_zero,
                                   sums + product(first, window) + column, window);
    }
}

void ConvTraining::weight_gradient_unchecked(const ConvTrainingKernels& kernels, int batch,
                                             const float* images, const float* features, int threads,
                                             float* gradient) {
    const bool pairs = kernels.pack == 2;
    const int filters = shape_.filters, window = shape_.window(), out = shape_.out_side();
    const Tiles t(shape_, narrow_, kernels);
    const std::size_t size = shape_.image_size(), features_size = product(t.terms, filters);
    threads = threads_for(t.count, threads);
    start_threads(threads, t.frames * t.terms, product(t.frames * t.terms, kernels.rows));
    float* const sums = narrow_ ? gradient_.reserve(product(window, filters)) : gradient;
    for (int from = 0; from < batch; from += kSlice) {
        const int slice = std::min(kSlice, batch - from);
        const float* image = images + static_cast<std::size_t>(from) * size;
        const float* feature = features + static_cast<std::size_t>(from) * shape_.features_size();
        if (pairs) {
            const auto most = static_cast<std::size_t>(std::min(batch, kSlice));
            float* const image_pairs = right_.reserve(most * size);
            float* const feature_pairs = left_.reserve(most * features_size);
            pack_windows(kernels, t, slice, image, feature, threads, image_pairs, feature_pairs);
            image = image_pairs;
            feature = feature_pairs;
        }
        // every thread sums its own tiles, over all frames in their order
        parallel_for_blocks(threads, threads, [&](int part, int thread) {
            Thread& own = threads_[static_cast<std::size_t>(thread)];
            const int begin = static_cast<int>(std::int64_t{t.count} * part / threads);
            const int end = static_cast<int>(std::int64_t{t.count} * (part + 1) / threads);
            for (int frame = 0; frame < slice; frame += t.frames) {
                const int terms = std::min(t.frames, slice - frame) * t.terms;
                for (int i = 0; i < terms; ++i) {
                    const int y = i % t.terms / t.across, x = i % t.across * kernels.pack;
                    own.in[static_cast<std::size_t>(i)] =
                        image + window_at(whole_, product(frame + i / t.terms, out * out) +
                                                      static_cast<std::size_t>(y * out + x));
                }
                sum_tiles(kernels, t, begin, end, terms,
                          feature + static_cast<std::size_t>(frame) * features_size, from == 0 && frame == 0,
                          own, sums);
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
