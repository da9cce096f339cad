// Bindings of V's encoder: checked arrays in, new arrays out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>

#include "bindings/arguments.hpp"
#include "core/encoder.hpp"
#include "core/simd_target.hpp"

namespace worldmodels {
namespace {

std::unique_ptr<Encoder> make_encoder(const std::vector<py::array>& weights,
                                      const std::vector<py::array>& biases, const py::array& mu,
                                      const py::array& mu_bias, const py::array& logvar,
                                      const py::array& logvar_bias) {
    if (weights.size() != kConvolutions || biases.size() != kConvolutions)
        throw py::value_error("weights, biases: expected 4 of each, got " + std::to_string(weights.size()) +
                              " and " + std::to_string(biases.size()));
    EncoderWeights w{};
    int channels = kFrameChannels;
    for (std::size_t layer = 0; layer < kConvolutions; ++layer) {
        w.weight[layer] =
            checked_floats(weights[layer], "weights", {kFilters[layer], channels, kConvKernel, kConvKernel});
        w.bias[layer] = checked_floats(biases[layer], "biases", {kFilters[layer]});
        channels = kFilters[layer];
    }
    w.mu = checked_floats(mu, "mu", {"Z", kFeatures});
    if (mu.shape(0) > kMaxLatents)
        throw py::value_error("mu: expected at most " + std::to_string(kMaxLatents) + " rows, got " +
                              std::to_string(mu.shape(0)));
    const int latent = static_cast<int>(mu.shape(0));
    w.mu_bias = checked_floats(mu_bias, "mu_bias", {latent});
    w.logvar = checked_floats(logvar, "logvar", {latent, kFeatures});
    w.logvar_bias = checked_floats(logvar_bias, "logvar_bias", {latent});
    return std::make_unique<Encoder>(w, latent);
}

py::tuple encode(const Encoder& self, const py::array& frames, long long num_threads) {
    const auto* const pixels =
        checked<std::uint8_t>(frames, "frames", {"B", kFrameSide, kFrameSide, kFrameChannels});
    if (frames.shape(0) > kMaxFrames)
        throw py::value_error("frames: expected at most " + std::to_string(kMaxFrames) + ", got " +
                              std::to_string(frames.shape(0)));
    const int threads = checked_threads(num_threads);
    const std::vector<py::ssize_t> shape{frames.shape(0), self.latent()};
    py::array_t<float> mu(shape), logvar(shape);
    float* const to_mu = mu.mutable_data();
    float* const to_logvar = logvar.mutable_data();
    const int count = static_cast<int>(frames.shape(0));
    const Kernels& kernels = current_simd_target();
    bool complete = false;
    {
        const py::gil_scoped_release release;
        complete =
            self.encode_unchecked(kernels, pixels, count, threads, to_mu, to_logvar, {interrupted, nullptr});
    }
    if (!complete) throw py::error_already_set();
    return py::make_tuple(mu, logvar);
}

}  // namespace
}  // namespace worldmodels

void bind_encoder(pybind11::module_& m) {
    namespace py = pybind11;
    using namespace worldmodels;
    using namespace py::literals;

    py::class_<Encoder>(m, "Encoder")
        .def(py::init(&make_encoder), "weights"_a, "biases"_a, "mu"_a, "mu_bias"_a, "logvar"_a,
             "logvar_bias"_a)
        .def("encode", &encode, "frames"_a, "num_threads"_a);
}
