// The functions that worldmodels.js calls. Arguments are checked there.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "core/decoder.hpp"
#include "core/encoder.hpp"
#include "core/rng.hpp"
#include "kernels/simd_targets.hpp"
#include "wasm/evolution.hpp"

using namespace worldmodels;

#define EXPORT(name) extern "C" __attribute__((export_name(#name), used))

namespace {

const Kernels& kernels = baseline_kernels;

struct World {
    WorldModel model;
    double log_pos_weight;
};

struct Dream {
    Dream(const World& world, const Termination& t)
        : model(world.model), termination(t), lanes(model, nullptr, t), scratch(model, nullptr) {
        scratch.lend(lanes.block());
    }
    const WorldModel& model;
    Termination termination;
    Lanes lanes;
    Scratch scratch;
    double total = 0.0, survival = 1.0;
    int length = 0;
    std::uint32_t row = 0;  // of the initial states
};

std::uint64_t joined(std::uint32_t low, std::uint32_t high) {
    return std::uint64_t{high} << 32 | low;
}

Termination termination_of(const World& world, int mode) {
    return {static_cast<Termination::Mode>(mode), world.log_pos_weight};
}

}  // namespace

EXPORT(allocate) void* allocate(std::size_t bytes) {
    void* const memory = std::malloc(bytes);
    if (memory == nullptr) __builtin_trap();
    return memory;
}

EXPORT(release) void release(void* memory) {
    std::free(memory);
}

// Weights as WorldModelWeights has them, initial states (rows, latent).
EXPORT(world_create)
World* world_create(int latent, int action, int hidden, int mixtures, bool restart, bool done, bool reward,
                    double pos_weight, const float* input, const float* recurrent, const float* bias,
                    const float* head, const float* head_bias, const float* mu, const float* logvar,
                    std::uint32_t rows) {
    return new World{WorldModel({latent, action, hidden, mixtures, restart, done, reward},
                                {input, recurrent, bias, head, head_bias}, Precision::float32,
                                {mu, logvar, nullptr, nullptr, rows}),
                     std::log(pos_weight)};
}

EXPORT(decoder_create)
Decoder* decoder_create(int latent, const float* point, const float* point_bias, const float* weight0,
                        const float* bias0, const float* weight1, const float* bias1, const float* weight2,
                        const float* bias2) {
    return new Decoder({point, point_bias, {weight0, weight1, weight2}, {bias0, bias1, bias2}}, latent);
}

// rgba (64, 64, 4)
EXPORT(decode) void decode(const Decoder* decoder, const float* z, std::uint8_t* rgba) {
    constexpr int kPixels = 64 * 64;
    decoder->decode_unchecked(kernels, z, 1, 1, rgba);
    for (int i = kPixels - 1; i >= 0; --i) {  // from the end: in place
        std::uint8_t pixel[4] = {rgba[3 * i], rgba[3 * i + 1], rgba[3 * i + 2], 255};
        std::memcpy(rgba + 4 * i, pixel, sizeof pixel);
    }
}

EXPORT(encoder_create)
Encoder* encoder_create(int latent, const float* weight0, const float* bias0, const float* weight1,
                        const float* bias1, const float* weight2, const float* bias2, const float* weight3,
                        const float* bias3, const float* mu, const float* mu_bias, const float* logvar,
                        const float* logvar_bias) {
    return new Encoder({{weight0, weight1, weight2, weight3},
                        {bias0, bias1, bias2, bias3},
                        mu,
                        mu_bias,
                        logvar,
                        logvar_bias},
                       latent);
}

// rgb (64, 64, 3)
EXPORT(encode) void encode(const Encoder* encoder, const std::uint8_t* rgb, float* mu, float* logvar) {
    encoder->encode_unchecked(kernels, rgb, 1, 1, mu, logvar);
}

EXPORT(dream_create) Dream* dream_create(const World* world, int mode) {
    return new Dream(*world, termination_of(*world, mode));
}

EXPORT(dream_free) void dream_free(Dream* dream) {
    delete dream;
}

EXPORT(dream_reset)
void dream_reset(Dream* dream, std::uint32_t low, std::uint32_t high, std::uint32_t episode) {
    const std::uint64_t seed = joined(low, high);
    dream->lanes.start(kernels, dream->model, seed, 0, episode, nullptr, 0);
    dream->row = start_row(seed, 0, episode, dream->model.initial_rows());
    dream->total = 0.0, dream->survival = 1.0, dream->length = 0;
}

// Writes the reward and M's termination probability. Returns whether the episode terminates.
EXPORT(dream_step)
bool dream_step(Dream* dream, double temperature, const float* action, double* out) {
    Lanes& lanes = dream->lanes;
    for (int a = 0; a < dream->model.view().action; ++a) lanes.set_action(0, a, action[a]);
    const Sampling sampling = make_sampling(0, static_cast<float>(temperature));  // the lane has its own key
    step(kernels, dream->model, nullptr, sampling, lanes.block(), 1);
    out[0] = static_cast<double>(lanes.reward(0));
    out[1] = lanes.termination_probability(0);
    return lanes.finish_step(0, lanes.seed(0), dream->total, dream->survival, dream->length);
}

EXPORT(dream_act)
void dream_act(Dream* dream, bool use_c, bool use_h, bool bias, bool carracing, int hidden_units,
               const int* choices, int num_choices, const float* params, float* action) {
    const ModelView& m = dream->model.view();
    const ControllerView controller{use_c, use_h, bias, carracing, hidden_units, choices, num_choices};
    const std::size_t size = controller_size(controller, m.latent, m.hidden, m.action);
    const std::size_t rows = size + static_cast<std::size_t>(hidden_units);
    AlignedFloats columns = aligned_floats(rows * kBlock);
    for (std::size_t i = 0; i < size; ++i) columns[i * kBlock] = params[i];
    Block block = dream->lanes.block();
    block.params = columns.get();
    block.units = columns.get() + size * kBlock;
    kernels.act(m, controller, block, 1);
    for (int a = 0; a < m.action; ++a) action[a] = dream->lanes.action(0, a);
}

// out: z (latent), c (hidden), h (hidden)
EXPORT(dream_state) void dream_state(const Dream* dream, float* out) {
    const ModelView& m = dream->model.view();
    const Block& block = dream->lanes.block();
    for (int d = 0; d < m.latent; ++d) *out++ = block.x[d * kBlock];
    for (int k = 0; k < m.hidden; ++k) *out++ = block.c[k * kBlock];
    for (int k = 0; k < m.hidden; ++k) *out++ = block.h[k * kBlock];
}

// out (3, mixtures): weights, means and standard deviations from which a dimension of z was sampled. Returns
// the number of components.
EXPORT(dream_mixture)
int dream_mixture(const Dream* dream, int dimension, double temperature, float* out) {
    const ModelView& m = dream->model.view();
    float *const weights = out, *const means = out + m.mixtures, *const stds = out + 2 * m.mixtures;
    if (dream->length == 0) {
        weights[0] = 1.0F;
        means[0] = dream->model.initial_mu(dream->row)[dimension];
        stds[0] = std::exp(0.5F * dream->model.initial_logvar(dream->row)[dimension]);
        return 1;
    }
    const Sampling sampling = make_sampling(0, static_cast<float>(temperature));
    const float* const head = dream->lanes.block().head;
    const auto number = [&](int row, int k) { return head[(row + dimension * m.mixtures + k) * kBlock]; };
    float largest = number(m.score_row(), 0), total = 0.0F;
    for (int k = 1; k < m.mixtures; ++k) largest = std::max(largest, number(m.score_row(), k));
    for (int k = 0; k < m.mixtures; ++k) {
        const float below = number(m.score_row(), k) - largest;
        weights[k] =
            sampling.greedy ? (below == 0.0F ? 1.0F : 0.0F) : std::exp(below * sampling.inverse_temperature);
        total += weights[k];
        means[k] = number(m.mean_row(), k);
        const float logstd = number(m.mean_row() + m.latent * m.mixtures, k);
        stds[k] = std::exp(std::clamp(logstd, kLogstdMin, kLogstdMax)) * sampling.noise_scale;
    }
    for (int k = 0; k < m.mixtures; ++k) weights[k] /= total;
    return m.mixtures;
}

EXPORT(evolution_create)
Evolution* evolution_create(const World* world, bool use_c, bool use_h, bool bias, bool carracing,
                            int hidden_units, const int* choices, int num_choices, int mode, int popsize,
                            int episodes, double sigma0, double temperature, int max_steps, std::uint32_t low,
                            std::uint32_t high) {
    return new Evolution(kernels, world->model,
                         {.controller = {use_c, use_h, bias, carracing, hidden_units, choices, num_choices},
                          .termination = termination_of(*world, mode),
                          .popsize = popsize,
                          .episodes = episodes,
                          .max_steps = max_steps,
                          .sigma0 = sigma0,
                          .temperature = static_cast<float>(temperature),
                          .seed = joined(low, high)});
}

EXPORT(evolution_free) void evolution_free(Evolution* evolution) {
    delete evolution;
}

EXPORT(evolution_advance) bool evolution_advance(Evolution* evolution, int steps) {
    return evolution->advance(steps);
}

// out (3): generations, step size, steps of the last generation. Returns the candidates' mean returns.
EXPORT(evolution_summary) const double* evolution_summary(const Evolution* evolution, double* out) {
    out[0] = static_cast<double>(evolution->generation());
    out[1] = evolution->sigma();
    out[2] = static_cast<double>(evolution->steps());
    return evolution->returns().data();
}

EXPORT(evolution_mean) void evolution_mean(const Evolution* evolution, float* out) {
    std::copy(evolution->mean().begin(), evolution->mean().end(), out);
}

EXPORT(evolution_best) void evolution_best(const Evolution* evolution, float* out) {
    const std::vector<float>& of =
        evolution->best().empty() ? std::vector<float>(evolution->mean().size()) : evolution->best();
    std::copy(of.begin(), of.end(), out);
}

// The first random words of a Philox counter, for tests.
EXPORT(philox)
void philox(std::uint32_t low, std::uint32_t high, std::uint32_t block, std::uint32_t step,
            std::uint32_t episode, std::uint32_t candidate, std::uint32_t* out) {
    const auto words = philox4x32({block, step, episode, candidate}, philox_key(joined(low, high)));
    std::copy(words.begin(), words.end(), out);
}

namespace worldmodels {

// The search of this build has a diagonal C.
void SymmetricEigen::decompose(std::int64_t, double*, double*) {
    __builtin_trap();
}

}  // namespace worldmodels
