// Rollouts: worker threads that play episodes in lanes and refill them from a shared queue.
#include "core/dream.hpp"

#include <omp.h>

#include <algorithm>
#include <vector>

namespace worldmodels {
namespace {

// An episode with expected termination stops below this survival probability.
constexpr double kMinSurvival = 0.01;

// One thread: plays the episodes of its lanes and refills them from the queue that all threads share.
class Worker {
  public:
    Worker(const Kernels& kernels, const WorldModel& model, const ControllerView& controller,
           const RolloutArgs& args)
        : kernels_(kernels), model_(model), controller_(controller), args_(args), lanes_(model, &controller) {
        params_ = controller_size(controller, model.view().latent, model.view().hidden, model.view().action);
        expected_ = model.termination().mode == Termination::Mode::expected;
    }

    void play(std::atomic<std::int64_t>& queue, int share, InterruptiblePool& pool, int thread) {
        const Sampling sampling = make_sampling(args_.seed, args_.temperature);
        int active = 0;
        while (active < share && take(queue, active, pool, thread)) ++active;
        while (active > 0 && !pool.stopped()) {
            record_before();
            computed_ += step(kernels_, model_, &controller_, sampling, lanes_.block(), active);
            record_after();
            for (int lane = active - 1; lane >= 0 && !pool.stopped(); --lane) {
                if (!advance(lane) || take(queue, lane, pool, thread)) continue;
                if (lane != --active) {  // active lanes come first, so that a step can skip whole vectors
                    lanes_.move(active, lane);
                    running_[lane] = running_[active];
                }
            }
            pool.tick(thread);
        }
    }

    std::int64_t computed() const { return computed_; }

  private:
    struct Running {
        std::int64_t job;
        double total;
        double survival;  // probability of no termination so far; 1 unless termination is expected
        int length;
    };

    // Starts the next episode in a lane; false when the queue is empty or the call is interrupted.
    bool take(std::atomic<std::int64_t>& queue, int lane, InterruptiblePool& pool, int thread) {
        pool.tick(thread);  // copying a large controller's parameters takes long
        if (pool.stopped()) return false;
        const std::int64_t job = queue.fetch_add(1, std::memory_order_relaxed);
        if (job >= std::int64_t{args_.candidates} * args_.episodes) return false;
        const auto candidate = static_cast<std::uint32_t>(job / args_.episodes);
        const auto episode = static_cast<std::uint32_t>(job % args_.episodes) + args_.first_episode;
        const std::uint32_t stream = args_.common_random_numbers ? 0 : candidate + args_.first_candidate;
        lanes_.start(kernels_, model_, args_.seed, stream, episode, args_.params + candidate * params_, lane);
        running_[lane] = {job, 0.0, 1.0, 0};
        return true;
    }

    // Accounts for the last step of a lane; true when its episode is over.
    bool advance(int lane) {
        Running& run = running_[lane];
        run.total += run.survival * static_cast<double>(lanes_.reward(lane));
        ++run.length;
        if (expected_) run.survival *= 1.0 - lanes_.termination_probability(lane);
        const bool done = expected_ ? run.survival < kMinSurvival : lanes_.done(lane, args_.seed);
        ++lanes_.block().step[lane];
        if (!done && run.length < args_.max_steps) return false;
        args_.returns[run.job] = static_cast<float>(run.total);
        args_.lengths[run.job] = run.length;
        return true;
    }

    void record_before() {
        if (args_.record == nullptr || running_[0].length > 0) return;
        for (int d = 0; d < model_.view().latent; ++d) args_.record->z[d] = lanes_.z(0, d);
    }

    void record_after() {
        if (args_.record == nullptr) return;
        const Record& to = *args_.record;
        const std::ptrdiff_t at = running_[0].length;
        const ModelView& m = model_.view();
        for (int d = 0; d < m.latent; ++d) to.z[(at + 1) * m.latent + d] = lanes_.z(0, d);
        for (int a = 0; a < m.action; ++a) to.action[at * m.action + a] = lanes_.action(0, a);
        if (to.done_logit != nullptr) to.done_logit[at] = lanes_.done_logit(0);
        to.reward[at] = lanes_.reward(0);
    }

    const Kernels& kernels_;
    const WorldModel& model_;
    const ControllerView& controller_;
    const RolloutArgs& args_;
    Lanes lanes_;
    std::size_t params_;  // controller parameters of a candidate
    bool expected_;
    Running running_[kBlock]{};
    std::int64_t computed_ = 0;
};

}  // namespace

bool rollout_unchecked(const Kernels& kernels, const WorldModel& model, const ControllerView& controller,
                       const RolloutArgs& args, Poll poll) {
    const std::int64_t jobs = std::int64_t{args.candidates} * args.episodes;
    // A vector of lanes costs as much as one lane: at most one thread per vector of episodes.
    const std::int64_t vectors = (jobs + kernels.lanes - 1) / kernels.lanes;
    const int threads = static_cast<int>(std::min<std::int64_t>(args.threads, vectors));
    const int share = static_cast<int>(std::min<std::int64_t>(kBlock, (jobs + threads - 1) / threads));
    check_not_forked(threads);
    std::vector<Worker> workers;
    workers.reserve(static_cast<std::size_t>(threads));
    for (int t = 0; t < threads; ++t) workers.emplace_back(kernels, model, controller, args);
    std::atomic<std::int64_t> queue{0};
    InterruptiblePool pool(poll);
    if (threads == 1) {
        workers[0].play(queue, share, pool, 0);
    } else {
#pragma omp parallel num_threads(threads)
        {
            const int thread = omp_get_thread_num();
            workers[static_cast<std::size_t>(thread)].play(queue, share, pool, thread);
            pool.finish(thread, omp_get_num_threads());
        }
    }
    if (args.computed != nullptr)
        for (const Worker& worker : workers) *args.computed += worker.computed();
    return !pool.stopped();
}

}  // namespace worldmodels
