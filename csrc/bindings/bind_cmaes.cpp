// Bindings of cmaes.
#include <pybind11/pybind11.h>

void bind_cmaes(pybind11::module_& m) { (void)m; }
