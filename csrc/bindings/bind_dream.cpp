// Bindings of dream.
#include <pybind11/pybind11.h>

void bind_dream(pybind11::module_& m) { (void)m; }
