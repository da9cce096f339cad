// Bindings of the dream: rollouts, environments and LSTM states. Arguments are checked, then the GIL is
// released.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <limits>
#include <memory>
#include <optional>

#include "bindings/precision.hpp"
#include "bindings/world_model_arguments.hpp"
#include "core/dream.hpp"
#include "core/lstm_state.hpp"
#include "core/peak.hpp"
#include "core/simd_target.hpp"
#include "core/stepper.hpp"

namespace worldmodels {
namespace {

constexpr float kMaxLogvar = 80.0F;  // exp(logvar / 2) is finite

float checked_temperature(double value) {
    if (!(value >= 0.0) || !std::isfinite(static_cast<float>(value)))
        throw py::value_error("temperature: expected a finite number of at least 0, got " +
                              number_text(value));
    return static_cast<float>(value);
}

// The SIMD target in use. Throws unless it has this precision.
const Kernels& kernels_for(Precision precision) {
    const Kernels& kernels = current_simd_target();
    if (precision == Precision::bfloat16) required(kernels.step_bfloat16, kernels);
    return kernels;
}

Termination make_termination(const std::string& name, double done_pos_weight, bool done_head) {
    using Mode = Termination::Mode;
    static const std::pair<const char*, Mode> modes[] = {
        {"threshold", Mode::threshold}, {"sample", Mode::sample}, {"expected", Mode::expected}};
    const double weight = checked_positive(done_pos_weight, "done_pos_weight");
    for (const auto& [known, mode] : modes) {
        if (name != known) continue;
        if (mode != Mode::threshold && !done_head)
            throw py::value_error("termination: expected threshold without a termination head, got '" + name +
                                  "'");
        return {mode, std::log(weight)};
    }
    throw py::value_error("termination: expected one of threshold, sample, expected, got '" + name + "'");
}

std::shared_ptr<WorldModel> make_model(
    long long latent, long long action, long long hidden, long long mixtures, bool restart, bool done,
    bool reward, bool bfloat16, const py::array& weight_ih, const py::array& weight_hh, const py::array& bias,
    const py::array& head_weight, const py::array& head_bias, const py::array& initial_mu,
    const py::array& initial_logvar, const std::optional<py::array>& initial_h,
    const std::optional<py::array>& initial_c, const std::string& termination, double done_pos_weight) {
    const WorldModelSizes s = checked_sizes(latent, action, hidden, mixtures, restart, done, reward);
    const int head = (done ? 1 : 0) + (reward ? 1 : 0) + 3 * s.latent * s.mixtures;
    const int inputs = s.latent + s.action + (restart ? 1 : 0), gates = 4 * s.hidden;
    WorldModelWeights w{};
    w.input = checked_floats(weight_ih, "weight_ih", {gates, inputs});
    w.recurrent = checked_floats(weight_hh, "weight_hh", {gates, s.hidden});
    w.bias = checked_floats(bias, "bias", {gates});
    w.head = checked_floats(head_weight, "head_weight", {head, s.hidden});
    w.head_bias = checked_floats(head_bias, "head_bias", {head});
    InitialStates initial{};
    initial.mu = checked_floats(initial_mu, "initial_mu", {"K", s.latent});
    const py::ssize_t states = initial_mu.shape(0);
    initial.logvar = checked_floats(initial_logvar, "initial_logvar", {states, s.latent});
    for (py::ssize_t i = 0; i < initial_logvar.size(); ++i)
        if (initial.logvar[i] > kMaxLogvar)
            throw py::value_error("initial_logvar: expected numbers of at most " + number_text(kMaxLogvar) +
                                  ", got " + number_text(static_cast<double>(initial.logvar[i])) +
                                  " at flat index " + std::to_string(i));
    if (initial_h.has_value() != initial_c.has_value())
        throw py::value_error("initial_h, initial_c: expected both or neither, got one");
    if (initial_h) initial.h = checked_floats(*initial_h, "initial_h", {states, s.hidden});
    if (initial_c) initial.c = checked_floats(*initial_c, "initial_c", {states, s.hidden});
    if (states > std::numeric_limits<std::uint32_t>::max())
        throw py::value_error("initial_mu: expected fewer than 2**32 rows, got " + std::to_string(states));
    initial.rows = static_cast<std::uint32_t>(states);
    const Precision precision = bfloat16 ? Precision::bfloat16 : Precision::float32;
    kernels_for(precision);  // raises for an invalid WORLDMODELS_SIMD before any work
    return std::make_shared<WorldModel>(s, w, precision, initial,
                                        make_termination(termination, done_pos_weight, done));
}

constexpr std::size_t kMaxParameters = 1 << 24;  // of C: every index of a block fits an int

// The architecture of C, checked against a world model's sizes. It fits every model of these sizes and no
// other.
struct ControllerShape {
    ControllerView continuous;  // without the choices
    std::vector<int> choices;
    int latent, hidden, action;

    // Valid as long as this shape.
    ControllerView view() const {
        ControllerView c = continuous;
        c.choices = choices.data();
        c.num_choices = static_cast<int>(choices.size());
        return c;
    }
    std::size_t size() const { return controller_size(continuous, latent, hidden, action); }
};

// Checks that discrete actions fill M's action.
std::vector<int> checked_choices(const std::vector<long long>& given, int action) {
    std::vector<int> choices;
    long long sum = 0;
    for (const long long count : given) {
        choices.push_back(checked_integer(count, 2, "choices", kMaxRows));
        sum += count;
    }
    if (!choices.empty() && sum != action)
        throw py::value_error("choices: expected numbers that add up to action_size, " +
                              std::to_string(action) + ", got a sum of " + std::to_string(sum));
    return choices;
}

ControllerShape make_controller(const WorldModel& model, const std::string& features, bool bias,
                                long long hidden_units, bool carracing,
                                const std::vector<long long>& choices) {
    if (features != "z" && features != "zh" && features != "zc" && features != "zch")
        throw py::value_error("features: expected one of z, zh, zc, zch, got '" + features + "'");
    const ControllerView c{features.find('c') != std::string::npos, features.find('h') != std::string::npos,
                           bias, carracing, checked_integer(hidden_units, 0, "hidden_units", kMaxRows)};
    if (carracing && model.view().action != 3)
        throw py::value_error("action_size: expected 3 for squash='carracing', got " +
                              std::to_string(model.view().action));
    if (carracing && !choices.empty())
        throw py::value_error("choices: expected none for squash='carracing', got " +
                              std::to_string(choices.size()));
    const ControllerShape shape{c, checked_choices(choices, model.view().action), model.view().latent,
                                model.view().hidden, model.view().action};
    if (shape.size() > kMaxParameters)
        throw py::value_error("features, hidden_units: expected at most " + std::to_string(kMaxParameters) +
                              " parameters, got " + std::to_string(shape.size()));
    return shape;
}

ControllerView checked_controller(const ControllerShape& shape, const ModelView& m) {
    if (shape.latent == m.latent && shape.hidden == m.hidden && shape.action == m.action) return shape.view();
    const auto sizes = [](int latent, int hidden, int action) {
        return "latent_size " + std::to_string(latent) + ", hidden_size " + std::to_string(hidden) +
               ", action_size " + std::to_string(action);
    };
    throw py::value_error("controller: expected a shape for " + sizes(m.latent, m.hidden, m.action) +
                          ", got one for " + sizes(shape.latent, shape.hidden, shape.action));
}

// The first index of a range of indices, all of which are below 2**31.
std::uint32_t checked_first(long long first, std::uint32_t count, const std::string& name) {
    return static_cast<std::uint32_t>(checked_integer(
        first, 0, name, std::numeric_limits<std::int32_t>::max() - static_cast<long long>(count)));
}

py::tuple rollout(const WorldModel& model, const ControllerShape& shape, const py::array& params,
                  long long episodes, std::uint64_t seed, bool common_random_numbers, double temperature,
                  long long max_steps, long long num_threads, long long first_candidate,
                  long long first_episode) {
    const ControllerView controller = checked_controller(shape, model.view());
    RolloutArgs args{};
    args.params = checked_floats(params, "params", {"P", shape.size()});
    args.episodes = static_cast<std::uint32_t>(checked_integer(episodes, 1, "episodes"));
    if (params.shape(0) > std::numeric_limits<std::int32_t>::max() / static_cast<py::ssize_t>(args.episodes))
        throw py::value_error("params: expected fewer than 2**31 episodes in all, got " +
                              std::to_string(params.shape(0)) + " candidates x " + std::to_string(episodes) +
                              " episodes");
    args.candidates = static_cast<std::uint32_t>(params.shape(0));
    args.first_candidate = checked_first(first_candidate, args.candidates, "first_candidate");
    args.first_episode = checked_first(first_episode, args.episodes, "first_episode");
    args.seed = seed;
    args.common_random_numbers = common_random_numbers;
    args.temperature = checked_temperature(temperature);
    args.max_steps = checked_integer(max_steps, 1, "max_steps");
    args.threads = checked_threads(num_threads);
    const std::vector<py::ssize_t> results{params.shape(0), static_cast<py::ssize_t>(episodes)};
    py::array_t<float> returns(results);
    py::array_t<std::int32_t> lengths(results);
    args.returns = returns.mutable_data();
    args.lengths = lengths.mutable_data();
    std::int64_t computed = 0;
    args.computed = &computed;
    const Kernels& kernels = kernels_for(model.precision());
    bool complete = false;
    {
        const py::gil_scoped_release release;  // no Python until the rollout returns
        complete = rollout_unchecked(kernels, model, controller, args, {interrupted, nullptr});
    }
    if (!complete) throw py::error_already_set();
    return py::make_tuple(returns, lengths, computed);
}

py::tuple trace(const WorldModel& model, const ControllerShape& shape, const py::array& params,
                long long candidate, long long episode, std::uint64_t seed, double temperature,
                long long max_steps) {
    const ModelView& m = model.view();
    const ControllerView controller = checked_controller(shape, m);
    float total = 0.0F;
    std::int32_t length = 0;
    RolloutArgs args{};
    args.params = checked_floats(params, "params", {shape.size()});
    args.first_candidate = static_cast<std::uint32_t>(checked_integer(candidate, 0, "candidate"));
    args.first_episode = static_cast<std::uint32_t>(checked_integer(episode, 0, "episode"));
    args.candidates = args.episodes = 1;
    args.seed = seed;
    args.temperature = checked_temperature(temperature);
    args.max_steps = checked_integer(max_steps, 1, "max_steps", 1 << 24);
    args.threads = 1;
    args.returns = &total;
    args.lengths = &length;
    std::int64_t computed = 0;
    args.computed = &computed;
    const py::ssize_t steps = args.max_steps, latent = m.latent, action = m.action;
    py::array_t<float> z(std::vector<py::ssize_t>{steps + 1, latent}),
        actions(std::vector<py::ssize_t>{steps, action}), done_logit(m.done ? steps : 0), reward(steps);
    Record record{z.mutable_data(), actions.mutable_data(), m.done ? done_logit.mutable_data() : nullptr,
                  reward.mutable_data()};
    args.record = &record;
    const Kernels& kernels = kernels_for(model.precision());
    bool complete = false;
    {
        const py::gil_scoped_release release;
        complete = rollout_unchecked(kernels, model, controller, args, {interrupted, nullptr});
    }
    if (!complete) throw py::error_already_set();
    return py::make_tuple(length, z, actions, m.done ? py::object(done_logit) : py::none(), reward);
}

// A Stepper and the model it keeps alive.
struct BoundStepper {
    BoundStepper(std::shared_ptr<WorldModel> m, long long envs)
        : model(std::move(m)), stepper(*model, checked_integer(envs, 1, "num_envs", 1 << 24)) {
        if (model->termination().mode == Termination::Mode::expected)
            throw py::value_error("model: expected termination threshold or sample, got expected");
    }
    std::shared_ptr<WorldModel> model;
    Stepper stepper;
};

void stepper_reset(BoundStepper& self, const py::array& seeds, const py::array& candidates,
                   const py::array& episodes, const py::array& mask) {
    const int envs = self.stepper.envs();
    const Streams streams{checked<std::uint64_t>(seeds, "seeds", {envs}),
                          checked<std::uint32_t>(candidates, "candidates", {envs}),
                          checked<std::uint32_t>(episodes, "episodes", {envs})};
    const std::uint8_t* const reset = checked_flags(mask, "mask", {envs});
    const Kernels& kernels = current_simd_target();
    const py::gil_scoped_release release;
    self.stepper.reset_unchecked(kernels, streams, reset);
}

py::ssize_t observation_size(const BoundStepper& self, bool use_c, bool use_h) {
    const ControllerView features{use_c, use_h, false, false, 0};
    return static_cast<py::ssize_t>(
        feature_size(features, self.model->view().latent, self.model->view().hidden));
}

py::tuple stepper_step(BoundStepper& self, double temperature, const py::array& actions, bool use_c,
                       bool use_h, long long num_threads) {
    const int envs = self.stepper.envs();
    const float* const taken = checked_floats(actions, "actions", {envs, self.model->view().action});
    const float tau = checked_temperature(temperature);
    const int threads = checked_threads(num_threads);
    py::array_t<float> observations(std::vector<py::ssize_t>{envs, observation_size(self, use_c, use_h)});
    py::array_t<float> rewards(envs);
    py::array_t<bool> dones(envs);
    const Kernels& kernels = kernels_for(self.model->precision());
    const Observations to{use_c, use_h, observations.mutable_data()};
    float* const to_rewards = rewards.mutable_data();
    bool* const to_dones = dones.mutable_data();
    {
        const py::gil_scoped_release release;
        self.stepper.step_unchecked(kernels, tau, taken, threads, to_rewards, to_dones, to);
    }
    return py::make_tuple(observations, rewards, dones);
}

py::dict stepper_get_state(BoundStepper& self) {
    const ModelView& m = self.model->view();
    const py::ssize_t envs = self.stepper.envs();
    const auto floats = [&](int columns) {
        return py::array_t<float>(std::vector<py::ssize_t>{envs, columns});
    };
    py::array_t<float> inputs = floats(m.inputs()), h = floats(m.hidden), c = floats(m.hidden);
    py::array_t<std::uint64_t> seeds(envs);
    py::array_t<std::uint32_t> candidates(envs), episodes(envs), steps(envs);
    const StepperState state{inputs.mutable_data(), h.mutable_data(),          c.mutable_data(),
                             seeds.mutable_data(),  candidates.mutable_data(), episodes.mutable_data(),
                             steps.mutable_data()};
    {
        const py::gil_scoped_release release;
        self.stepper.get_state_unchecked(state);
    }
    using namespace py::literals;
    return py::dict("inputs"_a = inputs, "h"_a = h, "c"_a = c, "seeds"_a = seeds, "candidates"_a = candidates,
                    "episodes"_a = episodes, "steps"_a = steps);
}

void stepper_set_state(BoundStepper& self, const py::dict& state) {
    const ModelView& m = self.model->view();
    const int envs = self.stepper.envs();
    std::vector<py::array> copies;  // the caller's arrays may change while the GIL is released
    const auto copied = [&]<class T>(const char* name, Shape shape, T) {
        const py::object entry = checked_entry(state, name);
        const auto given = py::array::ensure(entry);
        if (!given) throw py::value_error(std::string(name) + ": expected an array, got " + repr_text(entry));
        copies.push_back(py::array_t<T>(std::vector<py::ssize_t>(given.shape(), given.shape() + given.ndim()),
                                        checked<T>(given, name, shape)));
        return static_cast<T*>(copies.back().mutable_data());
    };
    const StepperState from{
        copied("inputs", {envs, m.inputs()}, float{}), copied("h", {envs, m.hidden}, float{}),
        copied("c", {envs, m.hidden}, float{}),        copied("seeds", {envs}, std::uint64_t{}),
        copied("candidates", {envs}, std::uint32_t{}), copied("episodes", {envs}, std::uint32_t{}),
        copied("steps", {envs}, std::uint32_t{}),
    };
    const py::gil_scoped_release release;
    self.stepper.set_state_unchecked(from);
}

// Overwrites the masked rows of observations (envs, features).
void stepper_observe(BoundStepper& self, const py::array& mask, bool use_c, bool use_h,
                     py::array observations) {
    const int envs = self.stepper.envs();
    const std::uint8_t* const observed = checked_flags(mask, "mask", {envs});
    checked<float>(observations, "observations", {envs, observation_size(self, use_c, use_h)});
    if (!observations.writeable())
        throw py::value_error("observations: expected a writable array, got a read-only one");
    const Observations to{use_c, use_h, static_cast<float*>(observations.mutable_data())};
    const py::gil_scoped_release release;
    self.stepper.observe_unchecked(observed, to);
}

// An LstmState and the model it keeps alive.
struct BoundLstmState {
    explicit BoundLstmState(std::shared_ptr<WorldModel> m) : model(std::move(m)), lstm(*model) {
        if (model->precision() != Precision::float32)
            throw py::value_error("model: expected one in float32, got bfloat16");
    }
    std::shared_ptr<WorldModel> model;
    LstmState lstm;
};

py::tuple advance_lstm(const BoundLstmState& self, const py::array& z, const py::array& actions,
                       const py::array& restart, const py::array& h, const py::array& c,
                       long long num_threads) {
    const ModelView& m = self.model->view();
    const float* const latents = checked_floats(z, "z", {"B", m.latent});
    const int count = checked_integer(z.shape(0), 1, "B", kMaxRows);
    const float* const taken = checked_floats(actions, "actions", {count, m.action});
    const std::uint8_t* const flags = checked_flags(restart, "restart", {count});
    const float* const hidden = checked_floats(h, "h", {count, m.hidden});
    const float* const cell = checked_floats(c, "c", {count, m.hidden});
    const int threads = checked_threads(num_threads);
    py::array_t<float> next_h(h.size(), hidden), next_c(c.size(), cell);
    const LstmRows rows{count, latents, taken, flags, next_h.mutable_data(), next_c.mutable_data()};
    const Kernels& kernels = current_simd_target();
    {
        const py::gil_scoped_release release;
        self.lstm.advance_unchecked(kernels, rows, threads);
    }
    const std::vector<py::ssize_t> shape{count, m.hidden};
    return py::make_tuple(next_h.reshape(shape), next_c.reshape(shape));
}

double multiply_add_rate(bool bfloat16, long long num_threads, double seconds) {
    const int threads = checked_threads(num_threads);
    if (!(seconds > 0.0 && seconds <= 60.0))
        throw py::value_error("seconds: expected a number above 0 and at most 60, got " +
                              number_text(seconds));
    const Kernels& kernels = kernels_for(bfloat16 ? Precision::bfloat16 : Precision::float32);
    std::optional<double> rate;
    {
        const py::gil_scoped_release release;
        rate = multiply_add_rate_unchecked(bfloat16 ? kernels.multiply_adds_bfloat16 : kernels.multiply_adds,
                                           threads, seconds, {interrupted, nullptr});
    }
    if (!rate) throw py::error_already_set();
    return *rate;
}

}  // namespace
}  // namespace worldmodels

void bind_dream(pybind11::module_& m) {
    namespace py = pybind11;
    using namespace worldmodels;
    using namespace py::literals;

    m.attr("LOGSTD_RANGE") = py::make_tuple(kLogstdMin, kLogstdMax);
    m.def("simd_levels", &simd_target_names);
    m.def("simd_level", [] { return std::string(current_simd_target().name); });
    m.def("set_simd_level", &set_simd_target, "name"_a);
    m.def("multiply_add_rate", &multiply_add_rate, "bfloat16"_a, "num_threads"_a, "seconds"_a);
    m.def("check_threads_usable", &check_threads_usable, py::call_guard<py::gil_scoped_release>());

    py::class_<WorldModel, std::shared_ptr<WorldModel>>(m, "WorldModel")
        .def(py::init(&make_model), py::kw_only(), "latent_size"_a, "action_size"_a, "hidden_size"_a,
             "mixtures"_a, "restart_input"_a, "done_head"_a, "reward_head"_a, "bfloat16"_a, "weight_ih"_a,
             "weight_hh"_a, "bias"_a, "head_weight"_a, "head_bias"_a, "initial_mu"_a, "initial_logvar"_a,
             "initial_h"_a = py::none(), "initial_c"_a = py::none(), "termination"_a = "threshold",
             "done_pos_weight"_a = 1.0);
    py::class_<ControllerShape>(m, "ControllerShape")
        .def(py::init(&make_controller), "model"_a, "features"_a, "bias"_a, "hidden_units"_a, "carracing"_a,
             "choices"_a);
    m.def("rollout", &rollout, "model"_a, "controller"_a, "params"_a, py::kw_only(), "episodes"_a, "seed"_a,
          "common_random_numbers"_a, "temperature"_a, "max_steps"_a, "num_threads"_a, "first_candidate"_a,
          "first_episode"_a);
    m.def("trace", &trace, "model"_a, "controller"_a, "params"_a, py::kw_only(), "candidate"_a, "episode"_a,
          "seed"_a, "temperature"_a, "max_steps"_a);
    py::class_<BoundStepper>(m, "DreamStepper")
        .def(py::init<std::shared_ptr<WorldModel>, long long>(), py::arg("model").none(false), "num_envs"_a)
        .def("reset", &stepper_reset, "seeds"_a, "candidates"_a, "episodes"_a, "mask"_a)
        .def("step", &stepper_step, "temperature"_a, "actions"_a, "use_c"_a, "use_h"_a, "num_threads"_a)
        .def("observe", &stepper_observe, "mask"_a, "use_c"_a, "use_h"_a, "observations"_a)
        .def("get_state", &stepper_get_state)
        .def("set_state", &stepper_set_state, "state"_a);
    py::class_<BoundLstmState>(m, "LstmState")
        .def(py::init<std::shared_ptr<WorldModel>>(), py::arg("model").none(false))
        .def("advance", &advance_lstm, "z"_a, "actions"_a, "restart"_a, "h"_a, "c"_a, "num_threads"_a);
}
