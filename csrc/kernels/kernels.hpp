// What the kernels compute and the table through which the core calls them; safe to include anywhere.
#pragma once

#include <cstddef>
#include <cstdint>

namespace worldmodels {

inline constexpr int kBlock =
    32;  // lanes (episodes) of a block; every row of a block's buffers has this length
inline constexpr int kPanel =
    12;  // rows of a weight panel: 3 LSTM units x gates i, f, g, o, or 12 rows of the head
inline constexpr int kPanelUnits = 3;  // LSTM units of a panel
inline constexpr int kTable =
    16;  // floats of a moment table: the means (or log stds) of a group of dimensions
inline constexpr int kTableMixtures = 8;  // most mixtures for which moment tables are packed
inline constexpr std::int64_t kTile = 8;  // rows and columns of a tile of CMA-ES's matrix products
inline constexpr int kMostFew = 4;        // lanes that a kernel for few lanes takes
inline constexpr float kLogstdMin = -8.0F, kLogstdMax = 8.0F;  // models/mdnrnn.py LOGSTD_RANGE

// Dimensions that share a moment table.
constexpr int table_dims(int mixtures) {
    return mixtures <= 5 ? 3 : 2;
}

// Length of a row of gates for few lanes: whole panels and whole vectors.
constexpr int few_units(int hidden) {
    return (hidden + 47) / 48 * 48;
}

// M, packed. Every panel is (1 + columns, kPanel) words: the biases, then one row per input column. In
// bfloat16 a word holds the weights of two columns, the earlier one in its low half, and there are half as
// many (each stretch of inputs, [z, action, restart] and h, rounded up).
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
struct ControllerView {
    bool use_c, use_h, bias, carracing;
    int hidden_units;
};

// A convolution without padding; panels as ModelView's: (ceil(filters / 12), 1 + columns, 12), the columns in
// the order (y, x, channel). Those of Winograd's minimal filtering come once for every product, product
// products() * line + column, with the biases in that of line 1 and column 1 alone and the columns in the
// order (odd line, odd column, channel).
struct ConvView {
    int side, channels;  // of what it sees, a square
    int filters, kernel, stride;
    bool relu;
    bool winograd;  // for windows of 4x4, stride 2, an out_side of 2 or more, channels in whole blocks and
                    // filters in fours
    const float* panels;

    int out_side() const { return (side - kernel) / stride + 1; }
    int columns() const { return (winograd ? 4 : kernel * kernel) * channels; }
    std::ptrdiff_t panel_size() const { return std::ptrdiff_t{kPanel} * (1 + columns()); }
    std::ptrdiff_t panels_size() const { return (filters + kPanel - 1) / kPanel * panel_size(); }
    // Winograd's tiles along an axis: of three outputs, then as few of two as fill it, that is two at most.
    int tiles() const { return (out_side() + 2) / 3; }
    int tiles_of_three() const { return out_side() - 2 * tiles(); }
    // Products along an axis.
    int products() const { return tiles_of_three() > 0 ? 4 : 3; }
    // Floats for what the products take of a tile in two vectors of lanes, or of all tiles of a frame alone.
    std::ptrdiff_t scratch_size() const {
        const int many = tiles() * tiles() < kBlock ? kBlock : tiles() * tiles();
        return winograd ? std::ptrdiff_t{many} * products() * products() * columns() : 0;
    }
};

struct Sampling {
    std::uint32_t key[2];  // the seed's low and high word, where the block has no keys of its own
    float inverse_temperature;
    float noise_scale;  // sqrt(temperature)
    bool greedy;        // temperature 0: the likeliest component, no noise
};

// The state of kBlock lanes; every buffer is (rows, kBlock), 64-byte aligned.
struct Block {
    float* x;           // (inputs): z, action, restart flag
    float* h;           // (hidden)
    float* x_words;     // (ceil(inputs / 2)): x as pairs of bfloat16; null in float32
    float* h_words;     // (ceil(hidden / 2)): h as pairs of bfloat16; null in float32
    float* h_next;      // (hidden): swapped with h by every step
    float* c;           // (hidden)
    float* params;      // (controller size)
    float* units;       // (hidden_units)
    float* few_inputs;  // ((inputs + hidden) * kMostFew): without gaps, for few lanes
    float* few_gates;   // (4 * kMostFew * few_units(hidden)): likewise
    float* head;   // ((score_panels + moment_panels) * kPanel): row 0 holds the done logit, then the reward
    float* noise;  // (latent rounded up to even)
    std::int32_t* component;   // (latent rounded up to even)
    std::uint32_t* candidate;  // (1)
    std::uint32_t* episode;    // (1)
    std::uint32_t* step;       // (1): 1 for an episode's first step
    std::uint32_t* keys;       // (2): each lane's own seed, low and high word; null in rollouts
};

enum class Function { exp, log, tanh, sigmoid, sin_turns, cos_turns };

// Does `rounds` rounds of independent multiply-adds in registers; returns the floating-point operations.
using MultiplyAdds = double (*)(int rounds);

struct Kernels {
    const char* name;
    int lanes;  // of one vector
    bool (*supported)();
    // Plays one step of the first `lanes` lanes; without a controller the actions are taken as they stand in
    // x. Returns the lanes it computed, idle ones included.
    int (*step)(const ModelView&, const ControllerView*, const Sampling&, Block&, int lanes);
    // The same with products of bfloat16, for a model packed so; null where the level has none.
    int (*step_bfloat16)(const ModelView&, const ControllerView*, const Sampling&, Block&, int lanes);
    // Moves the memory of the first `lanes` lanes on by [z, action, restart] in x, in float32.
    void (*remember)(const ModelView&, Block&, int lanes);
    // One layer of V's encoder: in (side, side, channels, kBlock) to out (out_side, out_side, filters,
    // kBlock), for the first `lanes` lanes; scratch has scratch_size floats. All are aligned to 64 bytes.
    void (*convolve)(const ConvView&, const float* in, float* scratch, float* out, int lanes);
    // The same bits for one frame by itself: in (side, side, channels) to out (out_side, out_side, filters).
    void (*convolve_frame)(const ConvView&, const float* in, float* scratch, float* out);
    // The first latent of an episode: mu + exp(logvar / 2) * normal; mu, logvar, z: (latent).
    void (*start)(const std::uint32_t key[2], std::uint32_t candidate, std::uint32_t episode, int latent,
                  const float* mu, const float* logvar, float* z);
    // CMA-ES, doubles: out[r * kTile + c] = sum over k < depth of a[k * kTile + r] * b[k * kTile + c], in the
    // order of k.
    void (*tile_product)(std::int64_t depth, const double* a, const double* b, double* out);
    // CMA-ES: out[0..count) ~ N(0, 1), a pure function of (key, generation, row), the same bits at every
    // level: out[i] does not depend on count or on what was drawn before.
    void (*normals)(const std::uint32_t key[2], std::uint64_t generation, std::uint32_t row,
                    std::int64_t count, double* out);
    // out[i] = f(in[i]), for tests.
    void (*elementwise)(Function, const float* in, float* out, std::size_t count);
    // The two normals of the draws' words 0 and 1 and the two uniforms of words 2 and 3, for tests; out (4,
    // count).
    void (*draws)(const std::uint32_t key[2], std::uint32_t candidate, std::uint32_t episode,
                  std::uint32_t step, std::uint32_t count, float* out);
    MultiplyAdds multiply_adds;
    MultiplyAdds multiply_adds_bfloat16;  // null where the level has none
};

// Levels this machine can run, plainest first.
struct Levels {
    const Kernels* const* begin;
    std::size_t count;
};
Levels supported_levels();

}  // namespace worldmodels
