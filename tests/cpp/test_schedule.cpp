// The schedule of a rollout, played step by step in an order that the test chooses: every episode is played
// once and whole, and few lanes are idle for any number of threads.
#include <algorithm>

#include "check.hpp"
#include "core/rng.hpp"
#include "core/schedule.hpp"

namespace {

using namespace worldmodels;
using namespace worldmodels::test;

constexpr std::int64_t kEpisodes = 1024;
constexpr int kLongest = 2100;

// The widths of AVX2, of AVX-512 and of its bfloat16 steps, and of four lanes.
struct Target {
    const char* name;
    int vector;
    std::uint32_t widths;
};
constexpr std::uint32_t bits(std::initializer_list<int> lanes) {
    std::uint32_t widths = 0;
    for (const int count : lanes) widths |= 1U << (count - 1);
    return widths;
}
constexpr Target kTargets[] = {
    {"8 lanes", 8, bits({1, 2, 8, 16, 24, 32})},
    {"16 lanes", 16, bits({1, 2, 4, 8, 16, 32})},
    {"16 lanes, bfloat16", 16, bits({1, 2, 4, 16, 32})},
    {"4 lanes", 4, bits({1, 4, 8, 12, 16, 20, 24, 28, 32})},
};

// Lengths of episodes that terminate with one probability at every step, as in the paper: 650 on average.
std::vector<int> uneven_lengths() {
    std::vector<int> lengths;
    for (std::uint32_t i = 0; i < kEpisodes; ++i) {
        const double u = (philox4x32({i, 0, 0, 0}, {7, 0})[0] + 0.5) * 0x1p-32;
        lengths.push_back(
            std::min(kLongest, 1 + static_cast<int>(std::log(u) / std::log(1.0 - 1.0 / 682.0))));
    }
    return lengths;
}

// One simulated thread. The state of a lane is its job.
class Player {
  public:
    Player(Schedule& schedule, const Target& target, int thread)
        : schedule_(schedule), target_(target), thread_(thread) {}

    // One step of its lanes; episodes that end are counted in `played`. Returns the number of lanes computed.
    int turn(const std::vector<int>& lengths, std::vector<int>& played) {
        if (active_ == 0 || !schedule_.balanced(thread_, active_)) exchange();
        if (active_ == 0) return 0;
        const int computed = full_width(target_.widths, active_);
        for (int lane = active_ - 1; lane >= 0; --lane) {
            Episode& episode = running_[lane];
            if (++episode.length < lengths[static_cast<std::size_t>(episode.job)]) continue;
            ++played[static_cast<std::size_t>(episode.job)];
            const std::int64_t next = schedule_.end_episode();
            if (next >= 0)
                episode = {next, 0.0, 1.0, 0, nullptr};
            else
                episode = running_[--active_];
        }
        return computed;
    }

  private:
    void exchange() {
        Schedule::Exchange exchange;
        schedule_.begin_exchange(thread_, active_, exchange);
        for (int i = 0; i < exchange.taken; ++i) {
            const Episode& taken = exchange.take[i];
            check(taken.state == nullptr ? taken.length == 0 : *taken.state == static_cast<float>(taken.job),
                  "a parked episode keeps its state", target_.name, thread_);
            running_[active_++] = taken;
        }
        for (int i = 0; i < exchange.parked; ++i) {
            Episode& parked = running_[--active_];
            parked.state = exchange.park[i];
            *parked.state = static_cast<float>(parked.job);
        }
        schedule_.finish_exchange(exchange, running_ + active_);
    }

    Schedule& schedule_;
    const Target& target_;
    int thread_;
    Episode running_[kBlock]{};
    int active_ = 0;
};

// Threads take turns in order, or one at random plays `burst` turns, as threads that share few cores do.
void test_schedule(const Target& target, int threads, int burst) {
    const std::vector<int> lengths = uneven_lengths();
    std::vector<int> played(lengths.size());
    Schedule schedule(kEpisodes, threads, target.vector, target.widths, 1);
    std::vector<Player> players;
    for (int t = 0; t < threads; ++t) players.emplace_back(schedule, target, t);
    std::int64_t needed = 0, computed = 0;
    for (const int length : lengths) needed += length;
    const auto unfinished = [&] { return std::count(played.begin(), played.end(), 0) > 0; };
    for (std::uint32_t round = 0; unfinished(); ++round)
        for (std::uint32_t t = 0; t < static_cast<std::uint32_t>(threads); ++t) {
            const auto chosen = static_cast<std::size_t>(
                burst == 1 ? t
                           : philox4x32({round, t, 1, 0}, {7, 0})[0] % static_cast<std::uint32_t>(threads));
            for (int i = 0; i < burst; ++i) computed += players[chosen].turn(lengths, played);
        }
    check(std::all_of(played.begin(), played.end(), [](int times) { return times == 1; }),
          "every episode is played once", target.name, threads);
    check(computed >= needed && static_cast<double>(computed) < 1.02 * static_cast<double>(needed),
          "few lanes are idle", target.name, threads);
}

}  // namespace

int main() {
    for (const Target& target : kTargets)
        for (const int threads : {1, 2, 3, 16, 64, 100, 128, 1024})
            for (const int burst : {1, 40}) test_schedule(target, threads, burst);
    return finish("schedule");
}
