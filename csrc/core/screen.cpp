// Resizing of a game's screen: the weights of Pillow's bilinear filter, which averages over the source area.
#include "core/screen.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace worldmodels {

ScreenResizer::Taps::Taps(int size) {
    const double scale = static_cast<double>(size) / kScreenSide, support = std::max(scale, 1.0);
    std::vector<int> last;
    for (int i = 0; i < kScreenSide; ++i) {
        const double center = (i + 0.5) * scale;
        first.push_back(std::max(static_cast<int>(center - support + 0.5), 0));
        last.push_back(std::min(static_cast<int>(center + support + 0.5), size));
        count = std::max(count, last.back() - first.back());
    }
    std::vector<double> w;
    for (int i = 0; i < kScreenSide; ++i) {
        const double center = (i + 0.5) * scale;
        const auto at = static_cast<std::size_t>(i);
        const int from = std::min(first[at], size - count);  // taps before the first one have weight 0
        double sum = 0.0;
        w.assign(static_cast<std::size_t>(count), 0.0);
        for (int x = first[at]; x < last[at]; ++x) {
            const double distance = std::fabs((x - center + 0.5) * (1.0 / support));
            sum += w[static_cast<std::size_t>(x - from)] = distance < 1.0 ? 1.0 - distance : 0.0;
        }
        first[at] = from;
        for (const double weight : w)
            weights.insert(weights.end(), 4,
                           static_cast<std::int32_t>(0.5 + weight / sum * (1 << kWeightBits)));
    }
}

ScreenResizer::ScreenResizer(int height, int width)
    : height_(height), width_(width), columns_(width), rows_(height) {}

void ScreenResizer::resize_unchecked(const Kernels& kernels, const std::uint8_t* screen,
                                     std::uint8_t* frame) const {
    const auto row = static_cast<std::size_t>(width_) * 3;
    std::vector<std::uint8_t> rows(static_cast<std::size_t>(height_) * kScreenRow + 1);
    std::vector<std::uint8_t> last(row + 1);  // the kernel reads and writes one byte beyond a row
    std::memcpy(last.data(), screen + static_cast<std::size_t>(height_ - 1) * row, row);
    std::uint8_t* out = rows.data();
    for (int y = 0; y < height_; ++y, out += kScreenRow)
        kernels.resize_columns(
            columns_.view(), y + 1 < height_ ? screen + static_cast<std::size_t>(y) * row : last.data(), out);
    kernels.resize_rows(rows_.view(), rows.data(), frame);
}

}  // namespace worldmodels
