// Bindings of CMA-ES: checked arrays in, copies out, LAPACK borrowed from SciPy.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "bindings/arrays.hpp"
#include "core/cmaes.hpp"
#include "core/lock.hpp"
#include "core/simd_target.hpp"

namespace py = pybind11;
using worldmodels::checked_threads;
using worldmodels::Cmaes;
using worldmodels::CmaesParameters;
using worldmodels::CmaesState;
using worldmodels::current_simd_target;
using worldmodels::find_simd_target;
using worldmodels::Kernels;
using worldmodels::kTile;
using Doubles = py::array_t<double, py::array::c_style>;
using Integers = py::array_t<std::int64_t, py::array::c_style>;

namespace {

// dsyevd's workspace, 1 + 6 N + 2 N^2 doubles, is counted in 32 bits.
constexpr py::ssize_t kMostFull = 32766;

// SciPy exports its LAPACK as capsules whose name is the C signature; numba uses the same door. The name is
// checked, so that a SciPy with other integers is refused instead of being called wrongly.
worldmodels::Dsyevd scipy_dsyevd() {
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
    return reinterpret_cast<worldmodels::Dsyevd>(capsule.get_pointer());
}

Doubles copy_out(const std::vector<double>& v, std::vector<py::ssize_t> shape) {
    Doubles out(std::move(shape));
    std::copy_n(v.data(), out.size(), out.mutable_data());
    return out;
}

std::string shape_of(const py::array& a) {
    std::string text = "(";
    for (py::ssize_t i = 0; i < a.ndim(); ++i) text += (i > 0 ? ", " : "") + std::to_string(a.shape(i));
    return text + (a.ndim() == 1 ? ",)" : ")");
}

void expect_shape(const char* name, const py::array& a, const std::vector<py::ssize_t>& shape) {
    if (std::vector<py::ssize_t>(a.shape(), a.shape() + a.ndim()) == shape) return;
    std::string wanted = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) wanted += (i > 0 ? ", " : "") + std::to_string(shape[i]);
    throw py::value_error(std::string(name) + ": expected " + wanted + (shape.size() == 1 ? ",)" : ")") +
                          ", got " + shape_of(a));
}

void expect_finite(const char* name, const Doubles& a) {
    for (py::ssize_t i = 0; i < a.size(); ++i) {
        if (!std::isfinite(a.data()[i]))
            throw py::value_error(std::string(name) + ": expected finite numbers");
    }
}

// ask and tell run without the GIL, and another thread must not see them half done.
using GuardedCmaes = worldmodels::Guarded<Cmaes>;

// Waits without the GIL: who has the lock may want the GIL.
std::unique_lock<worldmodels::Lock> locked(GuardedCmaes& self) {
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

// A getter of what `read` makes of the core.
template <class Read>
auto reader(Read read) {
    return [read](GuardedCmaes& self) {
        const auto lock = locked(self);
        return read(self.object);
    };
}

std::unique_ptr<GuardedCmaes> make(const Doubles& mean, double sigma, std::int64_t popsize,
                                   std::uint64_t seed, bool active, bool separable) {
    expect_shape("mean", mean, {mean.size()});
    expect_finite("mean", mean);
    if (mean.size() < 1) throw py::value_error("mean: expected at least one number, got none");
    if (popsize < 2) throw py::value_error("popsize: expected at least 2, got " + std::to_string(popsize));
    if (!(sigma > 0.0 && std::isfinite(sigma))) throw py::value_error("sigma: expected a positive number");
    if (!separable && mean.size() > kMostFull) {
        throw py::value_error("x0: expected at most " + std::to_string(kMostFull) +
                              " numbers for a full C, got " + std::to_string(mean.size()) +
                              ": use separable=True");
    }
    CmaesParameters parameters = worldmodels::cmaes_parameters(mean.size(), popsize, active, separable);
    const std::vector<double> start(mean.data(), mean.data() + mean.size());
    return std::unique_ptr<GuardedCmaes>(
        new GuardedCmaes{Cmaes(std::move(parameters), start, sigma, seed, separable, scipy_dsyevd()), {}});
}

Doubles ask(GuardedCmaes& self, long long threads) {
    const int team = checked_threads(threads);
    Doubles out({rows_of(self.object), size_of(self.object)});
    double* to = out.mutable_data();
    const Kernels& level = current_simd_target();
    const py::gil_scoped_release release;  // the decomposition takes a tenth of a second at N = 1088
    const std::lock_guard lock(self.lock);
    const std::vector<double>& x = self.object.ask(level, team);
    std::copy(x.begin(), x.end(), to);
    return out;
}

void tell(GuardedCmaes& self, const Doubles& solutions, const Integers& rank, long long threads) {
    const int team = checked_threads(threads);
    expect_shape("solutions", solutions, {rows_of(self.object), size_of(self.object)});
    expect_shape("rank", rank, {rows_of(self.object)});
    expect_finite("solutions", solutions);
    std::vector<bool> seen(static_cast<std::size_t>(rows_of(self.object)), false);
    for (py::ssize_t i = 0; i < rank.size(); ++i) {
        const std::int64_t place = rank.data()[i];
        if (place < 0 || place >= rows_of(self.object) || seen[static_cast<std::size_t>(place)]) {
            throw py::value_error("rank: expected a permutation");
        }
        seen[static_cast<std::size_t>(place)] = true;
    }
    const Kernels& level = current_simd_target();
    const py::gil_scoped_release release;
    const std::lock_guard lock(self.lock);
    if (!self.object.state().asked) throw std::runtime_error("tell: called before ask");
    self.object.tell(level, solutions.data(), rank.data(), team);
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
        std::copy_n(self.object.state().axes.data() + k * size_of(self.object), size_of(self.object),
                    out.mutable_data());
    }
    return out;
}

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
    out["axes"] = copy_out(s.axes, {diagonal ? 0 : n, n});
    out["scales"] = copy_out(s.scales, {n});
    out["pending_z"] = copy_out(s.z, {rows, n});
    out["pending_y"] = copy_out(s.y, {rows, n});
    out["pending_x"] = copy_out(s.x, {rows, n});
    out["sigma"] = s.sigma;
    out["generation"] = s.generation;
    out["decomposed_at"] = s.decomposed_at;
    return out;
}

void take(const py::dict& state, const char* name, const std::vector<py::ssize_t>& shape,
          std::vector<double>& to) {
    if (!state.contains(name)) throw py::value_error(std::string("state: expected the key ") + name);
    const auto from = Doubles::ensure(state[name]);
    if (!from) throw py::value_error(std::string(name) + ": expected float64");
    expect_shape(name, from, shape);
    expect_finite(name, from);
    std::copy_n(from.data(), from.size(), to.begin());
}

void set_gap(GuardedCmaes& self, double gap) {
    if (!(gap >= 0.0)) throw py::value_error("gap: expected a number >= 0, got " + std::to_string(gap));
    const auto lock = locked(self);
    self.object.gap() = gap;
}

void set_state(GuardedCmaes& self, const py::dict& state) {
    const auto lock = locked(self);
    CmaesState next = self.object.state();  // a copy: a bad state leaves the good one alone
    const py::ssize_t n = size_of(self.object);
    const bool diagonal = self.object.separable();
    const std::vector<py::ssize_t> square =
        diagonal ? std::vector<py::ssize_t>{n} : std::vector<py::ssize_t>{n, n};
    take(state, "mean", {n}, next.mean);
    take(state, "ps", {n}, next.ps);
    take(state, "pc", {n}, next.pc);
    take(state, "covariance", square, next.covariance);
    take(state, "axes", {diagonal ? 0 : n, n}, next.axes);
    take(state, "scales", {n}, next.scales);
    const auto pending = py::array::ensure(state["pending_x"]);
    next.asked = pending && pending.ndim() == 2 && pending.shape(0) > 0;
    const py::ssize_t rows = next.asked ? rows_of(self.object) : 0;
    take(state, "pending_z", {rows, n}, next.z);
    take(state, "pending_y", {rows, n}, next.y);
    take(state, "pending_x", {rows, n}, next.x);
    next.sigma = state["sigma"].cast<double>();
    next.generation = state["generation"].cast<std::int64_t>();
    next.decomposed_at = state["decomposed_at"].cast<std::int64_t>();
    if (!(next.sigma > 0.0 && std::isfinite(next.sigma)))
        throw py::value_error("sigma: expected a positive number, got " + std::to_string(next.sigma));
    if (next.decomposed_at < 0 || next.decomposed_at > next.generation)
        throw py::value_error("decomposed_at: expected 0 <= decomposed_at <= generation");
    if (std::any_of(next.scales.begin(), next.scales.end(), [](double scale) { return !(scale > 0.0); }))
        throw py::value_error("scales: expected positive numbers");
    for (py::ssize_t i = 0; i < n; ++i) {
        if (!(next.covariance[static_cast<std::size_t>(i * (diagonal ? 1 : n + 1))] > 0.0))
            throw py::value_error("covariance: expected a positive diagonal");
    }
    self.object.state() = std::move(next);
}

// out (8, 8) = a^T b for a, b (depth, 8), for tests.
Doubles tile_product(const std::string& level, const Doubles& a, const Doubles& b) {
    expect_shape("b", b, {a.shape(0), kTile});
    expect_shape("a", a, {a.shape(0), kTile});
    Doubles out({kTile, kTile});
    find_simd_target(level, "level").tile_product(a.shape(0), a.data(), b.data(), out.mutable_data());
    return out;
}

}  // namespace

void bind_cmaes(py::module_& m) {
    m.def("tile_product", &tile_product, py::arg("level"), py::arg("a").noconvert(),
          py::arg("b").noconvert());
    py::class_<GuardedCmaes>(m, "Cmaes")
        .def(py::init(&make), py::arg("mean").noconvert(), py::arg("sigma"), py::arg("popsize"),
             py::arg("seed"), py::arg("active"), py::arg("separable"))
        .def("ask", &ask, py::arg("threads"))
        .def("tell", &tell, py::arg("solutions").noconvert(), py::arg("rank").noconvert(), py::arg("threads"))
        .def("skip", &skip)
        .def("variances", &variances)
        .def("axis", &axis, py::arg("k"))
        .def("get_state", &get_state)
        .def("set_state", &set_state, py::arg("state"))
        .def_property_readonly("mean",
                               reader([](Cmaes& s) { return copy_out(s.state().mean, {size_of(s)}); }))
        .def_property_readonly("pc", reader([](Cmaes& s) { return copy_out(s.state().pc, {size_of(s)}); }))
        .def_property_readonly("ps", reader([](Cmaes& s) { return copy_out(s.state().ps, {size_of(s)}); }))
        .def_property_readonly("scales",
                               reader([](Cmaes& s) { return copy_out(s.state().scales, {size_of(s)}); }))
        .def_property_readonly("sigma", reader([](Cmaes& s) { return s.state().sigma; }))
        .def_property_readonly("generation", reader([](Cmaes& s) { return s.state().generation; }))
        .def_property_readonly("asked", reader([](Cmaes& s) { return s.state().asked; }))
        .def_property("gap", reader([](Cmaes& s) { return s.gap(); }), &set_gap)
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
