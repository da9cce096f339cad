// Bindings of V's decoder: checked arrays in, new frames out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>

#include "bindings/arguments.hpp"
#include "core/decoder.hpp"
#include "core/simd_target.hpp"

namespace worldmodels {
namespace {

std::unique_ptr<Decoder> make_decoder(const py::array& point, const py::array& point_bias,
                                      const std::vector<py::array>& weights,
                                      const std::vector<py::array>& biases) {
    if (weights.size() != kDeconvolutions || biases.size() != kDeconvolutions)
        throw py::value_error("weights, biases: expected 3 of each, got " + std::to_string(weights.size()) +
                              " and " + std::to_string(biases.size()));
    DecoderWeights w{};
    w.point = checked_floats(point, "point", {kPointRows, "Z"});
    if (point.shape(1) > kMaxLatents)
        throw py::value_error("point: expected at most " + std::to_string(kMaxLatents) + " columns, got " +
                              std::to_string(point.shape(1)));
    w.point_bias = checked_floats(point_bias, "point_bias", {kPointRows});
    int channels = kPointChannels;
    for (std::size_t layer = 0; layer < kDeconvolutions; ++layer) {
        const int filters = kDeconvFilters[layer], kernel = kDeconvKernels[layer];
        w.weight[layer] = checked_floats(weights[layer], "weights", {channels, filters, kernel, kernel});
        w.bias[layer] = checked_floats(biases[layer], "biases", {filters});
        channels = filters;
    }
    return std::make_unique<Decoder>(w, static_cast<int>(point.shape(1)));
}

py::array_t<std::uint8_t> decode(const Decoder& self, const py::array& z, long long num_threads) {
    const float* const latents = checked_floats(z, "z", {"B", self.latent()});
    if (z.shape(0) > kMaxFrames)
        throw py::value_error("z: expected at most " + std::to_string(kMaxFrames) + " rows, got " +
                              std::to_string(z.shape(0)));
    const int threads = checked_threads(num_threads), count = static_cast<int>(z.shape(0));
    py::array_t<std::uint8_t> frames(std::vector<py::ssize_t>{count, 64, 64, 3});
    std::uint8_t* const to = frames.mutable_data();
    const Kernels& kernels = current_simd_target();
    bool complete = false;
    {
        const py::gil_scoped_release release;
        complete = self.decode_unchecked(kernels, latents, count, threads, to, {interrupted, nullptr});
    }
    if (!complete) throw py::error_already_set();
    return frames;
}

}  // namespace
}  // namespace worldmodels

void bind_decoder(pybind11::module_& m) {
    namespace py = pybind11;
    using namespace worldmodels;
    using namespace py::literals;

    py::class_<Decoder>(m, "Decoder")
        .def(py::init(&make_decoder), "point"_a, "point_bias"_a, "weights"_a, "biases"_a)
        .def("decode", &decode, "z"_a, "num_threads"_a);
}
