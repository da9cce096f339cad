// Rollouts: worker threads that play episodes in lanes.
#include "core/dream.hpp"

#include <omp.h>

#include <algorithm>
#include <vector>

#include "core/schedule.hpp"

namespace worldmodels {
namespace {

// One thread: plays the episodes of its lanes.
class Worker {
  public:
    Worker(const Kernels& kernels, const WorldModel& model, const ControllerView& controller,
           const RolloutArgs& args)
        : kernels_(kernels),
          model_(model),
          controller_(controller),
          args_(args),
          scratch_(model, &controller),
          lanes_(model, &controller) {
        scratch_.lend(lanes_.block());
        params_ = controller_size(controller, model.view().latent, model.view().hidden, model.view().action);
    }

    void play(Schedule& schedule, InterruptiblePool& pool, int thread) {
        const Sampling sampling = make_sampling(args_.seed, args_.temperature);
        while (fill(schedule, pool, thread)) {
            record_before();
            computed_ += step(kernels_, model_, &controller_, sampling, lanes_.block(), active_);
            record_after();
            for (int lane = active_ - 1; lane >= 0 && !pool.stopped(); --lane) {
                if (!advance(lane)) continue;
                const std::int64_t job = schedule.end_episode();
                if (job >= 0)
                    enter({job, 0.0, 1.0, 0, nullptr}, lane);
                else if (lane != --active_)
                    move(active_, lane);
                pool.tick(thread);  // copying a large controller's parameters takes long
            }
            pool.tick(thread);
        }
    }

    std::int64_t computed() const { return computed_; }

  private:
    // Takes or parks lanes before a step; false when no episode is left or the call is interrupted.
    bool fill(Schedule& schedule, InterruptiblePool& pool, int thread) {
        while (!pool.stopped()) {
            if (active_ == 0 || !schedule.balanced(thread, active_)) exchange(schedule, pool, thread);
            if (active_ > 0) return !pool.stopped();
            if (!schedule.wait(thread, pool)) return false;
        }
        return false;
    }

    void exchange(Schedule& schedule, InterruptiblePool& pool, int thread) {
        Schedule::Exchange exchange;
        schedule.begin_exchange(thread, active_, exchange);
        if (exchange.taken + exchange.parked == 0) return;
        for (int i = 0; i < exchange.taken && !pool.stopped(); ++i, pool.tick(thread))
            enter(exchange.take[i], active_++);
        for (int i = 0; i < exchange.parked; ++i) {
            running_[--active_].state = exchange.park[i];
            lanes_.save(active_, exchange.park[i]);
        }
        schedule.finish_exchange(exchange, running_ + active_);
    }

    // Starts an episode in a lane, or resumes one that was parked.
    void enter(const Episode& episode, int lane) {
        const auto candidate = static_cast<std::uint32_t>(episode.job / args_.episodes);
        const auto number = static_cast<std::uint32_t>(episode.job % args_.episodes) + args_.first_episode;
        const std::uint32_t stream = args_.common_random_numbers ? 0 : candidate + args_.first_candidate;
        const float* const params = args_.params + candidate * params_;
        if (episode.state == nullptr)
            lanes_.start(kernels_, model_, args_.seed, stream, number, params, lane);
        else
            lanes_.restore(episode.state, stream, number, static_cast<std::uint32_t>(episode.length) + 1,
                           params, lane);
        running_[lane] = episode;
    }

    void move(int from, int to) {
        lanes_.move(from, to);
        running_[to] = running_[from];
    }

    // Accounts for the last step of a lane; true when its episode is over.
    bool advance(int lane) {
        Episode& run = running_[lane];
        const bool done = lanes_.finish_step(lane, args_.seed, run.total, run.survival, run.length);
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
    Scratch scratch_;
    Lanes lanes_;
    std::size_t params_;  // controller parameters of a candidate
    Episode running_[kBlock]{};
    int active_ = 0;  // lanes that hold an episode, before all others
    std::int64_t computed_ = 0;
};

}  // namespace

bool rollout_unchecked(const Kernels& kernels, const WorldModel& model, const ControllerView& controller,
                       const RolloutArgs& args, Poll poll) {
    const std::int64_t jobs = std::int64_t{args.candidates} * args.episodes;
    const int threads = static_cast<int>(std::min<std::int64_t>(args.threads, jobs));
    check_not_forked(threads);
    std::vector<Worker> workers;
    workers.reserve(static_cast<std::size_t>(threads));
    for (int t = 0; t < threads; ++t) workers.emplace_back(kernels, model, controller, args);
    const bool pairs = model.precision() == Precision::bfloat16;
    Schedule schedule(jobs, threads, kernels.lanes, pairs ? kernels.widths_bfloat16 : kernels.widths,
                      lane_state_size(model.view()));
    InterruptiblePool pool(poll);
    if (threads == 1) {
        workers[0].play(schedule, pool, 0);
    } else {
#pragma omp parallel num_threads(threads)
        {
            const int thread = omp_get_thread_num();
            workers[static_cast<std::size_t>(thread)].play(schedule, pool, thread);
        }
    }
    if (args.computed != nullptr)
        for (const Worker& worker : workers) *args.computed += worker.computed();
    return !pool.stopped();
}

}  // namespace worldmodels
