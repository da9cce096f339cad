// The extension module _core: one bind_*.cpp per topic, nothing else here.
#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_cmaes(py::module_& m);
void bind_dream(py::module_& m);
void bind_encoder(py::module_& m);

PYBIND11_MODULE(_core, m) {
    m.doc() = "Native core of worldmodels: the dream, V's encoder and CMA-ES.";
    bind_cmaes(m);
    bind_dream(m);
    bind_encoder(m);
}
