// Bindings of the resizing of screens.
#include <pybind11/pybind11.h>

#include <memory>

#include "bindings/arguments.hpp"
#include "core/screen.hpp"
#include "core/simd_target.hpp"

namespace worldmodels {
namespace {

constexpr long long kMaxSide = 1 << 14;

py::array_t<std::uint8_t> resize(const ScreenResizer& self, const py::array& screen) {
    const auto* const pixels = checked<std::uint8_t>(screen, "screen", {self.height(), self.width(), 3});
    py::array_t<std::uint8_t> frame({kScreenSide, kScreenSide, 3});
    std::uint8_t* const out = frame.mutable_data();
    const Kernels& kernels = current_simd_target();
    {
        const py::gil_scoped_release release;
        self.resize_unchecked(kernels, pixels, out);
    }
    return frame;
}

}  // namespace
}  // namespace worldmodels

void bind_screen(pybind11::module_& m) {
    namespace py = pybind11;
    using namespace worldmodels;
    using namespace py::literals;

    py::class_<ScreenResizer>(m, "ScreenResizer")
        .def(py::init([](long long height, long long width) {
                 return std::make_unique<ScreenResizer>(checked_integer(height, 1, "height", kMaxSide),
                                                        checked_integer(width, 1, "width", kMaxSide));
             }),
             "height"_a, "width"_a)
        .def("resize", &resize, "screen"_a);
}
