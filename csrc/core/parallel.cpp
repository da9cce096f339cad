// Threads: a poll for interrupts that never leaves a parallel region, and the refusal of forked thread pools.
#include "core/parallel.hpp"

#include <unistd.h>

#include <algorithm>
#include <stdexcept>

namespace worldmodels {
namespace {

const pid_t loaded_by = getpid();

}  // namespace

void check_not_forked(int threads) {
    if (threads > 1 && getpid() != loaded_by)
        throw std::runtime_error(
            "this process was forked from one that had loaded worldmodels, and OpenMP's threads, which "
            "PyTorch uses too, do not survive a fork: start workers with the 'spawn' method, or pass "
            "num_threads=1 in the forked process");
}

int team_for(int blocks, int threads) {
    const int team = std::min(threads, blocks);
    check_not_forked(team);
    return team;
}

void Team::tick(int thread) {
    if (thread != 0 || poll_.stop == nullptr || stopped()) return;
    const Clock::time_point now = Clock::now();
    if (now < next_) return;
    next_ = now + kInterval;
    if (poll_.stop(poll_.context)) stop_.store(true, std::memory_order_relaxed);
}

void Team::finish(int thread, int threads) {
    std::unique_lock<std::mutex> lock(mutex_);
    ++finished_;
    done_.notify_one();
    if (thread != 0) return;
    while (finished_ < threads) {
        done_.wait_for(lock, kInterval);
        lock.unlock();
        tick(0);
        lock.lock();
    }
}

}  // namespace worldmodels
