// Bindings of M's training: checked arrays in, losses and gradients out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/precision.hpp"
#include "bindings/world_model_arguments.hpp"
#include "core/lock.hpp"
#include "core/rnn_training.hpp"

namespace worldmodels {
namespace {

using Training = Guarded<RNNTraining>;
using Floats = py::array_t<float>;

Floats floats(std::vector<py::ssize_t> shape) {
    return Floats(std::move(shape));
}

std::unique_ptr<Training> make_training(long long latent, long long action, long long hidden,
                                        long long mixtures, bool restart, bool done, bool reward) {
    const WorldModelSizes sizes = checked_sizes(latent, action, hidden, mixtures, restart, done, reward);
    return std::unique_ptr<Training>(new Training{RNNTraining(sizes), {}});
}

const float* optional_floats(const std::optional<py::array>& array, bool needed, const std::string& name,
                             Shape shape) {
    if (needed != array.has_value())
        throw py::value_error(name +
                              (needed ? ": expected an array, got None" : ": expected None, got an array"));
    return needed ? checked_floats(*array, name, shape) : nullptr;
}

WorldModelWeights checked_weights(const RNNTraining& training, const std::vector<py::array>& weights) {
    const WorldModelSizes& s = training.sizes();
    const int inputs = s.latent + s.action + (s.restart ? 1 : 0), gates = 4 * s.hidden;
    const int head = training.head_rows();
    if (weights.size() != 5)
        throw py::value_error("weights: expected 5 arrays, got " + std::to_string(weights.size()));
    return {checked<float>(weights[0], "weight_ih", {gates, inputs}),
            checked<float>(weights[1], "weight_hh", {gates, s.hidden}),
            checked<float>(weights[2], "bias", {gates}),
            checked<float>(weights[3], "head_weight", {head, s.hidden}),
            checked<float>(weights[4], "head_bias", {head})};
}

// New arrays with the layouts of WorldModelWeights.
std::vector<Floats> new_gradients(const RNNTraining& training) {
    const WorldModelSizes& s = training.sizes();
    const py::ssize_t gates = 4 * py::ssize_t{s.hidden}, head = training.head_rows();
    const py::ssize_t inputs = s.latent + s.action + (s.restart ? 1 : 0);
    return {floats({gates, inputs}), floats({gates, s.hidden}), floats({gates}), floats({head, s.hidden}),
            floats({head})};
}

py::dict run(Training& self, const std::vector<py::array>& weights, const py::array& z,
             const py::array& action, const std::optional<py::array>& restart, const py::array& has_next,
             const std::optional<py::array>& done, const std::optional<py::array>& termination_known,
             const std::optional<py::array>& reward, const std::optional<py::array>& valid,
             const py::array& h, const py::array& c, const std::vector<double>& scales,
             double done_pos_weight, const std::string& precision, bool gradient, long long num_threads) {
    const WorldModelSizes& s = self.object.sizes();
    const WorldModelWeights w = checked_weights(self.object, weights);
    if (scales.size() != 3)
        throw py::value_error("scales: expected 3 numbers, got " + std::to_string(scales.size()));
    RNNBatch b{};
    b.actions = checked<float>(action, "action", {"B", "T", s.action});
    const py::ssize_t sequences = action.shape(0), steps = action.shape(1);
    checked_integer(sequences * (steps + 1), 1, "action: B * (T + 1)");  // an int indexes every step
    b.sequences = static_cast<int>(sequences);
    b.steps = static_cast<int>(steps);
    b.z = checked<float>(z, "z", {sequences, steps + 1, s.latent});
    b.restart = restart ? checked<float>(*restart, "restart", {sequences, steps}) : nullptr;
    if (s.restart && !restart) throw py::value_error("restart: expected an array, got None");
    b.has_next = checked<float>(has_next, "has_next", {sequences, steps});
    b.done = optional_floats(done, s.done, "done", {sequences, steps});
    b.termination_known = optional_floats(termination_known, s.done, "termination_known", {sequences, steps});
    b.reward = optional_floats(reward, s.reward, "reward", {sequences, steps});
    b.valid = optional_floats(valid, s.reward, "valid", {sequences, steps});
    b.h = checked<float>(h, "h", {sequences, s.hidden});
    b.c = checked<float>(c, "c", {sequences, s.hidden});
    const RNNKernels& kernels =
        training_kernels(precision, &Kernels::rnn, &Kernels::rnn_bfloat16, &TestKernels::rnn_bfloat16);
    const int threads = checked_threads(num_threads);
    Floats h_after = floats({sequences, s.hidden}), c_after = floats({sequences, s.hidden});
    Floats logit = floats({sequences, s.done ? steps : 0});
    const RNNOutputs outputs{h_after.mutable_data(), c_after.mutable_data(),
                             s.done ? logit.mutable_data() : nullptr};
    std::vector<Floats> gradients;
    RNNGradient g;
    if (gradient) {
        gradients = new_gradients(self.object);
        g = {gradients[0].mutable_data(), gradients[1].mutable_data(), gradients[2].mutable_data(),
             gradients[3].mutable_data(), gradients[4].mutable_data()};
    }
    std::optional<RNNLosses> losses;
    {
        const py::gil_scoped_release release;
        const std::lock_guard guard(self.lock);
        losses = self.object.run_unchecked(kernels, w, b, {scales[0], scales[1], scales[2], done_pos_weight},
                                           threads, outputs, g, {interrupted, nullptr});
    }
    if (!losses) throw py::error_already_set();
    using namespace py::literals;
    return py::dict("z"_a = losses->z, "done"_a = losses->done, "reward"_a = losses->reward, "h"_a = h_after,
                    "c"_a = c_after, "done_logit"_a = s.done ? py::object(logit) : py::none(),
                    "gradients"_a = gradients);
}

}  // namespace
}  // namespace worldmodels

void bind_rnn_training(pybind11::module_& m) {
    namespace py = pybind11;
    using namespace worldmodels;
    using namespace py::literals;

    py::class_<Training>(m, "RNNTraining")
        .def(py::init(&make_training), "latent_size"_a, "action_size"_a, "hidden_size"_a, "mixtures"_a,
             "restart_input"_a, "done_head"_a, "reward_head"_a)
        .def("run", &run, py::kw_only(), "weights"_a, "z"_a, "action"_a, "restart"_a, "has_next"_a, "done"_a,
             "termination_known"_a, "reward"_a, "valid"_a, "h"_a, "c"_a, "scales"_a, "done_pos_weight"_a,
             "precision"_a, "gradient"_a, "num_threads"_a);
}
