// Every SIMD target's kernels against float64: elementary functions within the bounds of
// kernels/vecmath-inl.hpp,// draws, and whole steps within the rounding errors of their sums.
#include <algorithm>
#include <string>

#include "check.hpp"
#include "core/lanes.hpp"
#include "random_model.hpp"

namespace {

using namespace worldmodels;
using namespace worldmodels::test;

constexpr double kTau = 6.283185307179586;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// ---- elementary functions

std::vector<float> span(double low, double high, int count = 20'001) {
    std::vector<float> x;
    for (int i = 0; i < count; ++i) x.push_back(static_cast<float>(low + (high - low) * i / (count - 1)));
    return x;
}

// Units in the last place of the float next to `want`, of the smallest denormal at least.
double ulps(float got, double want) {
    const double magnitude = std::fabs(want);
    const int exponent = magnitude > 0.0 ? std::max(std::ilogb(magnitude), -126) : -126;
    return std::fabs(static_cast<double>(got) - want) / std::ldexp(1.0, exponent - 23);
}

std::vector<float> apply(const Kernels& kernels, Function f, const std::vector<float>& x) {
    std::vector<float> out(x.size());
    kernels.testing.elementwise(f, x.data(), out.data(), x.size());
    return out;
}

double truth(Function f, double x) {
    switch (f) {
        case Function::exp:
            return std::exp(x);
        case Function::log:
            return std::log(x);
        case Function::tanh:
            return std::tanh(x);
        case Function::sin_turns:
            return std::sin(kTau * x);
        case Function::cos_turns:
            return std::cos(kTau * x);
    }
    return 0.0;
}

struct Bound {
    Function function;
    const char* name;
    double ulps, absolute;  // one of them is zero
    double low, high;       // of the results
    std::vector<std::vector<float>> inputs;
};

bool same(float a, float b) {
    return a == b || (a != a && b != b);
}

void test_elementwise(const Kernels& kernels) {
    const std::vector<float> tiny = {1e-45F,          -1e-45F,          1e-40F, -1e-40F,
                                     1.17549435e-38F, -1.17549435e-38F, 0.0F,   -0.0F};
    std::vector<float> logarithmic = {1e-45F, 1e-40F, 1.17549435e-38F};
    for (const float x : span(-87.0, 88.0)) logarithmic.push_back(std::exp(x));
    const std::vector<float> large = {kInf, -kInf, 1e30F, -1e30F};
    const double inf = static_cast<double>(kInf);
    const Bound bounds[] = {
        {Function::exp, "exp", 2.0, 0.0, 0.0, inf, {span(-87.3, 88.72), span(-0.01, 0.01), tiny}},
        {Function::exp, "exp to denormals", 1.5, 0.0, 0.0, inf, {span(-104.0, -87.4)}},
        {Function::log, "log", 3.0, 0.0, -inf, inf, {logarithmic, span(0.5, 2.0)}},
        {Function::tanh, "tanh", 6.0, 0.0, -1.0, 1.0, {span(-12.0, 12.0), span(-0.01, 0.01), tiny, large}},
        {Function::sin_turns, "sin_turns", 0.0, 1.5e-7, -1.001, 1.001, {span(-3.0, 3.0), tiny}},
        {Function::cos_turns, "cos_turns", 0.0, 1.5e-7, -1.001, 1.001, {span(-3.0, 3.0), tiny}},
    };
    for (const Bound& bound : bounds) {
        const std::string name = std::string(kernels.name) + ", " + bound.name;
        for (const auto& x : bound.inputs) {
            const auto got = apply(kernels, bound.function, x);
            for (std::size_t i = 0; i < x.size(); ++i) {
                const double want = truth(bound.function, static_cast<double>(x[i]));
                const double y = static_cast<double>(got[i]);
                const bool close = bound.ulps > 0.0 ? ulps(got[i], want) <= bound.ulps
                                                    : std::fabs(y - want) <= bound.absolute;
                check(close && y >= bound.low && y <= bound.high, "stated error bound", name.c_str(),
                      static_cast<long long>(i));
            }
        }
        check(std::isnan(apply(kernels, bound.function, {kNan})[0]), "NaN stays", name.c_str(), 0);
        const auto x = span(0.1, 5.0, 133);
        const auto whole = apply(kernels, bound.function, x);
        for (const std::size_t n : {1U, 3U, 15U, 16U, 17U, 130U})
            for (const std::ptrdiff_t first : {0, 1}) {
                const auto begin = x.begin() + first;
                const auto part =
                    apply(kernels, bound.function, {begin, begin + static_cast<std::ptrdiff_t>(n)});
                check(std::equal(part.begin(), part.end(), whole.begin() + first),
                      "the length does not matter", name.c_str(), static_cast<long long>(n));
            }
    }
    const std::vector<float> out_of_range = {kInf, -kInf, 89.0F, 1e30F, -1e30F, -110.0F};
    const std::vector<float> exps = {kInf, 0.0F, kInf, kInf, 0.0F, 0.0F};
    check(apply(kernels, Function::exp, out_of_range) == exps, "exp beyond its range", kernels.name, 0);
    const auto logs = apply(kernels, Function::log, {0.0F, -0.0F, -1.0F, kInf, -kInf});
    const float want[] = {-kInf, -kInf, kNan, kInf, kNan};
    check(std::equal(logs.begin(), logs.end(), want, same), "log beyond its range", kernels.name, 0);
}

// ---- draws

// Normal and uniform of one latent dimension. The error of the normal is bounded by a multiple of `radius`.
struct Draw {
    double normal, uniform, radius;
};

Draw draw(std::array<std::uint32_t, 2> key, std::uint32_t candidate, std::uint32_t episode,
          std::uint32_t step, std::uint32_t dimension) {
    const auto word = philox4x32({dimension / 2, step, episode, candidate}, key);
    const auto unit = [&](std::size_t i) { return static_cast<double>(word[i] >> 8) * 0x1p-24; };
    const double radius = std::sqrt(-2.0 * std::log(unit(0) + 0x1p-24)), turn = kTau * unit(1);
    return {radius * (dimension % 2 == 0 ? std::cos(turn) : std::sin(turn)), unit(2 + dimension % 2), radius};
}

constexpr double kNormalError = 6e-7;  // relative to the radius

void test_draws(const Kernels& kernels) {
    const auto key = philox_key(0xFEDCBA9876543210U);
    const std::uint32_t candidate = 0x80000001U, episode = 3, step = 0xFFFFFFFFU;
    for (const std::uint32_t count : {1U, 7U, 100U}) {
        std::vector<float> out(4 * count);
        kernels.testing.draws(key.data(), candidate, episode, step, count, out.data());
        for (std::uint32_t i = 0; i < count; ++i)
            for (std::uint32_t j = 0; j < 2; ++j) {
                const Draw want = draw(key, candidate, episode, step, 2 * i + j);
                const double normal = static_cast<double>(out[j * count + i]);
                check(std::fabs(normal - want.normal) <= kNormalError * want.radius, "normals", kernels.name,
                      i);
                check(static_cast<double>(out[(2 + j) * count + i]) == want.uniform, "uniforms", kernels.name,
                      i);
            }
    }
    for (const std::uint32_t latent : {1U, 2U, 9U, 33U, 64U}) {
        Numbers numbers(latent);
        const auto mu = numbers.floats(latent, 1.0F), logvar = numbers.floats(latent, 3.0F);
        std::vector<float> z(latent + 1, 7.0F);
        kernels.initial_latent(key.data(), candidate, episode, static_cast<int>(latent), mu.data(),
                               logvar.data(), z.data());
        for (std::uint32_t d = 0; d < latent; ++d) {
            const Draw want = draw(key, candidate, episode, 0, d);
            const double spread = std::exp(static_cast<double>(logvar[d]) / 2.0);
            const double error =
                std::fabs(static_cast<double>(mu[d]) + spread * want.normal - static_cast<double>(z[d]));
            check(error <= 1e-6 * spread * want.radius + kEps, "first latents", kernels.name, d);
        }
        check(z[latent] == 7.0F, "nothing is written past the latent", kernels.name, latent);
    }
}

// ---- steps

// A sum in float64 and an error bound of its float32 counterpart.
struct Sum {
    double value, error;
};

struct Reference {
    const RandomModel& random_model;
    Precision precision;

    double rounded(float x) const {
        return static_cast<double>(precision == Precision::bfloat16 ? bfloat16_pair(0.0F, x) : x);
    }
    // bias + w1 . x1 + w2 . x2
    Sum dot(float bias, const float* w1, const std::vector<float>& x1, const float* w2,
            const std::vector<float>& x2) const {
        double sum = static_cast<double>(bias), magnitude = std::fabs(sum);
        const auto add = [&](const float* w, const std::vector<float>& x) {
            for (std::size_t k = 0; k < x.size(); ++k) {
                const double product = rounded(w[k]) * rounded(x[k]);
                sum += product;
                magnitude += std::fabs(product);
            }
        };
        add(w1, x1);
        add(w2, x2);
        return {sum, kEps * static_cast<double>(x1.size() + x2.size() + 1) * magnitude};
    }
    Sum head(std::size_t row, const std::vector<float>& h) const {
        return dot(random_model.head_bias[row], random_model.head.data() + row * random_model.hidden, h,
                   nullptr, {});
    }
};

std::vector<float> column(const float* rows, int count, int lane) {
    std::vector<float> out;
    for (int r = 0; r < count; ++r) out.push_back(rows[r * kBlock + lane]);
    return out;
}

double sigmoid(double x) {
    return 1.0 / (1.0 + std::exp(-x));
}

// One layer of the controller, whose features have error bounds too, with its tanh if squash. w points at its
// weights.
std::vector<Sum> layer(const float* w, std::size_t rows, bool bias, const std::vector<Sum>& features,
                       bool squash) {
    std::vector<Sum> out;
    for (std::size_t r = 0; r < rows; ++r) {
        double sum = bias ? static_cast<double>(w[rows * features.size() + r]) : 0.0;
        double magnitude = std::fabs(sum), carried = 0.0;
        for (std::size_t k = 0; k < features.size(); ++k) {
            const double weight = static_cast<double>(w[r * features.size() + k]);
            sum += weight * features[k].value;
            magnitude += std::fabs(weight * features[k].value);
            carried += std::fabs(weight) * features[k].error;
        }
        const double error = kEps * static_cast<double>(features.size() + 1) * magnitude + carried;
        out.push_back({squash ? std::tanh(sum) : sum, error + 6.0 * kEps});
    }
    return out;
}

struct Before {
    std::vector<float> z, c, h;
};

// The chosen value is one whose output may be the largest.
void check_one_hot(const Sum* outputs, const float* acted, int count, const char* name, int lane) {
    double largest = 0.0;
    int chosen = -1, ones = 0;
    for (int k = 0; k < count; ++k) {
        const double least = outputs[k].value - outputs[k].error;
        largest = k == 0 ? least : std::max(largest, least);
        const float value = acted[k * kBlock];
        check(value == 0.0F || value == 1.0F, "0 or 1", name, lane);
        if (value == 1.0F) chosen = k, ++ones;
    }
    check(ones == 1, "one-hot", name, lane);
    if (ones == 1) check(outputs[chosen].value + outputs[chosen].error >= largest, "arg max", name, lane);
}

void check_actions(const RandomModel& random_model, const Lanes& lanes, const Before& before, int lane,
                   const char* name) {
    const ControllerView& c = random_model.controller;
    const auto bias = static_cast<std::size_t>(c.bias), units = static_cast<std::size_t>(c.hidden_units);
    std::vector<Sum> features;
    const auto append = [&](const std::vector<float>& part) {
        for (const float x : part) features.push_back({static_cast<double>(x), 0.0});
    };
    append(before.z);
    if (c.use_c) append(before.c);
    if (c.use_h) append(before.h);
    const float* w = random_model.params.data() + static_cast<std::size_t>(lane) * random_model.params_size;
    if (units > 0) {
        const std::size_t size = units * (features.size() + bias);
        features = layer(w, units, c.bias, features, true);
        w += size;
    }
    auto actions =
        layer(w, static_cast<std::size_t>(random_model.sizes.action), c.bias, features, c.num_choices == 0);
    const float* const acted = lanes.block().x + random_model.sizes.latent * kBlock + lane;
    for (int i = 0, first = 0; i < c.num_choices; first += c.choices[i++])
        check_one_hot(actions.data() + first, acted + first * kBlock, c.choices[i], name, lane);
    if (c.num_choices > 0) return;
    if (c.carracing) {
        actions[1].value = (actions[1].value + 1.0) / 2.0;
        actions[2].value = std::max(actions[2].value, 0.0);
    }
    for (int a = 0; a < random_model.sizes.action; ++a) {
        const Sum& want = actions[static_cast<std::size_t>(a)];
        check(std::fabs(static_cast<double>(lanes.action(lane, a)) - want.value) <= want.error, "action",
              name, lane);
    }
}

void check_state(const Reference& reference, const Lanes& lanes, const Before& before, bool first, int lane,
                 const char* name) {
    const RandomModel& random_model = reference.random_model;
    std::vector<float> x = before.z;
    for (int a = 0; a < random_model.sizes.action; ++a) x.push_back(lanes.action(lane, a));
    if (random_model.sizes.restart) x.push_back(first ? 1.0F : 0.0F);
    for (std::size_t k = 0; k < random_model.hidden; ++k) {
        Sum gates[4];  // i, f, g, o
        for (std::size_t g = 0; g < 4; ++g) {
            const std::size_t row = g * random_model.hidden + k;
            gates[g] =
                reference.dot(random_model.bias[row], random_model.input.data() + row * random_model.inputs,
                              x, random_model.recurrent.data() + row * random_model.hidden, before.h);
        }
        const auto& [i, f, g, o] = gates;
        const double old = static_cast<double>(before.c[k]);
        const double c = sigmoid(f.value) * old + sigmoid(i.value) * std::tanh(g.value);
        const double c_error = std::fabs(old) * (f.error / 4.0 + 1e-6) + i.error / 4.0 + g.error + 2e-6;
        const double h = sigmoid(o.value) * std::tanh(c);
        const std::size_t at = k * kBlock + static_cast<std::size_t>(lane);
        check(std::fabs(static_cast<double>(lanes.block().c[at]) - c) <= c_error, "c", name, lane);
        check(std::fabs(static_cast<double>(lanes.block().h[at]) - h) <= o.error / 4.0 + c_error + 2e-6, "h",
              name, lane);
    }
}

// The heads, from the step's h; the next latent, from the step's component.
void check_heads(const Reference& reference, const Lanes& lanes, std::array<std::uint32_t, 2> key,
                 std::uint32_t episode, std::uint32_t step, float temperature, int lane, const char* name) {
    const RandomModel& random_model = reference.random_model;
    const auto h = column(lanes.block().h, random_model.sizes.hidden, lane);
    const auto mixtures = static_cast<std::size_t>(random_model.sizes.mixtures);
    const auto near = [&](float got, Sum want, const char* what) {
        check(std::fabs(static_cast<double>(got) - want.value) <= want.error, what, name, lane);
    };
    std::size_t row = 0;
    if (random_model.sizes.done) near(lanes.done_logit(lane), reference.head(row++, h), "done logit");
    if (random_model.sizes.reward) near(lanes.reward(lane), reference.head(row++, h), "reward");
    for (int d = 0; d < random_model.sizes.latent; ++d, row += 3 * mixtures) {
        const std::size_t at = static_cast<std::size_t>(d) * kBlock + static_cast<std::size_t>(lane);
        const Draw random =
            draw(key, static_cast<std::uint32_t>(lane), episode, step, static_cast<std::uint32_t>(d));
        const double tau = static_cast<double>(temperature),
                     noise = static_cast<double>(lanes.block().noise[at]);
        check(std::fabs(noise - random.normal * std::sqrt(tau)) <= 1.2 * kNormalError * random.radius,
              "noise", name, lane);

        std::vector<Sum> logits;
        for (std::size_t k = 0; k < mixtures; ++k) logits.push_back(reference.head(row + k, h));
        double largest = logits[0].value, unsure = 0.0;
        for (const Sum& logit : logits) {
            largest = std::max(largest, logit.value);
            unsure = std::max(unsure, logit.error);
        }
        const auto chosen = static_cast<std::size_t>(lanes.block().component[at]);
        check(chosen < mixtures, "component is in range", name, lane);
        if (chosen >= mixtures) continue;
        if (temperature == 0.0F) {
            check(logits[chosen].value >= largest - 2.0 * unsure, "most probable component", name, lane);
        } else {
            double total = 0.0, below = 0.0;
            for (std::size_t k = 0; k < mixtures; ++k) {
                const double weight = std::exp((logits[k].value - largest) / tau);
                below += k < chosen ? weight : 0.0;
                total += weight;
            }
            const double above = below + std::exp((logits[chosen].value - largest) / tau);
            const double target = random.uniform * total, slack = total * (4.0 * unsure / tau + 2e-6);
            check(below - slack <= target && target <= above + slack, "drawn component", name, lane);
        }

        const Sum mean = reference.head(row + mixtures + chosen, h);
        const Sum logstd = reference.head(row + 2 * mixtures + chosen, h);
        const double part = std::exp(std::clamp(logstd.value, static_cast<double>(kLogstdMin),
                                                static_cast<double>(kLogstdMax))) *
                            noise;
        const double error = mean.error + std::fabs(part) * (1.1 * logstd.error + 4.0 * kEps) +
                             kEps * std::fabs(mean.value + part);
        near(lanes.z(lane, d), {mean.value + part, error}, "next latent");
    }
    if (random_model.sizes.restart)
        check(lanes.block().x[(random_model.inputs - 1) * kBlock + static_cast<std::size_t>(lane)] == 0.0F,
              "the restart flag is cleared", name, lane);
}

void test_steps(const Kernels& kernels, Precision precision, const RandomModel& random_model,
                float temperature, int number) {
    constexpr std::uint64_t kSeed = 0x123456789ABCDEFU;
    constexpr std::uint32_t kEpisode = 5;
    constexpr int kSteps = 3;
    const WorldModel model = random_model.model(precision);
    const Reference reference{random_model, precision};
    const Sampling sampling = make_sampling(kSeed, temperature);
    const std::string name = std::string(kernels.name) +
                             (precision == Precision::bfloat16 ? ", bfloat16, world " : ", world ") +
                             std::to_string(number);
    const auto begin = [&](Lanes& lanes, int count) {
        for (int lane = 0; lane < count; ++lane)
            lanes.start(
                kernels, model, kSeed, static_cast<std::uint32_t>(lane), kEpisode,
                random_model.params.data() + static_cast<std::size_t>(lane) * random_model.params_size, lane);
    };

    // A full block against float64, one step at a time.
    Scratch scratch(model, &random_model.controller);
    Lanes full(model, &random_model.controller);
    scratch.lend(full.block());
    begin(full, kBlock);
    for (std::uint32_t at = 1; at <= kSteps; ++at) {
        std::vector<Before> before;
        for (int lane = 0; lane < kBlock; ++lane)
            before.push_back({column(full.block().x, random_model.sizes.latent, lane),
                              column(full.block().c, random_model.sizes.hidden, lane),
                              column(full.block().h, random_model.sizes.hidden, lane)});
        step(kernels, model, &random_model.controller, sampling, full.block(), kBlock);
        for (int lane = 0; lane < kBlock; ++lane) {
            const Before& old = before[static_cast<std::size_t>(lane)];
            check_actions(random_model, full, old, lane, name.c_str());
            check_state(reference, full, old, at == 1, lane, name.c_str());
            check_heads(reference, full, philox_key(kSeed), kEpisode, at, temperature, lane, name.c_str());
            ++full.block().step[lane];
        }
    }

    // Other kernels serve fewer lanes and give the same bits, even with NaN in the idle lanes.
    for (int count = 1; count < kBlock; ++count) {
        Scratch other_scratch(model, &random_model.controller);
        Lanes some(model, &random_model.controller);
        other_scratch.lend(some.block());
        for (int lane = count; lane < kBlock; ++lane) {
            for (std::size_t r = 0; r < random_model.inputs; ++r)
                some.block().x[r * kBlock + static_cast<std::size_t>(lane)] = kNan;
            for (std::size_t r = 0; r < random_model.hidden; ++r)
                some.block().h[r * kBlock + static_cast<std::size_t>(lane)] =
                    some.block().c[r * kBlock + static_cast<std::size_t>(lane)] = kNan;
        }
        begin(some, count);
        for (int at = 0; at < kSteps; ++at) {
            step(kernels, model, &random_model.controller, sampling, some.block(), count);
            for (int lane = 0; lane < count; ++lane) ++some.block().step[lane];
        }
        for (int lane = 0; lane < count; ++lane) {
            const auto equal = [&](const float* a, const float* b, int rows) {
                return same_bits(column(a, rows, lane), column(b, rows, lane));
            };
            check(equal(some.block().x, full.block().x, static_cast<int>(random_model.inputs)) &&
                      equal(some.block().c, full.block().c, random_model.sizes.hidden) &&
                      equal(some.block().h, full.block().h, random_model.sizes.hidden) &&
                      equal(some.block().head, full.block().head,
                            random_model.sizes.done + random_model.sizes.reward),
                  "the number of lanes does not matter", name.c_str(), count);
        }
    }
}

}  // namespace

int main() {
    const SimdTargets targets = supported_simd_targets();
    for (std::size_t l = 0; l < targets.count; ++l) {
        const Kernels& kernels = *targets.begin[l];
        std::printf("%s\n", kernels.name);
        test_elementwise(kernels);
        test_draws(kernels);
        for (const Precision precision : {Precision::float32, Precision::bfloat16}) {
            if (precision == Precision::bfloat16 && kernels.step_bfloat16 == nullptr) continue;
            int number = 0;
            for (const auto& [sizes, controller] : kCases) {
                const RandomModel random_model(sizes, controller, static_cast<std::uint64_t>(number), kBlock);
                test_steps(kernels, precision, random_model, 1.15F, number);
                test_steps(kernels, precision, random_model, 0.0F, number);
                ++number;
            }
        }
    }
    return finish("kernels");
}
