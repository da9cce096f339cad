// Shared by the tests of the core: counted checks, and random numbers that are the same on every machine.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "core/rng.hpp"

namespace worldmodels::test {

inline constexpr double kEps = 0x1p-23;  // of float32
inline int failures = 0;

// Counts a failed check. `number` is the failed case; the first hundred failures are printed.
inline void check(bool good, const char* what, const char* target, long long number) {
    if (good) return;
    if (++failures <= 100) std::printf("failed: %s (%s, case %lld)\n", what, target, number);
}

inline int finish(const char* suite) {
    if (failures == 0)
        std::printf("%s: all passed\n", suite);
    else
        std::printf("%s: %d checks failed\n", suite, failures);
    return failures == 0 ? 0 : 1;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Uniform random numbers by Philox, independent of the standard library and libm.
class Numbers {
  public:
    explicit Numbers(std::uint64_t seed) : seed_(seed) {}
    float next(float spread) {
        const std::uint32_t word = philox4x32({count_++, 0, 0, 0}, philox_key(seed_))[0];
        return (static_cast<float>(word >> 8) * 0x1p-23F - 1.0F) * spread;
    }
    std::vector<float> floats(std::size_t count, float spread) {
        std::vector<float> out(count);
        for (float& x : out) x = next(spread);
        return out;
    }
    std::vector<double> doubles(std::size_t count) {
        std::vector<double> out(count);
        for (double& x : out) x = static_cast<double>(next(1.0F));
        return out;
    }

  private:
    std::uint64_t seed_;
    std::uint32_t count_ = 0;
};

}  // namespace worldmodels::test
