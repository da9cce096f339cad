// The core without Python: Philox's published vectors, rollouts and CMA-ES whose bits do not depend on
// threads, lanes or level. Meant to be run under sanitizers too.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "core/cmaes.hpp"
#include "core/dream.hpp"
#include "core/rng.hpp"

namespace {

using namespace worldmodels;

static_assert(philox4x32({0, 0, 0, 0}, {0, 0}) ==
              std::array<std::uint32_t, 4>{0x6627E8D5U, 0xE169C58DU, 0xBC57AC4CU, 0x9B00DBD8U});
static_assert(philox4x32({~0U, ~0U, ~0U, ~0U}, {~0U, ~0U}) ==
              std::array<std::uint32_t, 4>{0x408F276DU, 0x41C83B0EU, 0xA20BC7C6U, 0x6D5451FDU});

int failures = 0;

void check(bool good, const char* what, const char* level, int size) {
    if (good) return;
    ++failures;
    std::printf("failed: %s (%s, case %d)\n", what, level, size);
}

std::vector<float> normals(std::size_t count, std::mt19937& rng) {
    std::normal_distribution<float> normal(0.0F, 0.5F);
    std::vector<float> out(count);
    for (float& x : out) x = normal(rng);
    return out;
}

struct Result {
    std::vector<float> returns;
    std::vector<std::int32_t> lengths;
    bool operator==(const Result& other) const {
        return lengths == other.lengths &&
               std::memcmp(returns.data(), other.returns.data(), returns.size() * sizeof(float)) == 0;
    }
};

void test_sizes(const WorldModelSizes& s, const ControllerView& controller, int number) {
    std::mt19937 rng(static_cast<unsigned>(number));
    const std::size_t hidden = static_cast<std::size_t>(s.hidden),
                      latent = static_cast<std::size_t>(s.latent);
    const std::size_t inputs = static_cast<std::size_t>(s.latent + s.action + s.restart);
    const std::size_t head = static_cast<std::size_t>(s.done + s.reward + 3 * s.latent * s.mixtures);
    const auto input = normals(4 * hidden * inputs, rng), recurrent = normals(4 * hidden * hidden, rng);
    const auto bias = normals(4 * hidden, rng), head_weight = normals(head * hidden, rng),
               head_bias = normals(head, rng);
    const auto mu = normals(3 * latent, rng), logvar = normals(3 * latent, rng);
    const WorldModelWeights weights{input.data(), recurrent.data(), bias.data(), head_weight.data(),
                                    head_bias.data()};
    const std::size_t size = controller_size(controller, s.latent, s.hidden, s.action);
    const auto params = normals(5 * size, rng);
    const Levels levels = supported_levels();
    for (const Precision precision : {Precision::float32, Precision::bfloat16}) {
        const WorldModel model(s, weights, precision, mu.data(), logvar.data(), 3);
        Result fused;
        for (std::size_t l = 0; l < levels.count; ++l) {
            const Kernels& kernels = *levels.begin[l];
            if (precision == Precision::bfloat16 && kernels.step_bfloat16 == nullptr) continue;
            const auto play = [&](std::uint32_t candidates, std::uint32_t episodes, int threads) {
                Result result{std::vector<float>(candidates * episodes),
                              std::vector<std::int32_t>(candidates * episodes)};
                RolloutArgs args{};
                args.params = params.data();
                args.candidates = candidates;
                args.episodes = episodes;
                args.seed = 42;
                args.temperature = 1.1F;
                args.max_steps = 23;
                args.threads = threads;
                args.returns = result.returns.data();
                args.lengths = result.lengths.data();
                check(rollout_unchecked(kernels, model, controller, args, {}), "rollout is complete",
                      kernels.name, number);
                return result;
            };
            const Result whole = play(5, 11, 1);
            check(whole == play(5, 11, 3), "threads do not matter", kernels.name, number);
            for (std::uint32_t candidates = 1; candidates <= 4; ++candidates) {
                const Result part = play(candidates, 11, 1);
                check(std::equal(part.lengths.begin(), part.lengths.end(), whole.lengths.begin()) &&
                          std::equal(part.returns.begin(), part.returns.end(), whole.returns.begin()),
                      "the batch does not matter", kernels.name, number);
            }
            if (std::strcmp(kernels.name, "baseline") == 0) continue;
            if (fused.returns.empty()) fused = whole;
            check(fused == whole, "the level does not matter", kernels.name, number);
        }
    }
}

// CMA-ES without decompositions (they are LAPACK's), from axes and scales that make every product round.
CmaesState evolve(const Kernels& kernels, std::int64_t n, std::int64_t popsize, bool separable, int threads) {
    CmaesParameters parameters = cmaes_parameters(n, popsize, true, separable);
    parameters.gap = 1e18;
    Cmaes es(parameters, std::vector<double>(static_cast<std::size_t>(n), 0.5), 0.3, 7, separable, nullptr);
    std::mt19937 rng(1);
    std::normal_distribution<double> normal(0.0, 0.3);
    for (double& x : es.state().axes) x = normal(rng);
    std::vector<std::int64_t> rank(static_cast<std::size_t>(popsize));
    for (std::size_t i = 0; i < rank.size(); ++i) rank[i] = static_cast<std::int64_t>(rank.size() - 1 - i);
    for (int generation = 0; generation < 3; ++generation) {
        std::vector<double> solutions = es.ask(kernels, threads);
        if (generation == 1) solutions[0] += 1.7e308;  // was not asked for
        es.tell(kernels, solutions.data(), rank.data(), threads);
    }
    es.ask(kernels, threads);
    return es.state();
}

bool same(const CmaesState& a, const CmaesState& b) {
    return a.x == b.x && a.covariance == b.covariance && a.ps == b.ps && a.pc == b.pc && a.sigma == b.sigma;
}

void test_cmaes(int n, int popsize, bool separable) {
    const Levels levels = supported_levels();
    CmaesState fused{};
    for (std::size_t l = 0; l < levels.count; ++l) {
        const Kernels& kernels = *levels.begin[l];
        const CmaesState state = evolve(kernels, n, popsize, separable, 1);
        check(same(state, evolve(kernels, n, popsize, separable, 3)), "CMA-ES: threads do not matter",
              kernels.name, n);
        for (const double x : state.x)
            check(std::isfinite(x), "CMA-ES: solutions are finite", kernels.name, n);
        if (std::strcmp(kernels.name, "baseline") == 0) continue;
        if (fused.x.empty()) fused = state;
        check(same(fused, state), "CMA-ES: the level does not matter", kernels.name, n);
    }
}

}  // namespace

int main() {
    test_sizes({5, 2, 7, 3, true, true, true}, {true, true, true, false, 0}, 1);
    test_sizes({1, 1, 1, 1, false, false, true}, {false, false, false, false, 0}, 2);
    test_sizes({6, 3, 20, 5, false, false, true}, {false, true, true, true, 6}, 3);
    test_sizes({11, 1, 31, 9, true, true, true}, {true, false, false, false, 0}, 4);
    test_sizes({16, 1, 50, 8, true, true, true}, {true, true, false, false, 5}, 5);
    for (const bool separable : {false, true}) {
        test_cmaes(1, 2, separable);
        test_cmaes(7, 9, separable);
        test_cmaes(61, 64, separable);
        test_cmaes(203, 37, separable);
    }
    std::printf(failures == 0 ? "core: all passed\n" : "core: %d failed\n", failures);
    return failures == 0 ? 0 : 1;
}
