// Resizing without Python: screens of every size on every SIMD target against means in float64.
#include <algorithm>
#include <cstdint>

#include "check.hpp"
#include "core/screen.hpp"

namespace {

using namespace worldmodels;
using namespace worldmodels::test;
using Bytes = std::vector<std::uint8_t>;

Bytes random_bytes(std::size_t size, std::uint64_t seed) {
    Numbers numbers(seed);
    Bytes bytes(size);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>((numbers.next(1.0F) + 1.0F) * 127.5F);
    return bytes;
}

// The mean of an output pixel along one axis.
std::vector<double> weights(int size, int i) {
    const double scale = static_cast<double>(size) / kScreenSide, support = std::max(scale, 1.0);
    std::vector<double> w(static_cast<std::size_t>(size));
    double sum = 0.0;
    for (int x = 0; x < size; ++x)
        sum += w[static_cast<std::size_t>(x)] =
            std::max(0.0, 1.0 - std::fabs(x + 0.5 - (i + 0.5) * scale) / support);
    for (double& weight : w) weight /= sum;
    return w;
}

void test_screen(int height, int width, long long number) {
    const auto row = static_cast<std::size_t>(width) * 3;
    const Bytes screen =
        random_bytes(static_cast<std::size_t>(height) * row, static_cast<std::uint64_t>(number));
    const ScreenResizer resizer(height, width);
    Bytes first;
    const SimdTargets targets = supported_simd_targets();
    for (std::size_t t = 0; t < targets.count; ++t) {
        const Kernels& kernels = *targets.begin[t];
        Bytes frame(std::size_t{kScreenSide} * kScreenRow);
        resizer.resize_unchecked(kernels, screen.data(), frame.data());
        if (first.empty()) first = frame;
        check(frame == first, "the SIMD target does not matter", kernels.name, number);
    }
    for (int y = 0; y < kScreenSide; y += 7) {
        const std::vector<double> wy = weights(height, y);
        for (int x = 0; x < kScreenSide; x += 9) {
            const std::vector<double> wx = weights(width, x);
            double mean = 0.0;
            for (std::size_t v = 0; v < wy.size(); ++v)
                for (std::size_t u = 0; u < wx.size(); ++u)
                    mean += wy[v] * wx[u] * screen[v * row + 3 * u + 1];
            const double got = first[static_cast<std::size_t>(y * kScreenRow + 3 * x + 1)];
            check(std::fabs(got - mean) <= 1.01, "a pixel is a weighted mean", "all", number);
        }
    }
}

}  // namespace

int main() {
    long long number = 0;
    for (const int height : {1, 2, 63, 64, 65, 100, 300})
        for (const int width : {1, 3, 64, 84, 160}) test_screen(height, width, number++);
    return finish("screen");
}
