// The extension module _core: calls one bind_*.cpp per topic.
#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_cmaes(py::module_& m);
void bind_compression(py::module_& m);
void bind_conv_training(py::module_& m);
void bind_decoder(py::module_& m);
void bind_dream(py::module_& m);
void bind_encoder(py::module_& m);
void bind_rnn_training(py::module_& m);
void bind_screen(py::module_& m);
void bind_testing(py::module_& m);

PYBIND11_MODULE(_core, m) {
    m.doc() = "Native core of worldmodels: the dream, V's encoder and decoder, training, frames and CMA-ES.";
    bind_cmaes(m);
    bind_compression(m);
    bind_conv_training(m);
    bind_decoder(m);
    bind_dream(m);
    bind_encoder(m);
    bind_rnn_training(m);
    bind_screen(m);
    py::module_ testing = m.def_submodule("testing", "Kernels by themselves, for tests alone.");
    bind_testing(testing);
}
