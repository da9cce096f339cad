// The core without Python: Philox's published vectors, and rollouts whose bits depend neither on threads,
// batch nor SIMD target. `test_core bits` prints fingerprints that must be equal on every architecture and
// compiler.
#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "check.hpp"
#include "core/decoder.hpp"
#include "core/dream.hpp"
#include "core/encoder.hpp"
#include "core/lstm_state.hpp"
#include "core/pack_winograd.hpp"
#include "core/stepper.hpp"
#include "random_model.hpp"

namespace {

using namespace worldmodels;
using namespace worldmodels::test;

static_assert(philox4x32({0, 0, 0, 0}, {0, 0}) ==
              std::array<std::uint32_t, 4>{0x6627E8D5U, 0xE169C58DU, 0xBC57AC4CU, 0x9B00DBD8U});
static_assert(philox4x32({~0U, ~0U, ~0U, ~0U}, {~0U, ~0U}) ==
              std::array<std::uint32_t, 4>{0x408F276DU, 0x41C83B0EU, 0xA20BC7C6U, 0x6D5451FDU});

constexpr std::uint32_t kCandidates = 7, kEpisodes = 11;
constexpr std::uint64_t kSeed = 42;
constexpr float kTemperature = 1.1F;

struct Result {
    std::vector<float> returns;
    std::vector<std::int32_t> lengths;
    bool operator==(const Result& other) const {
        return lengths == other.lengths && same_bits(returns, other.returns);
    }
};

struct Player {
    const Kernels& kernels;
    const RandomModel& random_model;
    const WorldModel& model;

    RolloutArgs args(std::uint32_t candidates, int threads, Result& result) const {
        result = {std::vector<float>(candidates * kEpisodes, -1.0F),
                  std::vector<std::int32_t>(candidates * kEpisodes, -1)};
        RolloutArgs args{};
        args.params = random_model.params.data();
        args.candidates = candidates;
        args.episodes = kEpisodes;
        args.seed = kSeed;
        args.temperature = kTemperature;
        args.max_steps = 23;
        args.threads = threads;
        args.returns = result.returns.data();
        args.lengths = result.lengths.data();
        return args;
    }
    Result play(std::uint32_t candidates, int threads) const {
        Result result;
        const RolloutArgs wanted = args(candidates, threads, result);
        check(rollout_unchecked(kernels, model, random_model.controller, wanted, {}), "rollout is complete",
              kernels.name, threads);
        return result;
    }
};

void test_rollouts(const Player& player, const Result& whole, int number) {
    const char* const target = player.kernels.name;
    for (const int threads : {2, 3, 8})
        check(whole == player.play(kCandidates, threads), "threads do not matter", target, number);
    for (std::uint32_t candidates = 1; candidates < kCandidates; ++candidates) {
        const Result part = player.play(candidates, 1);
        check(std::equal(part.lengths.begin(), part.lengths.end(), whole.lengths.begin()) &&
                  std::equal(part.returns.begin(), part.returns.end(), whole.returns.begin()),
              "the batch does not matter", target, number);
    }
    for (const int threads : {1, 3}) {
        Result result;
        RolloutArgs args = player.args(kCandidates, threads, result);
        args.max_steps = 1 << 20;
        int calls = 0;
        const auto stop = [](void* context) { return ++*static_cast<int*>(context) == 1; };
        if (!player.random_model.sizes.done)
            check(!rollout_unchecked(player.kernels, player.model, player.random_model.controller, args,
                                     {stop, &calls}) &&
                      calls == 1,
                  "the poll stops a rollout", target, number);
    }
}

// The observations of a stepper: (envs, [z, c, h]).
struct Observed {
    Observed(const Player& player, std::size_t envs)
        : latent(player.random_model.sizes.latent),
          hidden(player.random_model.hidden),
          all(envs * (latent + 2 * hidden)) {}

    std::vector<float> part(std::size_t from, std::size_t size) const {
        std::vector<float> rows;
        for (auto row = all.begin(); row != all.end();
             row += static_cast<std::ptrdiff_t>(latent + 2 * hidden))
            rows.insert(rows.end(), row + static_cast<std::ptrdiff_t>(from),
                        row + static_cast<std::ptrdiff_t>(from + size));
        return rows;
    }
    std::vector<float> z() const { return part(0, latent); }
    std::vector<float> c() const { return part(latent, hidden); }
    std::vector<float> h() const { return part(latent + hidden, hidden); }

    std::size_t latent, hidden;
    std::vector<float> all;
};

// Environments stepped with the actions of a recorded episode repeat it. There are more than a block of them.
void test_stepper(const Player& player, const Result& whole, int number) {
    const ModelView& m = player.model.view();
    const auto latent = static_cast<std::size_t>(m.latent), action = static_cast<std::size_t>(m.action);
    constexpr std::size_t kSteps = 23, kEnvs = 2 * kBlock + 5;
    std::vector<float> z((kSteps + 1) * latent), actions(kSteps * action), logits(kSteps), rewards(kSteps);
    Record record{z.data(), actions.data(), m.done ? logits.data() : nullptr, rewards.data()};
    Result result;
    RolloutArgs args = player.args(1, 1, result);
    args.episodes = 1;
    args.record = &record;
    rollout_unchecked(player.kernels, player.model, player.random_model.controller, args, {});
    check(result.lengths[0] == whole.lengths[0] && result.returns[0] == whole.returns[0],
          "recording changes nothing", player.kernels.name, number);

    std::vector<float> first;
    for (const int threads : {1, 3}) {
        Stepper stepper(player.model, kEnvs);
        const std::vector<std::uint64_t> seeds(kEnvs, kSeed);
        const std::vector<std::uint32_t> episodes(kEnvs, 0);
        std::vector<std::uint32_t> candidates(kEnvs);
        std::iota(candidates.begin(), candidates.end(), 0U);
        std::uint8_t mask[kEnvs];
        bool dones[kEnvs];
        std::fill_n(mask, kEnvs, 1);
        stepper.reset_unchecked(player.kernels, {seeds.data(), candidates.data(), episodes.data()}, mask);
        std::vector<float> given(kEnvs * action), gained(kEnvs);
        Observed seen(player, kEnvs);
        LstmState lstm(player.model);
        const Observations to{true, true, seen.all.data()};
        stepper.observe_unchecked(mask, to);
        for (std::size_t t = 0; t < static_cast<std::size_t>(result.lengths[0]); ++t) {
            for (std::size_t i = 0; i < given.size(); ++i) given[i] = actions[t * action + i % action];
            std::vector<float> before = seen.z(), h = seen.h(), c = seen.c();
            stepper.step_unchecked(player.kernels, kTemperature, given.data(), threads, gained.data(), dones,
                                   to);
            if (player.model.precision() == Precision::float32) {
                std::uint8_t restart[kEnvs];
                std::fill_n(restart, kEnvs, t == 0);
                lstm.advance_unchecked(
                    player.kernels,
                    {static_cast<int>(kEnvs), before.data(), given.data(), restart, h.data(), c.data()},
                    threads);
                check(same_bits(h, seen.h()) && same_bits(c, seen.c()), "the LSTM state is the dream's",
                      player.kernels.name, number);
            }
            check(std::memcmp(seen.all.data(), z.data() + (t + 1) * latent, latent * sizeof(float)) == 0 &&
                      gained[0] == rewards[t],
                  "an environment is an episode", player.kernels.name, number);
        }
        if (threads == 1) first = seen.all;
        check(same_bits(seen.all, first), "threads do not matter to environments", player.kernels.name,
              number);
    }
}

// One layer by Winograd's minimal filtering, with every division of its outputs into tiles: close to a
// convolution in float64, and the same bits for a frame in a block as for a single frame.
void test_layer(const Kernels& kernels, const ConvView& shape, int lanes) {
    Numbers numbers(6);
    ConvView conv = shape;
    const int side = conv.side, out_side = conv.out_side(), number = 100 * out_side + conv.filters;
    const auto size = [](int a, int b, int c) {
        return static_cast<std::size_t>(a) * static_cast<std::size_t>(b) * static_cast<std::size_t>(c);
    };
    const auto at = [](auto index) { return static_cast<std::size_t>(index); };
    const std::vector<float> weight = numbers.floats(size(conv.filters, conv.channels, 16), 0.1F),
                             bias = numbers.floats(at(conv.filters), 0.1F),
                             frame = numbers.floats(size(side, side, conv.channels), 1.0F);
    const AlignedFloats panels = pack_winograd(conv, weight.data(), bias.data());
    conv.panels = panels.get();
    const std::size_t outputs = size(out_side, out_side, conv.filters);
    AlignedFloats alone = aligned_floats(frame.size()), block = aligned_floats(frame.size() * kBlock),
                  scratch = aligned_floats(at(conv.scratch_size())), from_alone = aligned_floats(outputs),
                  from_block = aligned_floats(outputs * kBlock);
    for (std::size_t i = 0; i < frame.size(); ++i) {
        alone[i] = frame[i];
        for (int lane = 0; lane < lanes; ++lane)  // the last lane holds the frame, the others another one
            block[i * kBlock + at(lane)] = lane == lanes - 1 ? frame[i] : frame[i] * 0.5F;
    }
    const float nothing = std::numeric_limits<float>::quiet_NaN();
    std::fill_n(scratch.get(), conv.scratch_size(), nothing);
    std::fill_n(from_alone.get(), outputs, nothing);
    kernels.convolve_frame(conv, alone.get(), scratch.get(), from_alone.get());
    std::fill_n(scratch.get(), conv.scratch_size(), nothing);
    kernels.convolve(conv, block.get(), scratch.get(), from_block.get(), lanes);
    bool same = true, right = true;
    std::size_t output = 0;
    for (int y = 0; y < out_side; ++y)
        for (int x = 0; x < out_side; ++x)
            for (int filter = 0; filter < conv.filters; ++filter, ++output) {
                double sum = static_cast<double>(bias[at(filter)]);
                for (int channel = 0; channel < conv.channels; ++channel)
                    for (int i = 0; i < 16; ++i)
                        sum += static_cast<double>(
                                   weight[size(filter, conv.channels, 16) + at(16 * channel + i)]) *
                               static_cast<double>(frame[at(
                                   ((2 * y + i / 4) * side + 2 * x + i % 4) * conv.channels + channel)]);
                const float found = from_alone[output];
                same = same && std::bit_cast<std::uint32_t>(found) ==
                                   std::bit_cast<std::uint32_t>(from_block[output * kBlock + at(lanes - 1)]);
                right = right &&
                        std::abs(static_cast<double>(found) - (conv.relu ? std::max(sum, 0.0) : sum)) < 1e-5;
            }
    check(right, "a layer is a convolution", kernels.name, number);
    check(same, "a single frame and a frame in a block give the same bits", kernels.name, number);
}

void test_layers(const SimdTargets& targets) {
    for (std::size_t l = 0; l < targets.count; ++l)
        for (int out_side = 2; out_side <= 14; ++out_side)
            for (const int filters : {4, 20})
                test_layer(*targets.begin[l],
                           {.side = 2 * out_side + 2 + out_side % 2,  // the last line of odd sides is unused
                            .channels = kBlock,
                            .filters = filters,
                            .kernel = kConvKernel,
                            .stride = 2,
                            .relu = out_side % 3 != 0,
                            .winograd = true,
                            .panels = nullptr},
                           filters == 4 ? kBlock : 2 * out_side + 1);
}

// A frame's latents: the same bits on every SIMD target but baseline, for any number of threads and frames.
void test_encoder(const SimdTargets& targets) {
    constexpr int kLatent = 7, kFrames = 41;
    Numbers numbers(5);
    EncoderWeights w{};
    std::vector<std::vector<float>> kept;
    const auto some = [&](std::size_t count, float spread) {
        kept.push_back(numbers.floats(count, spread));
        return kept.back().data();
    };
    std::size_t channels = kFrameChannels;
    for (std::size_t layer = 0; layer < kConvolutions; ++layer) {
        const auto filters = static_cast<std::size_t>(kFilters[layer]);
        w.weight[layer] = some(filters * channels * kConvKernel * kConvKernel, 0.1F);
        w.bias[layer] = some(filters, 0.1F);
        channels = filters;
    }
    w.mu = some(kLatent * kFeatures, 0.1F);
    w.mu_bias = some(kLatent, 0.1F);
    w.logvar = some(kLatent * kFeatures, 0.1F);
    w.logvar_bias = some(kLatent, 0.1F);
    std::vector<std::uint8_t> frames(std::size_t{kFrames} * kFrameSide * kFrameSide * kFrameChannels);
    for (std::size_t i = 0; i < frames.size(); ++i) frames[i] = static_cast<std::uint8_t>(i * i / 7 % 256);

    using Latents = std::pair<std::vector<float>, std::vector<float>>;
    std::vector<Latents> fused;
    for (std::size_t l = 0; l < targets.count; ++l) {
        const Kernels& kernels = *targets.begin[l];
        Encoder encoder(w, kLatent);
        const auto encode = [&](int count, int threads) {
            const auto size = static_cast<std::size_t>(count) * kLatent;
            Latents out{std::vector<float>(size), std::vector<float>(size)};
            encoder.encode_unchecked(kernels, frames.data(), count, threads, out.first.data(),
                                     out.second.data());
            return out;
        };
        const Latents whole = encode(kFrames, 1);
        for (const int threads : {2, 3, 9}) {
            const Latents again = encode(kFrames, threads);
            check(same_bits(again.first, whole.first) && same_bits(again.second, whole.second),
                  "threads do not matter to frames", kernels.name, threads);
        }
        for (const int count : {1, 7, 8, 33}) {
            const Latents part = encode(count, 2);
            check(std::equal(part.first.begin(), part.first.end(), whole.first.begin()) &&
                      std::equal(part.second.begin(), part.second.end(), whole.second.begin()),
                  "the other frames do not matter", kernels.name, count);
        }
        if (l > 0) fused.push_back(whole);
        if (fused.size() > 1)
            check(
                same_bits(fused.front().first, whole.first) && same_bits(fused.front().second, whole.second),
                "the SIMD target does not matter to frames", kernels.name, 0);
    }
}

// A decoded frame: the same bits on every SIMD target but baseline, for any number of threads and frames.
void test_decoder(const SimdTargets& targets) {
    constexpr int kLatent = 7, kFrames = 9;
    Numbers numbers(6);
    DecoderWeights w{};
    std::vector<std::vector<float>> kept;
    const auto some = [&](std::size_t count, float spread) {
        kept.push_back(numbers.floats(count, spread));
        return kept.back().data();
    };
    w.point = some(std::size_t{kPointRows} * kLatent, 1.0F);
    w.point_bias = some(kPointRows, 0.1F);
    std::size_t channels = kPointChannels;
    for (std::size_t layer = 0; layer < kDeconvolutions; ++layer) {
        const auto filters = static_cast<std::size_t>(kDeconvFilters[layer]);
        const auto taps = static_cast<std::size_t>(kDeconvKernels[layer] * kDeconvKernels[layer]);
        w.weight[layer] = some(channels * filters * taps, 0.1F);
        w.bias[layer] = some(filters, 0.1F);
        channels = filters;
    }
    const std::vector<float> z = numbers.floats(std::size_t{kFrames} * kLatent, 1.0F);
    using Frames = std::vector<std::uint8_t>;
    std::vector<Frames> fused;
    for (std::size_t l = 0; l < targets.count; ++l) {
        const Kernels& kernels = *targets.begin[l];
        const Decoder decoder(w, kLatent);
        const auto decode = [&](int count, int threads) {
            Frames out(static_cast<std::size_t>(count) * 64 * kFrameLine);
            decoder.decode_unchecked(kernels, z.data(), count, threads, out.data());
            return out;
        };
        const Frames whole = decode(kFrames, 1);
        for (const int threads : {2, 3, 9})
            check(decode(kFrames, threads) == whole, "threads do not matter to decoding", kernels.name,
                  threads);
        for (const int count : {1, 4}) {
            const Frames part = decode(count, 2);
            check(std::equal(part.begin(), part.end(), whole.begin()), "the other latents do not matter",
                  kernels.name, count);
        }
        if (l > 0) fused.push_back(whole);
        if (fused.size() > 1)
            check(fused.front() == whole, "the SIMD target does not matter to decoding", kernels.name, 0);
    }
}

std::uint64_t fingerprint(std::uint64_t hash, const Result& result) {  // FNV-1a
    const auto mix = [&hash](std::uint32_t word) { hash = (hash ^ word) * 0x100000001B3U; };
    for (const std::int32_t length : result.lengths) mix(static_cast<std::uint32_t>(length));
    for (const float sum : result.returns) mix(std::bit_cast<std::uint32_t>(sum));
    return hash;
}

// Sampled termination: other episodes, with the same properties.
void test_sampled_termination(const Player& player, const Result& by_threshold, int number) {
    const Result whole = player.play(kCandidates, 1);
    check(whole.lengths != by_threshold.lengths, "sampled termination differs", player.kernels.name, number);
    test_rollouts(player, whole, number);
    test_stepper(player, whole, number);
}

}  // namespace

int main(int count, char** arguments) {
    const bool only_bits = count == 2 && std::strcmp(arguments[1], "bits") == 0;
    const SimdTargets targets = supported_simd_targets();
    std::uint64_t plain = 0xCBF29CE484222325U, fused = plain;
    int number = 0;
    for (const auto& [sizes, controller] : kCases) {
        const RandomModel random_model(sizes, controller, static_cast<std::uint64_t>(number), kCandidates);
        for (const Precision precision : {Precision::float32, Precision::bfloat16}) {
            const WorldModel model = random_model.model(precision),
                             sampled = random_model.model(precision, {Termination::Mode::sample, 1.0});
            Result first;
            for (std::size_t l = 0; l < targets.count; ++l) {
                const Player player{*targets.begin[l], random_model, model};
                if (precision == Precision::bfloat16 && player.kernels.step_bfloat16 == nullptr) continue;
                const Result whole = player.play(kCandidates, 1);
                if (!only_bits) {
                    test_rollouts(player, whole, number);
                    test_stepper(player, whole, number);
                    if (sizes.done)
                        test_sampled_termination({player.kernels, random_model, sampled}, whole, number);
                }
                if (l == 0) {
                    plain = fingerprint(plain, whole);
                    continue;
                }
                if (first.returns.empty()) {
                    first = whole;
                    if (precision == Precision::float32) fused = fingerprint(fused, whole);
                }
                check(first == whole, "the SIMD target does not matter", player.kernels.name, number);
            }
        }
        ++number;
    }
    if (!only_bits) {
        test_layers(targets);
        test_encoder(targets);
        test_decoder(targets);
        return finish("core");
    }
    std::printf("float32 rollouts, plain %016llx, fused %016llx\n", static_cast<unsigned long long>(plain),
                static_cast<unsigned long long>(fused));
    return failures;
}
