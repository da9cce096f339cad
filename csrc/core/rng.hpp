// Philox4x32-10, the counter-based generator of every random number (Salmon et al. 2011, "Parallel random
// numbers: as easy as 1, 2, 3").
//
// The key is the seed. The dream's counter is (block, step, episode, candidate); step 0 is the start of an
// episode. The last block holds draws made once a step: the initial row, the termination.
#pragma once

#include <array>
#include <cstdint>

namespace worldmodels {

constexpr std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                                  std::array<std::uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t a = std::uint64_t{0xD2511F53U} * counter[0];
        const std::uint64_t b = std::uint64_t{0xCD9E8D57U} * counter[2];
        counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
                   static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
        key[0] += 0x9E3779B9U;
        key[1] += 0xBB67AE85U;
    }
    return counter;
}

constexpr std::array<std::uint32_t, 2> philox_key(std::uint64_t seed) {
    return {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
}

// The row of the initial states that an episode starts from, uniform over [0, rows).
constexpr std::uint32_t start_row(std::uint64_t seed, std::uint32_t candidate, std::uint32_t episode,
                                  std::uint32_t rows) {
    const std::uint32_t bits = philox4x32({0xFFFFFFFFU, 0, episode, candidate}, philox_key(seed))[0];
    return static_cast<std::uint32_t>((std::uint64_t{bits} * rows) >> 32);
}

// The uniform number in (0, 1) that samples termination at a step.
constexpr double termination_uniform(std::uint64_t seed, std::uint32_t candidate, std::uint32_t episode,
                                     std::uint32_t step) {
    const std::uint32_t bits = philox4x32({0xFFFFFFFFU, step, episode, candidate}, philox_key(seed))[0];
    return (bits + 0.5) * 0x1p-32;
}

}  // namespace worldmodels
