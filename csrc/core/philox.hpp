// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011) and standard normals in double made of
// it.
#pragma once

#include <array>
#include <cstdint>

namespace worldmodels {

using PhiloxCounter = std::array<std::uint32_t, 4>;

// One block of 128 random bits for a 64-bit key; ten rounds, the key bumped by the Weyl constants in between.
inline PhiloxCounter philox4x32(PhiloxCounter counter, std::uint64_t key) {
    auto key0 = static_cast<std::uint32_t>(key);
    auto key1 = static_cast<std::uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t left = std::uint64_t{0xD2511F53} * counter[0];
        const std::uint64_t right = std::uint64_t{0xCD9E8D57} * counter[2];
        counter = {
            static_cast<std::uint32_t>(right >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(right),
            static_cast<std::uint32_t>(left >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(left)};
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
    return counter;
}

// out[0..count) ~ N(0, 1), a pure function of (seed, generation, row): out[i] does not depend on count, the
// thread or what was drawn before. Box-Muller; the elementary functions are series of our own, so that no
// libm decides the bits.
void fill_normals(std::uint64_t seed, std::uint64_t generation, std::uint32_t row, std::int64_t count,
                  double* out);

}  // namespace worldmodels
