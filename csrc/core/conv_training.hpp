// Training of V's convolutions, with float32 or bfloat16 products and float32 sums.
#pragma once

#include <vector>

#include "core/aligned.hpp"
#include "kernels/kernels.hpp"

namespace worldmodels {

// A convolution of stride 2 without padding, from images (B, side, side, channels) to features (B, out_side,
// out_side, filters). Weights are (filters, kernel, kernel, channels): PyTorch's channels-last memory format
// of its convolution, and of its transposed convolution, which maps features to images.
struct ConvShape {
    int side, channels, filters, kernel;

    int out_side() const { return (side - kernel) / 2 + 1; }
    int positions() const { return out_side() * out_side(); }
    int window() const { return kernel * kernel * channels; }
    std::size_t image_size() const {
        return static_cast<std::size_t>(side) * static_cast<std::size_t>(side * channels);
    }
    std::size_t features_size() const {
        return static_cast<std::size_t>(positions()) * static_cast<std::size_t>(filters);
    }
};

// The products of a layer. Keeps its memory for the next call; one call at a time.
//
// The results depend neither on the number of threads nor on a frame's place in the batch. Throws
// std::bad_alloc, and std::runtime_error as check_not_forked.
class ConvTraining {
  public:
    // `filters` is a multiple of 32; so is `channels` from 32 on.
    explicit ConvTraining(const ConvShape& shape);

    const ConvShape& shape() const { return shape_; }
    // features = the convolution of the images, plus the bias (filters) where there is one, its ReLU if
    // asked.
    void convolve_unchecked(const ConvTrainingKernels& kernels, int batch, const float* images,
                            const float* weights, const float* bias, bool relu, int threads, float* features);
    // images = the transposed convolution of the features, plus the bias (channels), its ReLU if asked.
    void transpose_unchecked(const ConvTrainingKernels& kernels, int batch, const float* features,
                             const float* weights, const float* bias, bool relu, int threads, float* images);
    // gradient (filters, kernel, kernel, channels) of the weights: that of one side, the values of the other.
    void weight_gradient_unchecked(const ConvTrainingKernels& kernels, int batch, const float* images,
                                   const float* features, int threads, float* gradient);

  private:
    using Buffer = GrowingFloats;

    struct Thread {
        Buffer scratch;
        std::vector<const float*> in;
        std::vector<float*> out;
    };

    // Images as an operand, in floats that hold `pack` values: a pixel, a line, the parts of a window that
    // are contiguous and their length.
    struct Operand {
        int pixel, line, length;
        std::vector<std::ptrdiff_t> segments;
    };

    static Operand operand(const ConvShape& shape, int pixel);
    // Where a window begins; rows number the windows of all images.
    std::size_t window_at(const Operand& operand, std::size_t row) const;
    // Where column `column` of a window lies in the image, from the window's start.
    std::ptrdiff_t place_of(int column) const;
    void start_threads(int threads, int rows, std::size_t scratch);
    // Of convolve_unchecked.
    const float* pack_filters(const ConvTrainingKernels& kernels, const float* weights, int threads);
    const float* pack_images(const ConvTrainingKernels& kernels, int batch, const float* images, int threads);
    // transpose_unchecked where a pixel is not a whole panel, and its parts.
    struct Narrow;
    void transpose_narrow(const ConvTrainingKernels& kernels, int batch, const float* features,
                          const float* weights, const float* bias, bool relu, int threads, float* images);
    const float* pack_taps(const ConvTrainingKernels& kernels, const Narrow& n, const float* weights);
    void pad_features(const ConvTrainingKernels& kernels, const Narrow& n, const float* features,
                      float* padded) const;
    void copy_line(const Narrow& n, const float* sums, float* line) const;
    // Of weight_gradient_unchecked.
    struct Tiles;
    void pack_windows(const ConvTrainingKernels& kernels, const Tiles& t, int frames, const float* images,
                      const float* features, int threads, float* image_pairs, float* feature_pairs) const;
    void sum_tiles(const ConvTrainingKernels& kernels, const Tiles& t, int begin, int end, int terms,
                   const float* features, bool from_zero, Thread& own, float* sums) const;

    ConvShape shape_;
    int line_;              // values of a window's line
    bool narrow_;           // a pixel is not a whole panel
    Operand whole_, half_;  // of values, of pairs of neighbours
    Buffer panels_, left_, right_, gradient_;
    std::vector<Thread> threads_;
};

// before (count, channels) = the gradient before a layer's ReLU, from that of its output; sums (channels) =
// the gradient of the bias. The same bits for any number of threads.
void relu_backward_unchecked(const ConvTrainingKernels& kernels, std::int64_t count, int channels,
                             const float* output, const float* gradient, int threads, float* before,
                             float* sums);

}  // namespace worldmodels
