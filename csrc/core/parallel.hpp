// Threads: parallel loops over blocks, polling for interrupts, and the fork policy.
#pragma once

#include <omp.h>

#include <atomic>
#include <chrono>

namespace worldmodels {

// Called from the calling thread about every 40 ms during a long call; true asks to stop.
struct Poll {
    bool (*stop)(void*) = nullptr;
    void* context = nullptr;
};

// The fork policy of every parallel call: throws std::runtime_error where a process forked from the one that
// loaded the library wants several threads. OpenMP's threads, which PyTorch shares, do not survive a fork.
void check_not_forked(int threads);

// Throws std::runtime_error when a parallel region of this thread would wait forever for threads lost in a
// fork. OpenMP cannot be asked: a child process tries, and is killed if it hangs.
void check_threads_usable();

// The number of threads that `blocks` blocks can occupy, at most `threads`. Throws as check_not_forked.
int threads_for(int blocks, int threads);

// Calls work(block, thread) for every block, on `threads` threads with dynamic scheduling.
template <class Work>
void parallel_for_blocks(int blocks, int threads, const Work& work) {
    if (threads == 1) {
        for (int block = 0; block < blocks; ++block) work(block, 0);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic)
        for (int block = 0; block < blocks; ++block) work(block, thread);
    }
}

// The threads of one call that can be interrupted: the calling thread polls while it works and waits.
class InterruptiblePool {
  public:
    static constexpr std::chrono::milliseconds kInterval{40};  // between two polls

    explicit InterruptiblePool(Poll poll) : poll_(poll) {}

    bool stopped() const { return stop_.load(std::memory_order_relaxed); }
    // Called by every thread after each block; only the calling thread (thread 0) polls.
    void tick(int thread);

  private:
    using Clock = std::chrono::steady_clock;

    Poll poll_;
    std::atomic<bool> stop_{false};
    Clock::time_point next_ = Clock::now() + kInterval;
};

// The same until the pool is stopped.
template <class Work>
void parallel_for_blocks(int blocks, int threads, InterruptiblePool& pool, const Work& work) {
    parallel_for_blocks(blocks, threads, [&](int block, int thread) {
        if (pool.stopped()) return;
        work(block, thread);
        pool.tick(thread);
    });
}

}  // namespace worldmodels
