// The lanes of a block: allocation, starts, moves and termination.
#include "core/lanes.hpp"

#include <cmath>
#include <limits>

#include "core/rng.hpp"

namespace worldmodels {
namespace {

// An episode with expected termination stops below this survival probability.
constexpr double kMinSurvival = 0.01;

// Number of rows of a block that hold `count` floats.
constexpr std::size_t in_rows(std::size_t count) {
    return (count + kBlock - 1) / kBlock;
}

// Divides storage among buffers.
struct Rows {
    float* next;
    float* take(std::size_t rows) {
        float* const first = next;
        next += rows * kBlock;
        return first;
    }
};

void copy_column(float* rows, std::size_t count, int from, int to) {
    for (std::size_t r = 0; r < count; ++r) rows[r * kBlock + to] = rows[r * kBlock + from];
}

}  // namespace

Sampling make_sampling(std::uint64_t seed, float temperature) {
    const auto key = philox_key(seed);
    const float largest = std::numeric_limits<float>::max();
    return {{key[0], key[1]},
            std::fmin(1.0F / temperature, largest),
            std::sqrt(temperature),
            temperature == 0.0F};
}

Scratch::Scratch(const WorldModel& model, const ControllerView* controller) {
    const ModelView& m = model.view();
    const std::size_t latent = static_cast<std::size_t>(m.latent),
                      hidden = static_cast<std::size_t>(m.hidden);
    const std::size_t inputs = static_cast<std::size_t>(m.inputs()), even = latent + latent % 2;
    const std::size_t head = static_cast<std::size_t>(m.score_panels + m.moment_panels) * kPanel;
    const bool pairs = model.precision() == Precision::bfloat16;
    const std::size_t x_packed = pairs ? packed_size(Precision::bfloat16, inputs) : 0;
    const std::size_t h_packed = pairs ? packed_size(Precision::bfloat16, hidden) : 0;
    const std::size_t units = controller == nullptr ? 0 : static_cast<std::size_t>(controller->hidden_units);
    const std::size_t narrow_inputs = in_rows((inputs + hidden) * kMaxNarrowLanes);
    const std::size_t narrow_gates =
        in_rows(4 * kMaxNarrowLanes * static_cast<std::size_t>(narrow_units(m.hidden)));
    storage_ = aligned_floats(
        (x_packed + h_packed + hidden + units + narrow_inputs + narrow_gates + head + even) * kBlock);
    Rows rows{storage_.get()};
    buffers_.x_packed = rows.take(x_packed);
    buffers_.h_packed = rows.take(h_packed);
    buffers_.h_next = rows.take(hidden);
    buffers_.units = rows.take(units);
    buffers_.narrow_inputs = rows.take(narrow_inputs);
    buffers_.narrow_gates = rows.take(narrow_gates);
    buffers_.head = rows.take(head);
    buffers_.noise = rows.take(even);
    components_ = aligned_zeros<std::int32_t>(even * kBlock);
    buffers_.component = components_.get();
}

void Scratch::lend(Block& block) const {
    block.x_packed = buffers_.x_packed;
    block.h_packed = buffers_.h_packed;
    block.h_next = buffers_.h_next;
    block.units = buffers_.units;
    block.narrow_inputs = buffers_.narrow_inputs;
    block.narrow_gates = buffers_.narrow_gates;
    block.head = buffers_.head;
    block.noise = buffers_.noise;
    block.component = buffers_.component;
}

Lanes::Lanes(const WorldModel& model, const ControllerView* controller, const Termination& termination)
    : view_(model.view()), termination_(termination) {
    const std::size_t inputs = static_cast<std::size_t>(view_.inputs()),
                      hidden = static_cast<std::size_t>(view_.hidden);
    if (controller != nullptr)
        params_ = controller_size(*controller, view_.latent, view_.hidden, view_.action);
    storage_ = aligned_floats((inputs + 2 * hidden + params_) * kBlock);
    Rows rows{storage_.get()};
    block_.x = rows.take(inputs);
    block_.h = rows.take(hidden);
    block_.c = rows.take(hidden);
    block_.params = rows.take(params_);
    const std::size_t counters = controller == nullptr ? 5 : 3;
    counters_ = aligned_zeros<std::uint32_t>(counters * kBlock);
    block_.candidate = counters_.get();
    block_.episode = block_.candidate + kBlock;
    block_.step = block_.episode + kBlock;
    if (controller == nullptr) block_.keys = block_.step + kBlock;
}

void Lanes::set_seed(int lane, std::uint64_t seed) {
    const auto key = philox_key(seed);
    block_.keys[lane] = key[0];
    block_.keys[kBlock + lane] = key[1];
}

double Lanes::termination_probability(int lane) const {
    if (!view_.done) return 0.0;
    return 1.0 / (1.0 + std::exp(termination_.log_pos_weight - static_cast<double>(done_logit(lane))));
}

bool Lanes::done(int lane, std::uint64_t seed) const {
    if (!view_.done) return false;
    if (termination_.mode == Termination::Mode::threshold) return !(done_logit(lane) <= 0.0F);
    const double u =
        termination_uniform(seed, block_.candidate[lane], block_.episode[lane], block_.step[lane]);
    return !(done_logit(lane) - termination_.log_pos_weight <= std::log(u / (1.0 - u)));
}

bool Lanes::finish_step(int lane, std::uint64_t seed, double& total, double& survival, int& length) {
    const bool expected = termination_.mode == Termination::Mode::expected;
    total += survival * static_cast<double>(reward(lane));
    ++length;
    if (expected) survival *= 1.0 - termination_probability(lane);
    const bool terminated = expected ? !(survival >= kMinSurvival) : done(lane, seed);
    ++block_.step[lane];
    return terminated;
}

void Lanes::start(const Kernels& kernels, const WorldModel& model, std::uint64_t seed,
                  std::uint32_t candidate, std::uint32_t episode, const float* params, int lane) {
    const std::uint32_t row = start_row(seed, candidate, episode, model.initial_rows());
    const auto key = philox_key(seed);
    // The noise buffer is unused between two steps: it holds the contiguous latent.
    kernels.initial_latent(key.data(), candidate, episode, view_.latent, model.initial_mu(row),
                           model.initial_logvar(row), block_.noise);
    for (int d = 0; d < view_.latent; ++d) block_.x[d * kBlock + lane] = block_.noise[d];
    const float* const state = model.initial_state(row);  // h, then c
    if (view_.restart) block_.x[(view_.inputs() - 1) * kBlock + lane] = state == nullptr ? 1.0F : 0.0F;
    for (int k = 0; k < view_.hidden; ++k) {
        block_.h[k * kBlock + lane] = state == nullptr ? 0.0F : state[k];
        block_.c[k * kBlock + lane] = state == nullptr ? 0.0F : state[view_.hidden + k];
    }
    set_stream(candidate, episode, 1, params, lane);
    if (block_.keys != nullptr) set_seed(lane, seed);
}

void Lanes::set_stream(std::uint32_t candidate, std::uint32_t episode, std::uint32_t step,
                       const float* params, int lane) {
    if (params != nullptr)
        for (std::size_t i = 0; i < params_; ++i)
            block_.params[i * kBlock + static_cast<std::size_t>(lane)] = params[i];
    block_.candidate[lane] = candidate;
    block_.episode[lane] = episode;
    block_.step[lane] = step;
}

void Lanes::save(int lane, float* to) const {
    for (int i = 0; i < view_.inputs(); ++i) *to++ = block_.x[i * kBlock + lane];
    for (int k = 0; k < view_.hidden; ++k) *to++ = block_.h[k * kBlock + lane];
    for (int k = 0; k < view_.hidden; ++k) *to++ = block_.c[k * kBlock + lane];
}

void Lanes::restore(const float* from, std::uint32_t candidate, std::uint32_t episode, std::uint32_t step,
                    const float* params, int lane) {
    for (int i = 0; i < view_.inputs(); ++i) block_.x[i * kBlock + lane] = *from++;
    for (int k = 0; k < view_.hidden; ++k) block_.h[k * kBlock + lane] = *from++;
    for (int k = 0; k < view_.hidden; ++k) block_.c[k * kBlock + lane] = *from++;
    set_stream(candidate, episode, step, params, lane);
}

void Lanes::move(int from, int to) {
    const std::size_t hidden = static_cast<std::size_t>(view_.hidden);
    copy_column(block_.x, static_cast<std::size_t>(view_.inputs()), from, to);
    copy_column(block_.h, hidden, from, to);
    copy_column(block_.c, hidden, from, to);
    copy_column(block_.params, params_, from, to);
    block_.candidate[to] = block_.candidate[from];
    block_.episode[to] = block_.episode[from];
    block_.step[to] = block_.step[from];
}

}  // namespace worldmodels
