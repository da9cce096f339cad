// Scheduling of episodes: widths, exchanges of lanes and waiting.
#include "core/schedule.hpp"

#include <algorithm>
#include <bit>

namespace worldmodels {

int full_width(std::uint32_t widths, int lanes) {
    return lanes + std::countr_zero(widths >> (lanes - 1));
}

Schedule::Schedule(std::int64_t episodes, int threads, int vector, std::uint32_t widths,
                   std::size_t state_size)
    : episodes_(episodes), threads_(threads), vector_(vector), widths_(widths), live_(episodes) {
    if (threads > 1) {
        const auto lanes =
            static_cast<std::size_t>(std::min<std::int64_t>(episodes, std::int64_t{threads} * kBlock));
        states_.reset(new float[lanes * state_size]);  // uninitialized: most are never used
        free_.reserve(lanes);
        parked_.reserve(lanes);
        for (std::size_t lane = 0; lane < lanes; ++lane) free_.push_back(states_.get() + lane * state_size);
    }
    update();
}

// Recomputes what threads read without the lock. Wakes those that can go on.
void Schedule::update() {
    const std::int64_t share = std::min<std::int64_t>(kBlock, (live_ + threads_ - 1) / threads_);
    width_.store(full_width(widths_, std::max(1, static_cast<int>(share))), std::memory_order_relaxed);
    available_.store(not_started() + static_cast<std::int64_t>(parked_.size()), std::memory_order_relaxed);
    if (live_ == 0)
        changed_.notify_all();
    else if (can_take())
        changed_.notify_one();
}

// Whether a thread without lanes would be given some.
bool Schedule::can_take() const {
    const std::int64_t available = available_.load(std::memory_order_relaxed);
    const int unit = std::min(width_.load(std::memory_order_relaxed), vector_);
    return available >= unit || (available > 0 && broken_.load(std::memory_order_relaxed) < 0);
}

void Schedule::begin_exchange(int thread, int lanes, Exchange& exchange) {
    const std::lock_guard hold(mutex_);
    const int width = width_.load(std::memory_order_relaxed), unit = std::min(width, vector_);
    int want =
        static_cast<int>(std::min<std::int64_t>(width, lanes + available_.load(std::memory_order_relaxed)));
    const int broken = broken_.load(std::memory_order_relaxed);
    if (broken >= 0 && broken != thread) want -= want % unit;
    if (want % unit != 0)
        broken_.store(thread, std::memory_order_relaxed);
    else if (broken == thread)
        broken_.store(-1, std::memory_order_relaxed);
    exchange.taken = exchange.parked = 0;
    for (; lanes < want; ++lanes) {
        Episode& taken = exchange.take[exchange.taken++];
        if (parked_.empty()) {
            taken = {next_++, 0.0, 1.0, 0, nullptr};
        } else {
            taken = parked_.back();
            parked_.pop_back();
        }
    }
    for (; lanes > want; --lanes) {
        exchange.park[exchange.parked++] = free_.back();
        free_.pop_back();
    }
    update();
}

void Schedule::finish_exchange(const Exchange& exchange, const Episode* parked) {
    const std::lock_guard hold(mutex_);
    for (int i = 0; i < exchange.taken; ++i)
        if (exchange.take[i].state != nullptr) free_.push_back(exchange.take[i].state);
    parked_.insert(parked_.end(), parked, parked + exchange.parked);
    update();
}

std::int64_t Schedule::end_episode() {
    const std::lock_guard hold(mutex_);
    --live_;
    const std::int64_t job = not_started() > 0 ? next_++ : -1;
    update();
    return job;
}

bool Schedule::wait(int thread, InterruptiblePool& pool) {
    std::unique_lock lock(mutex_);
    while (live_ > 0 && !can_take() && !pool.stopped()) {
        changed_.wait_for(lock, InterruptiblePool::kInterval);
        lock.unlock();
        pool.tick(thread);
        lock.lock();
    }
    return live_ > 0 && !pool.stopped();
}

}  // namespace worldmodels
