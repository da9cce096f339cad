// What the bindings share: checks of arguments, whose errors name the argument, what was expected and what
// came, and Ctrl-C in long calls.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <thread>
#include <type_traits>

namespace worldmodels {

namespace py = pybind11;

inline constexpr py::ssize_t kMaxFrames = 1 << 24, kMaxLatents = 1 << 14;  // of V

// One axis of an expected shape: a size, or a letter for any size of at least one.
struct Axis {
    template <class Integer>
        requires std::is_integral_v<Integer>
    Axis(Integer n) : size(static_cast<py::ssize_t>(n)) {}  // NOLINT: implicit, for shapes as braced lists
    Axis(const char* letter) : name(letter) {}              // NOLINT
    std::string text() const { return name ? name : std::to_string(size); }
    bool matches(py::ssize_t n) const { return name ? n > 0 : n == size; }

    py::ssize_t size = 0;
    const char* name = nullptr;
};
using Shape = std::initializer_list<Axis>;

inline std::string tuple_text(const std::string& inside, std::size_t axes) {
    return "(" + inside + (axes == 1 ? ",)" : ")");
}

// Numbers as Python writes them, so that small ones do not read as 0.
inline std::string number_text(double value) {
    return py::repr(py::float_(value));
}

// An object as Python writes it, cut off after 80 characters.
inline std::string repr_text(const py::object& object) {
    return py::str(py::repr(object)[py::slice(0, 80, 1)]);
}

inline py::object checked_entry(const py::dict& state, const char* name) {
    if (!state.contains(name)) throw py::value_error(std::string("state: expected the key ") + name);
    return state[name];
}

// The data of an array of this shape and dtype, contiguous and aligned. The error reads, for example,
// "name: expected (K, 64) float32, got (1000, 32) float64".
template <class T>
const T* checked(const py::array& array, const std::string& name, Shape shape) {
    bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size());
    std::string expected, got;
    py::ssize_t axis = 0;
    for (const Axis& wanted : shape) {
        expected += (axis > 0 ? ", " : "") + wanted.text();
        fits = fits && wanted.matches(array.shape(axis));
        ++axis;
    }
    for (axis = 0; axis < array.ndim(); ++axis)
        got += (axis > 0 ? ", " : "") + std::to_string(array.shape(axis));
    const auto text = [](const py::dtype& dtype) { return " " + py::str(dtype).cast<std::string>(); };
    const bool typed = py::isinstance<py::array_t<T>>(array);
    const bool contiguous = (array.flags() & py::array::c_style) != 0;
    const bool aligned = (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
    if (!fits || !typed || !contiguous || !aligned)
        throw py::value_error(name + ": expected " + tuple_text(expected, shape.size()) +
                              text(py::dtype::of<T>()) + ", got " +
                              tuple_text(got, static_cast<std::size_t>(array.ndim())) + text(array.dtype()) +
                              (contiguous ? "" : ", not contiguous") + (aligned ? "" : ", not aligned"));
    return static_cast<const T*>(array.data());
}

// The same for floating-point numbers, all finite.
template <class T>
const T* checked_finite(const py::array& array, const std::string& name, Shape shape) {
    const T* const data = checked<T>(array, name, shape);
    for (py::ssize_t i = 0; i < array.size(); ++i)
        if (!std::isfinite(data[i]))
            throw py::value_error(name + ": expected finite numbers, got " +
                                  number_text(static_cast<double>(data[i])) + " at flat index " +
                                  std::to_string(i));
    return data;
}
inline const float* checked_floats(const py::array& array, const std::string& name, Shape shape) {
    return checked_finite<float>(array, name, shape);
}
inline const double* checked_doubles(const py::array& array, const std::string& name, Shape shape) {
    return checked_finite<double>(array, name, shape);
}

// The bytes of flags. NumPy lets a bool hold any byte, which C++ does not: compare with 0.
inline const std::uint8_t* checked_flags(const py::array& array, const std::string& name, Shape shape) {
    checked<bool>(array, name, shape);
    return static_cast<const std::uint8_t*>(array.data());
}

inline int checked_integer(long long value, long long low, const std::string& name,
                           long long high = std::numeric_limits<int>::max()) {
    if (value < low || value > high)
        throw py::value_error(name + ": expected an integer from " + std::to_string(low) + " to " +
                              std::to_string(high) + ", got " + std::to_string(value));
    return static_cast<int>(value);
}

inline double checked_positive(double value, const std::string& name) {
    if (!(value > 0.0 && std::isfinite(value)))
        throw py::value_error(name + ": expected a finite number above 0, got " + number_text(value));
    return value;
}

// At most 64 threads, or one per processor where there are more: OpenMP aborts the process when it cannot
// create a thread.
inline int checked_threads(long long threads) {
    if (threads < 1)
        throw py::value_error("num_threads: expected at least 1, got " + std::to_string(threads));
    return static_cast<int>(std::min<long long>(threads, std::max(64U, std::thread::hardware_concurrency())));
}

// Ctrl-C: true when a signal handler raised; the Python error is then set in this thread.
inline bool interrupted(void*) {
    const py::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
}

}  // namespace worldmodels
