// The machine's peak rate of multiply-adds.
#include "core/peak.hpp"

#include <chrono>

namespace worldmodels {
namespace {

constexpr int kRounds = 1 << 16;

double rate(MultiplyAdds multiply_adds, double seconds, InterruptiblePool& pool, int thread) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    double operations = 0.0, elapsed = 0.0;
    while (elapsed < seconds && !pool.stopped()) {
        operations += multiply_adds(kRounds);
        elapsed = std::chrono::duration<double>(Clock::now() - start).count();
        pool.tick(thread);
    }
    return operations / elapsed;
}

}  // namespace

std::optional<double> multiply_add_rate_unchecked(MultiplyAdds multiply_adds, int threads, double seconds,
                                                  Poll poll) {
    check_not_forked(threads);
    InterruptiblePool pool(poll);
    double total = 0.0;
#pragma omp parallel num_threads(threads) reduction(+ : total) if (threads > 1)
    total += rate(multiply_adds, seconds, pool, omp_get_thread_num());
    if (pool.stopped()) return std::nullopt;
    return total;
}

}  // namespace worldmodels
