// Compression without Python: LZF against a decompressor written from the format, and known checksums.
#include <algorithm>
#include <cstdint>

#include "check.hpp"
#include "core/lzf.hpp"

namespace {

using namespace worldmodels;
using namespace worldmodels::test;
using Bytes = std::vector<std::uint8_t>;

// Random bytes below `limit`, each repeated up to `repeats` times.
Bytes random_bytes(std::size_t size, float limit, float repeats, std::uint64_t seed) {
    Numbers numbers(seed);
    const auto below = [&](float n) { return static_cast<int>((numbers.next(1.0F) + 1.0F) * 0.5F * n); };
    Bytes bytes;
    while (bytes.size() < size) {
        const auto times = static_cast<std::size_t>(1 + below(repeats));
        bytes.insert(bytes.end(), times, static_cast<std::uint8_t>(below(limit)));
    }
    bytes.resize(size);
    return bytes;
}

// Empty where the data is damaged.
Bytes decompressed(const Bytes& data) {
    Bytes out;
    for (std::size_t i = 0; i < data.size();) {
        const std::size_t control = data[i++];
        if (control < 32) {
            if (i + control + 1 > data.size()) return {};
            for (std::size_t k = 0; k <= control; ++k) out.push_back(data[i++]);
            continue;
        }
        std::size_t length = control >> 5;
        if (length == 7) length += data.at(i++);
        const std::size_t distance = ((control & 31) << 8 | data.at(i++)) + 1;
        if (distance > out.size()) return {};
        for (std::size_t k = 0; k < length + 2; ++k) out.push_back(out[out.size() - distance]);
    }
    return out;
}

void test_lzf() {
    long long number = 0;
    for (const std::size_t size : {1U, 3U, 4U, 5U, 31U, 64U, 300U, 8191U, 8200U, 12'288U, 65'535U})
        for (const float limit : {1.0F, 3.0F, 40.0F, 256.0F})
            for (const float repeats : {1.0F, 4.0F, 700.0F}) {
                const Bytes in =
                    random_bytes(size, limit, repeats, static_cast<std::uint64_t>(1000 + number));
                Bytes out(size);
                out.resize(lzf_compress_unchecked(in.data(), size, out.data()));
                check(out.size() < size, "compressed data is smaller", "lzf", number);
                check(out.empty() || decompressed(out) == in, "compressed data comes back", "lzf", number);
                check(!out.empty() || limit > 3.0F || size < 31, "repeats are found", "lzf", number);
                ++number;
            }
}

void test_fletcher32() {
    const Bytes text = {'a', 'b', 'c', 'd', 'e'};  // of words 0x6162 0x6364 0x6500
    check(fletcher32_unchecked(text.data(), 4) == 0x2629C4C6U, "sums of whole words", "fletcher32", 4);
    check(fletcher32_unchecked(text.data(), 5) == 0x4FF029C7U, "sums with half a word", "fletcher32", 5);
}

}  // namespace

int main() {
    test_lzf();
    test_fletcher32();
    return finish("lzf");
}
