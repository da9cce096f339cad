// The interface of the kernels: constants, packed layouts and the table of entry points per SIMD target. Free
// of ISA flags.
#pragma once

#include <cstddef>
#include <cstdint>

namespace worldmodels {

// Lanes (episodes) of a block: the length of every row of its buffers.
inline constexpr int kBlock = 32;
// Rows of a weight panel: 3 LSTM units x gates i, f, g, o, or 12 rows of the head.
inline constexpr int kPanel = 12;
inline constexpr int kPanelUnits = 3;
// Floats of a moment table: the means (or log stds) of a group of dimensions.
inline constexpr int kTable = 16;
// Most mixtures for which moment tables are packed.
inline constexpr int kTableMixtures = 8;
// Rows and columns of a tile of CMA-ES's matrix products.
inline constexpr std::int64_t kTile = 8;
// Pixels of a frame's side, bytes of its rows, and bits of the weights of resizing.
inline constexpr int kScreenSide = 64, kScreenRow = 3 * kScreenSide, kWeightBits = 22;
// Most lanes of a narrow kernel, whose vectors hold rows instead of lanes.
inline constexpr int kMaxNarrowLanes = 4;
// models/mdnrnn.py LOGSTD_RANGE
inline constexpr float kLogstdMin = -8.0F, kLogstdMax = 8.0F;

// Dimensions that share a moment table.
constexpr int table_dims(int mixtures) {
    return mixtures <= 5 ? 3 : 2;
}

// Length of a row of gates in a narrow kernel: whole panels and whole vectors.
constexpr int narrow_units(int hidden) {
    return (hidden + 47) / 48 * 48;
}

// M, packed. Every panel is (1 + columns, kPanel): the biases, then one row per input column. In bfloat16 a
// float holds the weights of two columns, the earlier one in its low half, and there are half as many columns
// (those of [z, action, restart] and of h rounded up separately).
struct ModelView {
    int latent, action, hidden, mixtures;
    bool restart, done, reward;
    const float* lstm;  // (ceil(hidden / 3), 1 + inputs + hidden, 12), rows unit-major: i f g o of each unit
    const float* head;  // (score_panels + moment_panels, 1 + hidden, 12)
    int score_panels;   // rows [done] [reward] then logits (Z, K)
    int moment_panels;  // rows means (Z, K) then log stds (Z, K)
    const float* moments;  // (ceil(Z / dims), 1 + hidden, 2, kTable), or null where K > kTableMixtures

    int inputs() const { return latent + action + (restart ? 1 : 0); }
    int score_row() const { return (done ? 1 : 0) + (reward ? 1 : 0); }
    int mean_row() const { return score_panels * kPanel; }
};

// C: layers of tanh(W f + b) over the features [z, c, h]; parameters are (size, kBlock), one column per lane.
// With discrete actions the last layer has no tanh, and each action is the one-hot vector of its arg max.
struct ControllerView {
    bool use_c, use_h, bias, carracing;
    int hidden_units;
    const int* choices = nullptr;  // numbers of values of the discrete actions, which sum to M's action
    int num_choices = 0;           // 0: continuous actions
};

// A convolution without padding. Panels as in ModelView: (ceil(filters / 12), 1 + columns, 12), columns in
// the order (y, x, channel). Winograd's minimal filtering has one set of panels per product, numbered
// products() * line + column. The biases are in the set of line 1 and column 1; columns are in the order (odd
// line, odd column, channel).
struct ConvView {
    int side, channels;  // of the input, a square
    int filters, kernel, stride;
    bool relu;
    // Needs 4x4 windows, stride 2, out_side >= 2, channels a multiple of kBlock, filters a multiple of 4.
    bool winograd;
    const float* panels;

    int out_side() const { return (side - kernel) / stride + 1; }
    int columns() const { return (winograd ? 4 : kernel * kernel) * channels; }
    std::ptrdiff_t panel_size() const { return std::ptrdiff_t{kPanel} * (1 + columns()); }
    int panels_count() const { return (filters + kPanel - 1) / kPanel; }
    std::ptrdiff_t panels_size() const { return panels_count() * panel_size(); }
    // Winograd's tiles along an axis: tiles of three outputs, then at most two tiles of two.
    int tiles() const { return (out_side() + 2) / 3; }
    int tiles_of_three() const { return out_side() - 2 * tiles(); }
    // Products along an axis.
    int products() const { return tiles_of_three() > 0 ? 4 : 3; }
    // Floats of the transformed inputs: of a tile in two vectors of lanes, or of all tiles of one frame.
    std::ptrdiff_t scratch_size() const {
        const int many = tiles() * tiles() < kBlock ? kBlock : tiles() * tiles();
        return winograd ? std::ptrdiff_t{many} * products() * products() * columns() : 0;
    }
};

// Floats of a panel of V's decoder, pixels of zeros at either end of a line, and numbers of a frame's line.
inline constexpr int kFilterPanel = 32, kPadding = 2, kFrameLine = 64 * 3;

// A transposed convolution of stride 2. Pixel (2 y + a, 2 x + b) sums the pixels (y - u, x - v) of the input
// times the taps (2 u + a, 2 v + b), for the parities a and b. The input is (side, side + 2 kPadding,
// channels), the padding zero. Weights are (a, b, u, v, channel, filters), v descending. Of the last layer,
// all parities are filters: (u, v, channel, 12), the twelve in the order (a, b, filter).
struct DeconvView {
    int side, channels;  // of the input, a square
    int filters, kernel;
    bool merged;  // parities are filters
    const float* weights;
    const float* bias;  // (filters), or (12)

    int out_side() const { return 2 * side - 2 + kernel; }
    std::ptrdiff_t in_stride() const { return std::ptrdiff_t{side + 2 * kPadding} * channels; }
    int taps(int parity) const { return (kernel - parity + 1) / 2; }
    int columns() const { return merged ? kPanel : filters; }  // of the weights
    // Floats before the weights of a parity 2 a + b.
    std::ptrdiff_t parity_offset(int parity) const {
        std::ptrdiff_t taps_before = 0;
        for (int p = 0; p < parity; ++p) taps_before += taps(p / 2) * taps(p % 2);
        return taps_before * channels * columns();
    }
};

// A line y of the pixels of one parity 2 a + b.
struct DeconvLine {
    int y, pixels;
    int across;               // taps v
    int first_tap, last_tap;  // u with y - u in the input
    const float* weights;
    std::ptrdiff_t tap_size;  // floats of the weights of one u

    DeconvLine(const DeconvView& conv, int parity, int line)
        : y(line),
          pixels((conv.out_side() - parity % 2 + 1) / 2),
          across(conv.taps(parity % 2)),
          first_tap(line < conv.side ? 0 : line - conv.side + 1),
          last_tap(line < conv.taps(parity / 2) ? line + 1 : conv.taps(parity / 2)),
          weights(conv.weights + conv.parity_offset(parity)),
          tap_size(std::ptrdiff_t{across} * conv.channels * conv.columns()) {}
    // The first pixel, in the padded input, that enters pixel x.
    int column(int x) const { return x - across + 1 + kPadding; }
};

// V's decoder: a matrix of 5 * 5 * 128 rows, then three transposed convolutions. Panels of the matrix as in
// ModelView, of kFilterPanel rows in the order (y, x, channel).
struct DecoderView {
    int latent;
    const float* point;
    DeconvView layers[3];
};

// The inputs of the layers, padded. Kernels leave the padding as it is.
struct DecoderBuffers {
    float* inputs[3];
};

// Resizing along one axis: output pixel i is the mean of `count` input pixels from first[i] on, with weights
// that are repeated four times.
struct TapsView {
    int count;
    const int* first;             // (64)
    const std::int32_t* weights;  // (64, count, 4), sums of 2^kWeightBits
};

struct Sampling {
    std::uint32_t key[2];  // the seed's low and high word; unused where the block has keys of its own
    float inverse_temperature;
    float noise_scale;  // sqrt(temperature)
    bool greedy;        // temperature 0: the most probable component, no noise
};

// The state of kBlock lanes. Every buffer is (rows, kBlock), aligned to 64 bytes.
struct Block {
    float* x;              // (inputs): z, action, restart flag
    float* h;              // (hidden)
    float* x_packed;       // (ceil(inputs / 2)): x as pairs of bfloat16; null in float32
    float* h_packed;       // (ceil(hidden / 2)): h as pairs of bfloat16; null in float32
    float* h_next;         // (hidden): swapped with h by every step
    float* c;              // (hidden)
    float* params;         // (controller size)
    float* units;          // (hidden_units)
    float* narrow_inputs;  // ((inputs + hidden) * kMaxNarrowLanes): contiguous inputs of narrow kernels
    float* narrow_gates;   // (4 * kMaxNarrowLanes * narrow_units(hidden)): their gates
    float* head;   // ((score_panels + moment_panels) * kPanel): row 0 holds the done logit, then the reward
    float* noise;  // (latent rounded up to even)
    std::int32_t* component;   // (latent rounded up to even)
    std::uint32_t* candidate;  // (1)
    std::uint32_t* episode;    // (1)
    std::uint32_t* step;       // (1): 1 for an episode's first step
    std::uint32_t* keys;       // (2): each lane's own seed, low and high word; null in rollouts
};

enum class Function { exp, log, tanh, sin_turns, cos_turns };

// Runs `rounds` rounds of independent multiply-adds in registers. Returns the floating-point operations.
using MultiplyAdds = double (*)(int rounds);

// The training of M, in one precision of the products; sums, states and activations are float32. Operands are
// packed as described in matmul-inl.hpp; start and every row of `out` are aligned and have whole panels of
// columns.
struct RNNKernels {
    int pack;   // successive k in one float of a packed operand
    int depth;  // floats of a row in a block of the left operand, to whose multiples it is rounded up
    void (*pack_left)(const float* const* x, int rows, int depth, float* to);
    void (*pack_left_columns)(const float* const* x, int at, int rows, int depth, float* to);
    void (*pack_right)(const float* const* x, int depth, int columns, float* to);
    void (*pack_right_columns)(const float* const* x, int depth, int columns, float* to);
    // out[r] (columns) = start + left @ right, or += where start is null; left is packed from its rows.
    void (*matmul)(const float* left, const float* right, int rows, int columns, int depth,
                   const float* start, float* const* out);
    // The same; left is packed from its columns.
    void (*matmul_columns)(const float* left, const float* right, int rows, int columns, int depth,
                           const float* start, float* const* out);
    // sums (columns) += columns from `at` on of the rows x[k].
    void (*add_rows)(const float* const* x, int depth, int at, int columns, float* sums);
    void (*lstm_forward)(int units, float* gates, const float* c_before, float* c, float* h);
    void (*lstm_backward)(int units, float* gates, const float* c_before, const float* c, const float* dh,
                          float* dc);
    double (*mdn_loss)(int latent, int width, int mixtures, float scale, const float* z, float* head,
                       float* scratch);
};

// The training of V's convolutions, in one precision of the products; sums and activations are float32. In
// bfloat16 a float of left, right and panel holds a pair, and lengths and counts are those of pairs.
struct ConvTrainingKernels {
    int pack;     // products in one float of an operand
    int columns;  // of a panel
    int lanes;    // columns of a panel of one vector
    int rows;     // most rows of outer products
    // out[r] + at (columns) += the sum of left[r][offsets[s] + k] * panel[s * length + k] (columns) over s
    // and k < length. Panels are aligned.
    void (*add_products)(int rows, const float* const* left, const std::ptrdiff_t* offsets, int segments,
                         int length, const float* panel, float* const* out, std::ptrdiff_t at);
    // The same with panels of one vector.
    void (*add_vector_products)(int rows, const float* const* left, const std::ptrdiff_t* offsets,
                                int segments, int length, const float* panel, float* const* out,
                                std::ptrdiff_t at);
    // out + r * stride (columns) = or += the sum of left[m * rows + r] * right[m][at ...] over m < count.
    void (*add_outer_products)(int rows, int count, const float* left, const float* const* right,
                               std::ptrdiff_t at, bool from_zero, float* out, std::ptrdiff_t stride);
    // out + r * stride (columns) = or += the sum of left[m][at + r] * right[m * stride ...] over m < count.
    void (*add_window_products)(int rows, int count, const float* const* left, std::ptrdiff_t at,
                                const float* right, bool from_zero, float* out, std::ptrdiff_t stride);
    // to (ceil(count / 2)) = pairs of neighbours in bfloat16.
    void (*pack_neighbours)(std::int64_t count, const float* from, float* to);
    // to (count) = pairs of low and high in bfloat16; high is 0 where it is null.
    void (*pack_rows)(std::int64_t count, const float* low, const float* high, float* to);
    // A panel's operand from its columns x[c] (depth).
    void (*pack_right_columns)(const float* const* x, int depth, int columns, float* to);
    // before (count, channels) = gradient, 0 where the layer's output is 0. sums (channels) += its rows.
    void (*relu_backward)(std::int64_t count, int channels, const float* output, const float* gradient,
                          float* before, float* sums);
};

// Entry points of tests alone.
struct TestKernels {
    // out[i] = f(in[i])
    void (*elementwise)(Function, const float* in, float* out, std::size_t count);
    // out (4, count): two normals, from the Philox words 0 and 1, then two uniforms, from the words 2 and 3.
    void (*draws)(const std::uint32_t key[2], std::uint32_t candidate, std::uint32_t episode,
                  std::uint32_t step, std::uint32_t count, float* out);
    // bfloat16 products by float32 arithmetic, on every target
    ConvTrainingKernels conv_bfloat16;
    RNNKernels rnn_bfloat16;
};

// The entry points of one SIMD target.
struct Kernels {
    const char* name;
    int lanes;  // of one vector
    // Bit n - 1: a step of n lanes computes no idle lane. Of bfloat16 steps, 0 where the target has none.
    std::uint32_t widths, widths_bfloat16;
    bool (*supported)();
    // One step of the first `lanes` lanes. Without a controller the actions are those in x. Returns the
    // number of lanes computed, idle ones included.
    int (*step)(const ModelView&, const ControllerView*, const Sampling&, Block&, int lanes);
    // The same with bfloat16 products, for a model packed in bfloat16; null where the target has none.
    int (*step_bfloat16)(const ModelView&, const ControllerView*, const Sampling&, Block&, int lanes);
    // The actions of a step, without the step: written to x, for the first `lanes` lanes.
    void (*act)(const ModelView&, const ControllerView&, Block&, int lanes);
    // Advances the LSTM state of the first `lanes` lanes by [z, action, restart] in x, in float32.
    void (*lstm_step)(const ModelView&, Block&, int lanes);
    // One layer of V's encoder: in (side, side, channels, kBlock) to out (out_side, out_side, filters,
    // kBlock), for the first `lanes` lanes; scratch has scratch_size floats. All are aligned to 64 bytes.
    void (*convolve)(const ConvView&, const float* in, float* scratch, float* out, int lanes);
    // One frame, the same bits: in (side, side, channels) to out (out_side, out_side, filters).
    void (*convolve_frame)(const ConvView&, const float* in, float* scratch, float* out);
    // One frame of V's decoder: z (latent) to frame (64, 64, 3).
    void (*decode_frame)(const DecoderView&, const float* z, const DecoderBuffers&, std::uint8_t* frame);
    // The first latent of an episode: mu + exp(logvar / 2) * normal; mu, logvar, z: (latent).
    void (*initial_latent)(const std::uint32_t key[2], std::uint32_t candidate, std::uint32_t episode,
                           int latent, const float* mu, const float* logvar, float* z);
    // CMA-ES, doubles: out[r * kTile + c] = sum over k < depth of a[k * kTile + r] * b[k * kTile + c], in the
    // order of k.
    void (*tile_product)(std::int64_t depth, const double* a, const double* b, double* out);
    // CMA-ES: out[0..count) ~ N(0, 1), a pure function of (key, generation, row) with the same bits on every
    // target. out[i] does not depend on count.
    void (*normals)(const std::uint32_t key[2], std::uint64_t generation, std::uint32_t row,
                    std::int64_t count, double* out);
    // One row of a screen (width, 3) to (64, 3). Reads and writes one byte more.
    void (*resize_columns)(const TapsView&, const std::uint8_t* in, std::uint8_t* out);
    // Rows (height, 64, 3) to (64, 64, 3).
    void (*resize_rows)(const TapsView&, const std::uint8_t* rows, std::uint8_t* out);
    MultiplyAdds multiply_adds;
    MultiplyAdds multiply_adds_bfloat16;  // null where the target has none
    ConvTrainingKernels conv;
    const ConvTrainingKernels* conv_bfloat16;  // null where the target has none
    RNNKernels rnn;
    const RNNKernels* rnn_bfloat16;  // null where the target has none
    TestKernels testing;
};

// The SIMD targets that this machine can run, "baseline" first, the fastest last.
struct SimdTargets {
    const Kernels* const* begin;
    std::size_t count;
};
SimdTargets supported_simd_targets();

}  // namespace worldmodels
