// Bindings of tests alone, in the submodule _core.testing: kernels by themselves.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>

#include "bindings/arguments.hpp"
#include "core/rng.hpp"
#include "core/simd_target.hpp"

namespace worldmodels {
namespace {

py::array_t<float> elementwise(const std::string& level, const std::string& function, const py::array& x) {
    const float* const in = checked<float>(x, "x", {"N"});
    static const std::pair<const char*, Function> known[] = {{"exp", Function::exp},
                                                             {"log", Function::log},
                                                             {"tanh", Function::tanh},
                                                             {"sin_turns", Function::sin_turns},
                                                             {"cos_turns", Function::cos_turns}};
    py::array_t<float> out(x.size());
    for (const auto& [name, f] : known)
        if (function == name) {
            find_simd_target(level, "level")
                .testing.elementwise(f, in, out.mutable_data(), static_cast<std::size_t>(x.size()));
            return out;
        }
    throw py::value_error("function: unknown name '" + function + "'");
}

py::array_t<float> draws(const std::string& level, std::uint64_t seed, std::uint32_t candidate,
                         std::uint32_t episode, std::uint32_t step, long long count) {
    const int blocks = checked_integer(count, 1, "count");
    py::array_t<float> out(std::vector<py::ssize_t>{4, blocks});
    find_simd_target(level, "level")
        .testing.draws(philox_key(seed).data(), candidate, episode, step, static_cast<std::uint32_t>(blocks),
                       out.mutable_data());
    return out;
}

// out (8, 8) = a^T b for a, b (depth, 8).
py::array_t<double> tile_product(const std::string& level, const py::array& a, const py::array& b) {
    const double* const left = checked_doubles(a, "a", {"K", kTile});
    const double* const right = checked_doubles(b, "b", {a.shape(0), kTile});
    py::array_t<double> out({kTile, kTile});
    find_simd_target(level, "level").tile_product(a.shape(0), left, right, out.mutable_data());
    return out;
}

}  // namespace
}  // namespace worldmodels

void bind_testing(pybind11::module_& m) {
    using namespace worldmodels;
    using namespace pybind11::literals;

    m.def("philox4x32", &philox4x32, "counter"_a, "key"_a);
    m.def("elementwise", &elementwise, "level"_a, "function"_a, "x"_a);
    m.def("draws", &draws, "level"_a, "seed"_a, "candidate"_a, "episode"_a, "step"_a, "count"_a);
    m.def("tile_product", &tile_product, "level"_a, "a"_a, "b"_a);
}
