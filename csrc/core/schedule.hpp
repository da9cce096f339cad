// The episodes of a rollout, divided among threads such that SIMD vectors stay full.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/parallel.hpp"
#include "kernels/kernels.hpp"

namespace worldmodels {

// An episode that has started.
struct Episode {
    std::int64_t job;  // its index in the rollout
    double total;
    double survival;  // probability of no termination so far; 1 unless termination is expected
    int length;
    float* state;  // where its lane's state is parked
};

// The fewest lanes that hold `lanes` episodes and compute no idle lane; `widths` as in Kernels.
int full_width(std::uint32_t widths, int lanes);

// A thread plays as many lanes as all threads need for the live episodes (the width). It refills them from
// the episodes that have not started. After the last of these has started, threads exchange lanes. Each keeps
// whole units: vectors, or the width where that is narrower. One thread alone may hold part of a unit; all
// others park what exceeds their units, for that thread or for one that waits. At most one unit of all
// threads thus contains idle lanes.
class Schedule {
  public:
    // state_size: floats of a lane's state.
    Schedule(std::int64_t episodes, int threads, int vector, std::uint32_t widths, std::size_t state_size);

    // The lanes that a thread takes or parks; it copies their states without the lock.
    struct Exchange {
        int taken = 0, parked = 0;
        Episode take[kBlock];  // length 0: not started, without a state
        float* park[kBlock];   // where to write the states of the thread's last lanes
    };

    // Whether a thread has nothing to exchange. Lock-free: called before every step.
    bool balanced(int thread, int lanes) const {
        const int width = width_.load(std::memory_order_relaxed);
        if (lanes == width) return true;
        const bool whole = lanes % std::min(width, vector_) == 0;
        return lanes < width && available_.load(std::memory_order_relaxed) == 0 &&
               (whole || broken_.load(std::memory_order_relaxed) == thread);
    }
    // What a thread with this number of lanes has to exchange. Call finish_exchange after the copies.
    void begin_exchange(int thread, int lanes, Exchange& exchange);
    void finish_exchange(const Exchange& exchange, const Episode* parked);
    // Ends an episode. Returns the index of one that has not started, or -1.
    std::int64_t end_episode();
    // Waits for lanes to take; false when no episode is live, or the pool is stopped.
    bool wait(int thread, InterruptiblePool& pool);

  private:
    std::int64_t not_started() const { return episodes_ - next_; }
    bool can_take() const;
    void update();

    const std::int64_t episodes_;
    const int threads_, vector_;
    const std::uint32_t widths_;
    std::unique_ptr<float[]> states_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::int64_t next_ = 0;  // the first episode that has not started
    std::int64_t live_;      // episodes that have not ended
    std::vector<Episode> parked_;
    std::vector<float*> free_;     // states that hold no parked episode
    std::atomic<int> broken_{-1};  // the thread that holds part of a unit, or -1
    std::atomic<int> width_;
    std::atomic<std::int64_t> available_;  // episodes parked or not started
};

}  // namespace worldmodels
