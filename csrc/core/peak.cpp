// The machine's peak rate of multiply-adds.
#include "core/peak.hpp"

#include <omp.h>

#include <chrono>

#include "core/parallel.hpp"

namespace worldmodels {
namespace {

constexpr int kRounds = 1 << 16;

double rate(MultiplyAdds multiply_adds, double seconds) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    double operations = 0.0, elapsed = 0.0;
    while (elapsed < seconds) {
        operations += multiply_adds(kRounds);
        elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    }
    return operations / elapsed;
}

}  // namespace

double multiply_add_rate_unchecked(MultiplyAdds multiply_adds, int threads, double seconds) {
    check_not_forked(threads);
    if (threads == 1) return rate(multiply_adds, seconds);
    double total = 0.0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    total += rate(multiply_adds, seconds);
    return total;
}

}  // namespace worldmodels
