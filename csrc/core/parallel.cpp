// Threads: polling for interrupts and the fork policy.
#include "core/parallel.hpp"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>

namespace worldmodels {
namespace {

const pid_t loaded_by = getpid();

constexpr std::chrono::seconds kTimeout{3};  // for an empty parallel region

// Whether a byte can be read within kTimeout, whatever signals come.
bool readable(int channel) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point end = Clock::now() + kTimeout;
    pollfd waited{channel, POLLIN, 0};
    int ready = -1;
    do {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
        ready = poll(&waited, 1, static_cast<int>(std::max<std::int64_t>(left, 0)));
    } while (ready < 0 && errno == EINTR);
    return ready == 1 && (waited.revents & POLLIN) != 0;
}

}  // namespace

void check_not_forked(int threads) {
    if (threads > 1 && getpid() != loaded_by)
        throw std::runtime_error(
            "this process was forked from one that had loaded worldmodels, and OpenMP's threads, which "
            "PyTorch uses too, do not survive a fork: start workers with the 'spawn' method, or pass "
            "num_threads=1 in the forked process");
}

void check_threads_usable() {
    int channel[2];
    if (pipe(channel) != 0) throw std::runtime_error("a pipe cannot be opened");
    const pid_t probe = fork();
    if (probe == 0) {
        int members = 0;
#pragma omp parallel num_threads(2) reduction(+ : members)
        ++members;
        const char done = static_cast<char>(members);
        _exit(write(channel[1], &done, 1) == 1 ? 0 : 1);
    }
    close(channel[1]);
    const bool usable = probe > 0 && readable(channel[0]);
    close(channel[0]);
    if (probe > 0) {
        kill(probe, SIGKILL);
        while (waitpid(probe, nullptr, 0) < 0 && errno == EINTR) {
        }
    }
    if (!usable)
        throw std::runtime_error(
            "this process was forked from one that had used the threads of OpenMP or PyTorch, which do not "
            "survive a fork: start workers with the 'spawn' method, or call torch.set_num_threads(1) in the "
            "forked process");
}

int threads_for(int blocks, int threads) {
    threads = std::min(threads, blocks);
    check_not_forked(threads);
    return threads;
}

void InterruptiblePool::tick(int thread) {
    if (thread != 0 || poll_.stop == nullptr || stopped()) return;
    const Clock::time_point now = Clock::now();
    if (now < next_) return;
    next_ = now + kInterval;
    if (poll_.stop(poll_.context)) stop_.store(true, std::memory_order_relaxed);
}

}  // namespace worldmodels
