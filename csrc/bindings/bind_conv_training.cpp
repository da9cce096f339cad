// Bindings of the training of V's convolutions: checked arrays in, new arrays out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "bindings/precision.hpp"
#include "core/conv_training.hpp"
#include "core/lock.hpp"

namespace worldmodels {
namespace {

using Training = Guarded<ConvTraining>;
using Floats = py::array_t<float>;

constexpr int kWidth = 32;  // filters, and channels from here on, come in multiples of it
constexpr int kMaxBatch = 1 << 20;
constexpr long long kMaxWeights = 1 << 26;  // an int indexes every product of a layer

std::unique_ptr<Training> make_training(long long side, long long channels, long long filters,
                                        long long kernel) {
    const int c = checked_integer(channels, 1, "channels", 1 << 12);
    const int f = checked_integer(filters, kWidth, "filters", 1 << 12);
    if (f % kWidth != 0 || (c > kWidth && c % kWidth != 0))
        throw py::value_error("channels, filters: expected multiples of 32, or fewer channels, got " +
                              std::to_string(channels) + " and " + std::to_string(filters));
    const int s = checked_integer(side, 1, "side", 512);
    const ConvShape shape{s, c, f, checked_integer(kernel, 1, "kernel", s)};
    const long long weights = static_cast<long long>(f) * shape.window();
    if (weights > kMaxWeights)
        throw py::value_error("channels, filters, kernel: expected at most " + std::to_string(kMaxWeights) +
                              " weights, got " + std::to_string(weights));
    return std::unique_ptr<Training>(new Training{ConvTraining(shape), {}});
}

const ConvTrainingKernels& kernels_for(const std::string& precision) {
    return training_kernels(precision, &Kernels::conv, &Kernels::conv_bfloat16, &TestKernels::conv_bfloat16);
}

int checked_batch(const py::array& array, const std::string& name) {
    return checked_integer(array.ndim() > 0 ? array.shape(0) : 0, 1, name + ": B", kMaxBatch);
}
const float* checked_images(const ConvShape& s, const py::array& array) {
    return checked<float>(array, "images", {"B", s.side, s.side, s.channels});
}
const float* checked_features(const ConvShape& s, const py::array& array) {
    return checked<float>(array, "features", {"B", s.out_side(), s.out_side(), s.filters});
}
const float* checked_weights(const ConvShape& s, const py::array& array) {
    return checked<float>(array, "weights", {s.filters, s.kernel, s.kernel, s.channels});
}
const float* checked_bias(const std::optional<py::array>& array, int size) {
    return array ? checked<float>(*array, "bias", {size}) : nullptr;
}

Floats convolve(Training& self, const py::array& images, const py::array& weights,
                const std::optional<py::array>& bias, bool relu, const std::string& precision,
                long long num_threads) {
    const ConvShape& s = self.object.shape();
    const float* const from = checked_images(s, images);
    const float* const w = checked_weights(s, weights);
    const float* const b = checked_bias(bias, s.filters);
    const int batch = checked_batch(images, "images"), threads = checked_threads(num_threads);
    Floats features(std::vector<py::ssize_t>{batch, s.out_side(), s.out_side(), s.filters});
    float* const to = features.mutable_data();
    const ConvTrainingKernels& kernels = kernels_for(precision);
    {
        const py::gil_scoped_release release;
        const std::lock_guard guard(self.lock);
        self.object.convolve_unchecked(kernels, batch, from, w, b, relu, threads, to);
    }
    return features;
}

Floats transpose(Training& self, const py::array& features, const py::array& weights,
                 const std::optional<py::array>& bias, bool relu, const std::string& precision,
                 long long num_threads) {
    const ConvShape& s = self.object.shape();
    const float* const from = checked_features(s, features);
    const float* const w = checked_weights(s, weights);
    const float* const b = checked_bias(bias, s.channels);
    const int batch = checked_batch(features, "features"), threads = checked_threads(num_threads);
    Floats images(std::vector<py::ssize_t>{batch, s.side, s.side, s.channels});
    float* const to = images.mutable_data();
    const ConvTrainingKernels& kernels = kernels_for(precision);
    {
        const py::gil_scoped_release release;
        const std::lock_guard guard(self.lock);
        self.object.transpose_unchecked(kernels, batch, from, w, b, relu, threads, to);
    }
    return images;
}

Floats weight_gradient(Training& self, const py::array& images, const py::array& features,
                       const std::string& precision, long long num_threads) {
    const ConvShape& s = self.object.shape();
    const float* const image = checked_images(s, images);
    const int batch = checked_batch(images, "images"), threads = checked_threads(num_threads);
    const float* const feature =
        checked<float>(features, "features", {batch, s.out_side(), s.out_side(), s.filters});
    Floats gradient(std::vector<py::ssize_t>{s.filters, s.kernel, s.kernel, s.channels});
    float* const to = gradient.mutable_data();
    const ConvTrainingKernels& kernels = kernels_for(precision);
    {
        const py::gil_scoped_release release;
        const std::lock_guard guard(self.lock);
        self.object.weight_gradient_unchecked(kernels, batch, image, feature, threads, to);
    }
    return gradient;
}

py::tuple relu_backward(const py::array& output, const py::array& gradient, long long num_threads) {
    const float* const out = checked<float>(output, "output", {"B", "H", "W", "C"});
    const float* const from = checked<float>(
        gradient, "gradient", {output.shape(0), output.shape(1), output.shape(2), output.shape(3)});
    const int channels = checked_integer(output.shape(3), 1, "output: C"),
              threads = checked_threads(num_threads);
    Floats before(std::vector<py::ssize_t>{output.shape(0), output.shape(1), output.shape(2), channels});
    Floats bias(std::vector<py::ssize_t>{channels});
    float* const to = before.mutable_data();
    float* const sums = bias.mutable_data();
    {
        const py::gil_scoped_release release;
        relu_backward_unchecked(current_simd_target().conv, output.size() / channels, channels, out, from,
                                threads, to, sums);
    }
    return py::make_tuple(before, bias);
}

}  // namespace
}  // namespace worldmodels

void bind_conv_training(pybind11::module_& m) {
    namespace py = pybind11;
    using namespace worldmodels;
    using namespace py::literals;

    py::class_<Training>(m, "ConvTraining")
        .def(py::init(&make_training), py::kw_only(), "side"_a, "channels"_a, "filters"_a, "kernel"_a)
        .def("convolve", &convolve, "images"_a, "weights"_a, "bias"_a, py::kw_only(), "relu"_a, "precision"_a,
             "num_threads"_a)
        .def("transpose", &transpose, "features"_a, "weights"_a, "bias"_a, py::kw_only(), "relu"_a,
             "precision"_a, "num_threads"_a)
        .def("weight_gradient", &weight_gradient, "images"_a, "features"_a, py::kw_only(), "precision"_a,
             "num_threads"_a);
    m.def("relu_backward", &relu_backward, "output"_a, "gradient"_a, py::kw_only(), "num_threads"_a);
}
