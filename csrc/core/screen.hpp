// Resizing of a game's screen to a frame of 64x64 by Pillow's bilinear filter, across the columns first. The
// bits are Pillow's, except of some tall screens, whose rows Pillow filters first: there they differ by 1 at
// most.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.hpp"

namespace worldmodels {

// The resizing of screens of one size. Safe from any number of threads.
class ScreenResizer {
  public:
    ScreenResizer(int height, int width);

    int height() const { return height_; }
    int width() const { return width_; }
    // screen (height, width, 3) to frame (64, 64, 3). Throws std::bad_alloc.
    void resize_unchecked(const Kernels& kernels, const std::uint8_t* screen, std::uint8_t* frame) const;

  private:
    // The pixels along one axis that a pixel of the frame is the weighted mean of.
    struct Taps {
        explicit Taps(int size);
        TapsView view() const { return {count, first.data(), weights.data()}; }

        int count = 0;
        std::vector<int> first;             // (64)
        std::vector<std::int32_t> weights;  // (64, count, 4)
    };

    int height_, width_;
    Taps columns_, rows_;
};

}  // namespace worldmodels
