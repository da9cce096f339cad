// Threads: a poll for interrupts that never leaves a parallel region, and the refusal of forked thread pools.
#pragma once

#include <omp.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>

namespace worldmodels {

// Called now and then from the calling thread during a long call; true asks to stop.
struct Poll {
    bool (*stop)(void*) = nullptr;
    void* context = nullptr;
};

// Throws std::runtime_error when this process was forked from the one that loaded the library, and more than
// one thread is wanted: OpenMP's pool, which PyTorch uses too, does not survive a fork.
void check_not_forked(int threads);

// Throws std::runtime_error when a parallel region of this thread would wait forever for threads that a fork
// has left behind. OpenMP does not say so: a process forked from this one tries, and is ended if it waits.
void check_threads_usable();

// How many of the threads have something to do where there are so many blocks; refuses as check_not_forked
// does.
int threads_for(int blocks, int threads);

// work(block, thread) for every block, on a team of threads; whichever is free takes the next.
template <class Work>
void parallel_for_blocks(int blocks, int team, const Work& work) {
    if (team == 1) {
        for (int block = 0; block < blocks; ++block) work(block, 0);
        return;
    }
#pragma omp parallel num_threads(team)
    {
        const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic)
        for (int block = 0; block < blocks; ++block) work(block, thread);
    }
}

// One parallel call: remembers whether to stop; the calling thread polls while it works and while it waits.
class InterruptiblePool {
  public:
    explicit InterruptiblePool(Poll poll) : poll_(poll) {}

    bool stopped() const { return stop_.load(std::memory_order_relaxed); }
    // Called by every thread after each piece of work; only the caller's (thread 0) polls, every 40 ms.
    void tick(int thread);
    void finish(int thread, int threads);

  private:
    using Clock = std::chrono::steady_clock;
    static constexpr std::chrono::milliseconds kInterval{40};

    Poll poll_;
    std::atomic<bool> stop_{false};
    Clock::time_point next_ = Clock::now() + kInterval;
    std::mutex mutex_;
    std::condition_variable done_;
    int finished_ = 0;
};

}  // namespace worldmodels
