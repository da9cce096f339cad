// One object called from several threads at once gives the bits of one thread. The thread sanitizer checks
// the same calls for data races.
#include <sys/wait.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <thread>

#include "check.hpp"
#include "core/cmaes.hpp"
#include "core/dream.hpp"
#include "core/encoder.hpp"
#include "core/lock.hpp"
#include "core/lstm_state.hpp"
#include "core/simd_target.hpp"
#include "core/stepper.hpp"
#include "random_model.hpp"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WORLDMODELS_TSAN
#endif
#endif

namespace {

using namespace worldmodels;
using namespace worldmodels::test;

constexpr int kThreads = 4;

std::size_t size(std::int64_t n) {
    return static_cast<std::size_t>(n);
}

// work(0), work(1), ... at once.
void at_once(int threads, const std::function<void(int)>& work) {
    std::vector<std::thread> running;
    for (int t = 0; t < threads; ++t) running.emplace_back(work, t);
    for (std::thread& thread : running) thread.join();
}

void test_encoder(const Kernels& kernels) {
    constexpr int kLatent = 5, kMost = 40, kCounts[kThreads] = {1, 3, 16, kMost};
    Numbers numbers(8);
    EncoderWeights w{};
    std::vector<std::vector<float>> kept;
    const auto some = [&](std::size_t count) {
        kept.push_back(numbers.floats(count, 0.1F));
        return kept.back().data();
    };
    std::size_t channels = kFrameChannels;
    for (std::size_t layer = 0; layer < kConvolutions; ++layer) {
        const auto filters = static_cast<std::size_t>(kFilters[layer]);
        w.weight[layer] = some(filters * channels * kConvKernel * kConvKernel);
        w.bias[layer] = some(filters);
        channels = filters;
    }
    w.mu = some(kLatent * kFeatures);
    w.mu_bias = some(kLatent);
    w.logvar = some(kLatent * kFeatures);
    w.logvar_bias = some(kLatent);
    std::vector<std::uint8_t> frames(size(kMost) * kFrameSide * kFrameSide * kFrameChannels);
    for (std::size_t i = 0; i < frames.size(); ++i) frames[i] = static_cast<std::uint8_t>(i * i / 5 % 256);

    const auto encode = [&](const Encoder& encoder, int count, int team) {
        std::vector<float> mu(size(count) * kLatent), logvar(mu.size());
        encoder.encode_unchecked(kernels, frames.data(), count, team, mu.data(), logvar.data());
        mu.insert(mu.end(), logvar.begin(), logvar.end());
        return mu;
    };
    const Encoder encoder(w, kLatent);
    std::vector<float> want[kThreads];
    for (int t = 0; t < kThreads; ++t) want[t] = encode(Encoder(w, kLatent), kCounts[t], 1);
    at_once(kThreads, [&](int t) {
        for (int round = 0; round < 3; ++round) {
            const int which = (t + round) % kThreads;
            const std::vector<float> found = encode(encoder, kCounts[which], 1 + t % 2);
            if (!same_bits(found, want[which])) check(false, "threads share an encoder", kernels.name, t);
        }
    });
}

void test_lstm_state(const Kernels& kernels, const RandomModel& random_model, const WorldModel& model) {
    constexpr int kCounts[kThreads] = {1, 3, 40, 70}, kMost = 70;
    Numbers numbers(9);
    const auto rows = [&](int columns) { return numbers.floats(size(kMost) * size(columns), 0.9F); };
    const std::vector<float> z = rows(random_model.sizes.latent), actions = rows(random_model.sizes.action),
                             h = rows(random_model.sizes.hidden), c = rows(random_model.sizes.hidden);
    std::uint8_t restart[kMost];
    for (int row = 0; row < kMost; ++row) restart[row] = row % 3 == 0;
    const auto advance = [&](const LstmState& lstm, int count, int team) {
        std::vector<float> out_h = h, out_c = c;
        lstm.advance_unchecked(kernels,
                               {count, z.data(), actions.data(), restart, out_h.data(), out_c.data()}, team);
        out_h.insert(out_h.end(), out_c.begin(), out_c.end());
        return out_h;
    };
    const LstmState lstm(model);
    std::vector<float> want[kThreads];
    for (int t = 0; t < kThreads; ++t) want[t] = advance(LstmState(model), kCounts[t], 1);
    at_once(kThreads, [&](int t) {
        for (int round = 0; round < 20; ++round) {
            const int which = (t + round) % kThreads;
            const std::vector<float> found = advance(lstm, kCounts[which], 1 + t % 2);
            if (!same_bits(found, want[which])) check(false, "threads share an LSTM state", kernels.name, t);
        }
    });
}

void test_rollouts(const Kernels& kernels, const RandomModel& random_model, const WorldModel& model) {
    constexpr std::uint32_t kCandidates = 3, kEpisodes = 13;
    const auto play = [&](std::uint64_t seed, int team) {
        std::vector<float> returns(kCandidates * kEpisodes);
        std::vector<std::int32_t> lengths(returns.size());
        RolloutArgs args{};
        args.params = random_model.params.data();
        args.candidates = kCandidates;
        args.episodes = kEpisodes;
        args.seed = seed;
        args.temperature = 1.1F;
        args.max_steps = 23;
        args.threads = team;
        args.returns = returns.data();
        args.lengths = lengths.data();
        rollout_unchecked(kernels, model, random_model.controller, args, {});
        for (const std::int32_t length : lengths) returns.push_back(static_cast<float>(length));
        return returns;
    };
    std::vector<float> want[kThreads];
    for (int t = 0; t < kThreads; ++t) want[t] = play(static_cast<std::uint64_t>(t), 1);
    at_once(kThreads, [&](int t) {
        for (int round = 0; round < 4; ++round) {
            const int which = (t + round) % kThreads;
            if (!same_bits(play(static_cast<std::uint64_t>(which), 1 + t % 2), want[which]))
                check(false, "threads share a world model", kernels.name, t);
        }
    });
}

// Steps are serialized: the final state depends on their number, not on the threads that made them.
void test_stepper(const Kernels& kernels, const RandomModel& random_model, const WorldModel& model) {
    constexpr int kEnvs = kBlock + 7, kSteps = 6;
    const std::size_t features = size(random_model.sizes.latent + 2 * random_model.sizes.hidden);
    const std::vector<float> actions(size(kEnvs) * size(random_model.sizes.action), 0.3F);
    std::vector<std::uint64_t> seeds(kEnvs);
    std::vector<std::uint32_t> candidates(kEnvs), episodes(kEnvs, 2);
    for (int env = 0; env < kEnvs; ++env) {
        seeds[size(env)] = 0x123456789ABULL * static_cast<std::uint64_t>(env % 5 + 1);
        candidates[size(env)] = static_cast<std::uint32_t>(env / 5);
    }
    std::uint8_t mask[kEnvs];
    std::fill_n(mask, kEnvs, 1);
    const auto play = [&](int threads, int steps) {
        Stepper stepper(model, kEnvs);
        stepper.reset_unchecked(kernels, {seeds.data(), candidates.data(), episodes.data()}, mask);
        at_once(threads, [&](int t) {
            std::vector<float> rewards(kEnvs), seen(size(kEnvs) * features);
            bool dones[kEnvs];
            for (int step = 0; step < steps; ++step) {
                stepper.step_unchecked(kernels, 1.1F, actions.data(), 1 + t % 2, rewards.data(), dones,
                                       {true, true, seen.data()});
            }
        });
        std::vector<float> inputs(size(kEnvs) * random_model.inputs), h(size(kEnvs) * random_model.hidden),
            c(h.size());
        std::vector<std::uint64_t> seed(kEnvs);
        std::vector<std::uint32_t> candidate(kEnvs), episode(kEnvs), step(kEnvs);
        const StepperState state{inputs.data(),    h.data(),       c.data(),   seed.data(),
                                 candidate.data(), episode.data(), step.data()};
        stepper.get_state_unchecked(state);
        check(seed == seeds && candidate == candidates && episode == episodes, "a stepper keeps its streams",
              kernels.name, threads);
        check(step == std::vector<std::uint32_t>(kEnvs, 1 + static_cast<std::uint32_t>(threads * steps)),
              "no step is lost", kernels.name, threads);
        // a copied state continues in the same way
        Stepper other(model, kEnvs);
        other.set_state_unchecked(state);
        std::vector<float> rewards(kEnvs), seen(size(kEnvs) * features), seen_too(seen.size());
        bool dones[kEnvs];
        for (Stepper* each : {&stepper, &other}) {
            const Observations to{true, true, (each == &stepper ? seen : seen_too).data()};
            each->step_unchecked(kernels, 1.1F, actions.data(), 1, rewards.data(), dones, to);
        }
        check(same_bits(seen, seen_too), "a stepper's state is complete", kernels.name, threads);
        return seen;
    };
    check(same_bits(play(kThreads, kSteps), play(1, kThreads * kSteps)), "threads share a stepper",
          kernels.name, 0);
}

void test_cmaes(const Kernels& kernels) {
    constexpr std::int64_t kSize = 40, kPopsize = 60;
    const auto minimize = [&](int threads, int generations) {
        Guarded<Cmaes> cmaes{Cmaes(cmaes_parameters(kSize, kPopsize, true, false),
                                   std::vector<double>(size(kSize), 1.0), 0.5, 1, false, nullptr),
                             {}};
        cmaes.object.set_gap(1e9);  // no decomposition: there is no LAPACK here
        at_once(threads, [&](int t) {
            for (int g = 0; g < generations; ++g) {
                const std::lock_guard hold(cmaes.lock);
                const std::vector<double> x = cmaes.object.ask(kernels, 1 + t % 2);
                std::vector<std::int64_t> order(size(kPopsize)), rank(order.size());
                std::iota(order.begin(), order.end(), 0);
                std::sort(order.begin(), order.end(),
                          [&](auto a, auto b) { return x[size(a * kSize)] < x[size(b * kSize)]; });
                for (std::int64_t place = 0; place < kPopsize; ++place)
                    rank[size(order[size(place)])] = place;
                cmaes.object.tell(kernels, x.data(), rank.data(), 1 + t % 2);
            }
        });
        return cmaes.object.state().mean;
    };
    check(same_bits(minimize(kThreads, 5), minimize(1, 5 * kThreads)), "threads share a CMA-ES", kernels.name,
          0);
}

void test_simd_target() {
    const std::vector<std::string> names = simd_target_names();
    at_once(kThreads, [&](int t) {
        for (int round = 0; round < 100; ++round) {
            if (t % 2 == 0) set_simd_target(names[size(round) % names.size()]);
            if (std::find(names.begin(), names.end(), current_simd_target().name) == names.end())
                check(false, "the SIMD target in use is one of them", current_simd_target().name, t);
        }
    });
}

void test_pool() {
    Pool<std::vector<int>> pool;
    at_once(kThreads, [&](int t) {
        for (int round = 0; round < 200; ++round) {
            const auto loan = pool.borrow(), other = pool.borrow();
            loan->assign(5, t);
            other->assign(5, -1);
            if (*loan != std::vector<int>(5, t)) check(false, "a loan is exclusive", "pool", t);
        }
    });
    try {
        const auto loan = pool.borrow();
        loan->assign(1, 77);
        throw std::bad_alloc();
    } catch (const std::bad_alloc&) {
        check(pool.borrow()->front() == 77, "an exception ends a loan", "pool", 0);
    }
}

// In a forked child, a lock that another thread held is refused and a free one is taken.
void test_fork() {
#ifndef WORLDMODELS_TSAN  // which does not support forking a process with threads
    Lock held, free;
    std::atomic<int> step{0};
    std::thread holder([&] {
        const std::lock_guard hold(held);
        step = 1;
        step.notify_all();
        step.wait(1);
    });
    step.wait(0);
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);  // kills a child that waits for the lock
        free.lock();
        try {
            held.lock();
            _exit(1);
        } catch (const std::runtime_error&) {
            _exit(0);
        }
    }
    int status = -1;
    waitpid(child, &status, 0);
    check(status == 0, "a lock lost in a fork is refused", "fork", status);
    step = 2;
    step.notify_all();
    holder.join();
    held.lock();
    held.unlock();
#endif
}

}  // namespace

int main() {
    test_fork();  // before OpenMP has threads
    test_pool();
    const SimdTargets targets = supported_simd_targets();
    for (std::size_t l = 0; l < targets.count; ++l) {
        const Kernels& kernels = *targets.begin[l];
        test_encoder(kernels);
        test_cmaes(kernels);
        for (const std::size_t number : {std::size_t{0}, std::size_t{3}}) {
            const auto& [sizes, controller] = kCases[number];
            const RandomModel random_model(sizes, controller, number, 3);
            const WorldModel model = random_model.model(
                Precision::float32,
                {sizes.done ? Termination::Mode::sample : Termination::Mode::threshold, 1.0});
            test_lstm_state(kernels, random_model, model);
            test_rollouts(kernels, random_model, model);
            test_stepper(kernels, random_model, model);
        }
    }
    test_simd_target();
    return finish("threads");
}
