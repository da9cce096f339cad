// Bindings of CMA-ES: checked arrays in, copies out, SciPy's LAPACK for the eigendecomposition.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arguments.hpp"
#include "core/cmaes.hpp"
#include "core/lock.hpp"
#include "core/simd_target.hpp"

namespace worldmodels {
namespace {

using Doubles = py::array_t<double>;

// dsyevd's workspace, 1 + 6 N + 2 N^2 doubles, is counted in 32 bits.
constexpr py::ssize_t kMaxFullSize = 32766;

// SciPy exports its LAPACK as capsules whose name is the C signature, an interface that numba uses too. The
// name is checked: a SciPy with 64-bit integers is refused.
Dsyevd scipy_dsyevd() {
    const py::dict exported = py::module_::import("scipy.linalg.cython_lapack").attr("__pyx_capi__");
    const auto capsule = exported["dsyevd"].cast<py::capsule>();
    std::string signature = capsule.name() == nullptr ? "" : capsule.name();
    // Cython spells double as a mangled typedef that ends in cython_lapack_d.
    for (std::size_t at = signature.find("__pyx_t_"); at != std::string::npos;
         at = signature.find("__pyx_t_")) {
        const std::size_t end = signature.find(' ', at);
        if (end == std::string::npos || signature[end - 1] != 'd') break;
        signature.replace(at, end - at, "double");
    }
    if (signature !=
        "void (char *, char *, int *, double *, int *, double *, double *, int *, int *, int *, int *)") {
        throw py::import_error(
            "scipy.linalg.cython_lapack.dsyevd: expected LAPACK with 32-bit integers, got " + signature);
    }
    return reinterpret_cast<Dsyevd>(capsule.get_pointer());
}

Doubles copy_out(const std::vector<double>& v, std::vector<py::ssize_t> shape) {
    Doubles out(std::move(shape));
    std::copy_n(v.data(), out.size(), out.mutable_data());
    return out;
}

// ask and tell run without the GIL; the lock hides their intermediate states from other threads.
using GuardedCmaes = Guarded<Cmaes>;

// Waits without the GIL, which the lock's holder may be waiting for.
std::unique_lock<Lock> locked(GuardedCmaes& self) {
    std::unique_lock held(self.lock, std::try_to_lock);
    if (!held.owns_lock()) {
        const py::gil_scoped_release release;
        held.lock();
    }
    return held;
}

py::ssize_t size_of(const Cmaes& core) {
    return core.parameters().n;
}
py::ssize_t rows_of(const Cmaes& core) {
    return core.parameters().popsize;
}

// A property getter that calls `read` under the lock.
template <class Read>
auto reader(Read read) {
    return [read](GuardedCmaes& self) {
        const auto lock = locked(self);
        return read(self.object);
    };
}

std::unique_ptr<GuardedCmaes> make(const py::array& mean, double sigma, long long popsize, std::uint64_t seed,
                                   bool active, bool separable) {
    const double* const x0 = checked_doubles(mean, "mean", {"N"});
    checked_integer(popsize, 2, "popsize");
    checked_positive(sigma, "sigma");
    if (!separable && mean.size() > kMaxFullSize) {
        throw py::value_error("x0: expected at most " + std::to_string(kMaxFullSize) +
                              " numbers for a full C, got " + std::to_string(mean.size()) +
                              ": use separable=True");
    }
    CmaesParameters parameters = cmaes_parameters(mean.size(), popsize, active, separable);
    return std::unique_ptr<GuardedCmaes>(
        new GuardedCmaes{Cmaes(std::move(parameters), std::vector<double>(x0, x0 + mean.size()), sigma, seed,
                               separable, scipy_dsyevd()),
                         {}});
}

Doubles ask(GuardedCmaes& self, long long num_threads) {
    const int threads = checked_threads(num_threads);
    Doubles out({rows_of(self.object), size_of(self.object)});
    double* to = out.mutable_data();
    const Kernels& kernels = current_simd_target();
    const py::gil_scoped_release release;  // the decomposition takes a tenth of a second at N = 1088
    const std::lock_guard lock(self.lock);
    const std::vector<double>& x = self.object.ask(kernels, threads);
    std::copy(x.begin(), x.end(), to);
    return out;
}

void tell(GuardedCmaes& self, const py::array& solutions, const py::array& rank, long long num_threads) {
    const int threads = checked_threads(num_threads);
    const py::ssize_t rows = rows_of(self.object);
    const double* const x = checked_doubles(solutions, "solutions", {rows, size_of(self.object)});
    const auto* const given = checked<std::int64_t>(rank, "rank", {rows});
    const std::vector<std::int64_t> ranks(given, given + rows);  // the array may change without the GIL
    std::vector<bool> seen(static_cast<std::size_t>(rows), false);
    for (const std::int64_t each : ranks) {
        if (each < 0 || each >= rows || seen[static_cast<std::size_t>(each)])
            throw py::value_error("rank: expected a permutation of 0 to popsize - 1, got " +
                                  std::to_string(each) + " twice or out of range");
        seen[static_cast<std::size_t>(each)] = true;
    }
    const Kernels& kernels = current_simd_target();
    const py::gil_scoped_release release;
    const std::lock_guard lock(self.lock);
    if (!self.object.state().asked) throw std::runtime_error("tell: called before ask");
    self.object.tell(kernels, x, ranks.data(), threads);
}

void skip(GuardedCmaes& self) {
    const auto lock = locked(self);
    if (!self.object.state().asked) throw std::runtime_error("tell: called before ask");
    self.object.skip();
}

Doubles variances(GuardedCmaes& self) {
    const auto lock = locked(self);
    const std::vector<double>& c = self.object.state().covariance;
    Doubles out(size_of(self.object));
    const py::ssize_t step = self.object.separable() ? 1 : size_of(self.object) + 1;
    for (py::ssize_t i = 0; i < size_of(self.object); ++i)
        out.mutable_data()[i] = std::max(0.0, c[static_cast<std::size_t>(i * step)]);
    return out;
}

Doubles axis(GuardedCmaes& self, py::ssize_t k) {
    if (k < 0 || k >= size_of(self.object)) throw py::index_error("axis: expected 0 <= k < N");
    const auto lock = locked(self);
    Doubles out(size_of(self.object));
    std::fill_n(out.mutable_data(), size_of(self.object), 0.0);
    if (self.object.separable()) {
        out.mutable_data()[k] = 1.0;
    } else {
        std::copy_n(self.object.state().B.data() + k * size_of(self.object), size_of(self.object),
                    out.mutable_data());
    }
    return out;
}

// The keys are those of saved states: axes is B with eigenvectors in rows, scales is D.
py::dict get_state(GuardedCmaes& self) {
    const auto lock = locked(self);
    const CmaesState& s = self.object.state();
    const py::ssize_t n = size_of(self.object);
    const bool diagonal = self.object.separable();
    const py::ssize_t rows = s.asked ? rows_of(self.object) : 0;
    const std::vector<py::ssize_t> square =
        diagonal ? std::vector<py::ssize_t>{n} : std::vector<py::ssize_t>{n, n};
    py::dict out;
    out["mean"] = copy_out(s.mean, {n});
    out["ps"] = copy_out(s.ps, {n});
    out["pc"] = copy_out(s.pc, {n});
    out["covariance"] = copy_out(s.covariance, square);
    out["axes"] = copy_out(s.B, {diagonal ? 0 : n, n});
    out["scales"] = copy_out(s.D, {n});
    out["pending_z"] = copy_out(s.z, {rows, n});
    out["pending_y"] = copy_out(s.y, {rows, n});
    out["pending_x"] = copy_out(s.x, {rows, n});
    out["sigma"] = s.sigma;
    out["generation"] = s.generation;
    out["decomposed_at"] = s.decomposed_at;
    return out;
}

void copy_in(const py::dict& state, const char* name, Shape shape, std::vector<double>& to) {
    const py::object given = checked_entry(state, name);
    const auto from = py::array_t<double, py::array::c_style>::ensure(given);
    if (!from) throw py::value_error(std::string(name) + ": expected float64, got " + repr_text(given));
    std::copy_n(checked_doubles(from, name, shape), from.size(), to.begin());
}

template <class T>
T number_in(const py::dict& state, const char* name) {
    const py::object given = checked_entry(state, name);
    try {
        return given.cast<T>();
    } catch (const py::cast_error&) {
        throw py::value_error(std::string(name) + ": expected " +
                              (std::is_integral_v<T> ? "an integer" : "a number") + ", got " +
                              repr_text(given));
    }
}

void set_gap(GuardedCmaes& self, double gap) {
    if (!(gap >= 0.0)) throw py::value_error("gap: expected a number >= 0, got " + number_text(gap));
    const auto lock = locked(self);
    self.object.set_gap(gap);
}

void set_state(GuardedCmaes& self, const py::dict& state) {
    const auto lock = locked(self);
    CmaesState next = self.object.state();  // a copy: an invalid state changes nothing
    const py::ssize_t n = size_of(self.object);
    const bool diagonal = self.object.separable();
    copy_in(state, "mean", {n}, next.mean);
    copy_in(state, "ps", {n}, next.ps);
    copy_in(state, "pc", {n}, next.pc);
    if (diagonal)
        copy_in(state, "covariance", {n}, next.covariance);
    else
        copy_in(state, "covariance", {n, n}, next.covariance);
    copy_in(state, "axes", {diagonal ? 0 : n, n}, next.B);
    copy_in(state, "scales", {n}, next.D);
    const auto pending = py::array::ensure(checked_entry(state, "pending_x"));
    next.asked = pending && pending.ndim() == 2 && pending.shape(0) > 0;
    const py::ssize_t rows = next.asked ? rows_of(self.object) : 0;
    copy_in(state, "pending_z", {rows, n}, next.z);
    copy_in(state, "pending_y", {rows, n}, next.y);
    copy_in(state, "pending_x", {rows, n}, next.x);
    next.sigma = number_in<double>(state, "sigma");
    next.generation = number_in<std::int64_t>(state, "generation");
    next.decomposed_at = number_in<std::int64_t>(state, "decomposed_at");
    checked_positive(next.sigma, "sigma");
    if (next.decomposed_at < 0 || next.decomposed_at > next.generation)
        throw py::value_error("decomposed_at: expected an integer from 0 to generation, " +
                              std::to_string(next.generation) + ", got " +
                              std::to_string(next.decomposed_at));
    if (std::any_of(next.D.begin(), next.D.end(), [](double root) { return !(root > 0.0); }))
        throw py::value_error("scales: expected positive numbers");
    for (py::ssize_t i = 0; i < n; ++i) {
        if (!(next.covariance[static_cast<std::size_t>(i * (diagonal ? 1 : n + 1))] > 0.0))
            throw py::value_error("covariance: expected a positive diagonal");
    }
    self.object.set_state(std::move(next));
}

}  // namespace
}  // namespace worldmodels

void bind_cmaes(pybind11::module_& m) {
    namespace py = pybind11;
    using namespace worldmodels;
    using namespace py::literals;

    py::class_<GuardedCmaes>(m, "Cmaes")
        .def(py::init(&make), "mean"_a, "sigma"_a, "popsize"_a, "seed"_a, "active"_a, "separable"_a)
        .def("ask", &ask, "num_threads"_a)
        .def("tell", &tell, "solutions"_a, "rank"_a, "num_threads"_a)
        .def("skip", &skip)
        .def("variances", &variances)
        .def("axis", &axis, "k"_a)
        .def("get_state", &get_state)
        .def("set_state", &set_state, "state"_a)
        .def_property_readonly("mean",
                               reader([](const Cmaes& s) { return copy_out(s.state().mean, {size_of(s)}); }))
        .def_property_readonly("pc",
                               reader([](const Cmaes& s) { return copy_out(s.state().pc, {size_of(s)}); }))
        .def_property_readonly("ps",
                               reader([](const Cmaes& s) { return copy_out(s.state().ps, {size_of(s)}); }))
        .def_property_readonly("D",
                               reader([](const Cmaes& s) { return copy_out(s.state().D, {size_of(s)}); }))
        .def_property_readonly("sigma", reader([](const Cmaes& s) { return s.state().sigma; }))
        .def_property_readonly("generation", reader([](const Cmaes& s) { return s.state().generation; }))
        .def_property_readonly("asked", reader([](const Cmaes& s) { return s.state().asked; }))
        .def_property("gap", reader([](const Cmaes& s) { return s.parameters().gap; }), &set_gap)
        .def_property_readonly("parameters", [](GuardedCmaes& s) {
            const CmaesParameters& p = s.object.parameters();
            py::dict out;
            out["mu"] = p.mu;
            out["weights"] = copy_out(p.weights, {p.popsize});
            out["mueff"] = p.mueff;
            out["c1"] = p.c1;
            out["cmu"] = p.cmu;
            out["cc"] = p.cc;
            out["cs"] = p.cs;
            out["damps"] = p.damps;
            out["chiN"] = p.chi_n;
            return out;
        });
}
