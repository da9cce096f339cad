// LZF: a literal run is (length - 1) < 32, then its bytes; a match is 3 bits of length and 13 bits of
// distance.
#include "core/lzf.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace worldmodels {
namespace {

constexpr int kHashBits = 13;
constexpr std::size_t kLongestRun = 32, kLongestMatch = 264, kFarthest = 8192, kShortestMatch = 3;

template <class Word>
Word read(const std::uint8_t* p) {
    Word word;
    std::memcpy(&word, p, sizeof word);
    return word;
}

// The three bytes at p; four are read.
std::uint32_t three(const std::uint8_t* p) {
    const auto word = read<std::uint32_t>(p);
    return std::endian::native == std::endian::little ? word & 0xFFFFFFU : word >> 8;
}

std::size_t hash(std::uint32_t bytes) {
    return (bytes * 2654435761U) >> (32 - kHashBits);
}

// Length of the common start of a and b, at most `most`.
std::size_t common(const std::uint8_t* a, const std::uint8_t* b, std::size_t most) {
    std::size_t n = 0;
    while (n + 8 <= most && read<std::uint64_t>(a + n) == read<std::uint64_t>(b + n)) n += 8;
    while (n < most && a[n] == b[n]) ++n;
    return n;
}

}  // namespace

std::size_t lzf_compress_unchecked(const std::uint8_t* in, std::size_t size, std::uint8_t* out) {
    std::array<std::uint16_t, std::size_t{1} << kHashBits> seen{};  // 1 + the last position of a hash
    const std::uint8_t* const out_end = out + size;
    std::uint8_t* to = out;
    std::size_t literals = 0, at = 0;
    const auto add_literals = [&](std::size_t stop) {
        while (literals < stop) {
            const std::size_t run = std::min(stop - literals, kLongestRun);
            if (static_cast<std::size_t>(out_end - to) <= run + 1) return false;
            *to++ = static_cast<std::uint8_t>(run - 1);
            std::memcpy(to, in + literals, run);
            to += run;
            literals += run;
        }
        return true;
    };
    while (at + 4 <= size) {
        const std::uint32_t bytes = three(in + at);
        std::uint16_t& last = seen[hash(bytes)];
        const std::size_t match = last;  // 1 + its position
        last = static_cast<std::uint16_t>(at + 1);
        if (match == 0 || at + 1 - match > kFarthest || three(in + match - 1) != bytes) {
            ++at;
            continue;
        }
        const std::size_t most = std::min(size - at, kLongestMatch);
        const std::size_t length =
            kShortestMatch +
            common(in + at + kShortestMatch, in + match - 1 + kShortestMatch, most - kShortestMatch);
        if (!add_literals(at) || out_end - to <= 3) return 0;
        const std::size_t distance = at - match, rest = length - 2;  // distance - 1, in the format's terms
        *to++ = static_cast<std::uint8_t>(std::min<std::size_t>(rest, 7) << 5 | distance >> 8);
        if (rest >= 7) *to++ = static_cast<std::uint8_t>(rest - 7);
        *to++ = static_cast<std::uint8_t>(distance & 0xFF);
        at += length;
        literals = at;
        if (at + 3 <= size) seen[hash(three(in + at - 1))] = static_cast<std::uint16_t>(at);
    }
    return add_literals(size) ? static_cast<std::size_t>(to - out) : 0;
}

std::uint32_t fletcher32_unchecked(const std::uint8_t* in, std::size_t size) {
    constexpr std::size_t kWords = 360;  // added before the sums could exceed 32 bits
    std::uint32_t first = 0, second = 0;
    const auto fold = [](std::uint32_t sum) { return (sum & 0xFFFFU) + (sum >> 16); };
    for (std::size_t words = size / 2; words > 0;) {
        const std::size_t some = std::min(words, kWords);
        for (std::size_t i = 0; i < some; ++i, in += 2) {
            first += std::uint32_t{in[0]} << 8 | in[1];
            second += first;
        }
        words -= some;
        first = fold(first);
        second = fold(second);
    }
    if (size % 2 != 0) {
        first = fold(first + (std::uint32_t{in[0]} << 8));
        second = fold(second + first);
    }
    return fold(second) << 16 | fold(first);
}

}  // namespace worldmodels
