// The arrays that cross the border: names for their types, and the checks that name the argument at fault.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>
#include <thread>

namespace worldmodels {

namespace py = pybind11;

using FloatArray = py::array_t<float, py::array::c_style>;
using IntArray = py::array_t<std::int32_t, py::array::c_style>;
using BoolArray = py::array_t<bool, py::array::c_style>;

// One axis of an expected shape: a size, or a letter for any size of at least one.
struct Axis {
    Axis(int n) : size(n) {}  // NOLINT: implicit, so that shapes read as they are written
    Axis(std::size_t n) : size(static_cast<py::ssize_t>(n)) {}  // NOLINT
    Axis(const char* letter) : name(letter) {}                  // NOLINT
    std::string text() const { return name ? name : std::to_string(size); }
    bool takes(py::ssize_t n) const { return name ? n > 0 : n == size; }

    py::ssize_t size = 0;
    const char* name = nullptr;
};

inline std::string tuple_text(const std::string& inside, std::size_t axes) {
    return "(" + inside + (axes == 1 ? ",)" : ")");
}

// "name: expected (K, 64) float32, got (1000, 32) float64"
template <class T>
const T* checked(const py::array& array, const char* name, std::initializer_list<Axis> shape,
                 const char* dtype) {
    bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size());
    std::string wanted, got;
    py::ssize_t axis = 0;
    for (const Axis& expected : shape) {
        wanted += (axis > 0 ? ", " : "") + expected.text();
        fits = fits && expected.takes(array.shape(axis));
        ++axis;
    }
    for (axis = 0; axis < array.ndim(); ++axis)
        got += (axis > 0 ? ", " : "") + std::to_string(array.shape(axis));
    const bool typed = py::isinstance<py::array_t<T>>(array);
    const bool packed = (array.flags() & py::array::c_style) != 0;
    const bool aligned = (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
    if (!fits || !typed || !packed || !aligned)
        throw py::value_error(std::string(name) + ": expected " + tuple_text(wanted, shape.size()) + " " +
                              dtype + ", got " + tuple_text(got, static_cast<std::size_t>(array.ndim())) +
                              " " + py::str(array.dtype()).cast<std::string>() +
                              (packed ? "" : ", not contiguous") + (aligned ? "" : ", not aligned"));
    return static_cast<const T*>(array.data());
}

// The same for floats, all finite.
inline const float* checked_floats(const py::array& array, const char* name,
                                   std::initializer_list<Axis> shape) {
    const float* const data = checked<float>(array, name, shape, "float32");
    for (py::ssize_t i = 0; i < array.size(); ++i)
        if (!std::isfinite(data[i]))
            throw py::value_error(std::string(name) + ": expected finite numbers, got " +
                                  std::to_string(data[i]) + " at flat index " + std::to_string(i));
    return data;
}

// A team of at most 64 threads, or of as many as there are processors: OpenMP ends the process where it gets
// none.
inline int checked_threads(long long threads) {
    if (threads < 1)
        throw py::value_error("num_threads: expected at least 1, got " + std::to_string(threads));
    return static_cast<int>(std::min<long long>(threads, std::max(64U, std::thread::hardware_concurrency())));
}

}  // namespace worldmodels
