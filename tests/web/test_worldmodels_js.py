"""The dream in the browser's JavaScript, run in Node, beside the native core."""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
import pytest
import torch
from bundles import small_agent, small_bundle, small_world
from javascript import run
from safetensors.numpy import load as read_tensors

import reference
from worldmodels import pretrained
from worldmodels.cmaes.cmaes import CMAES
from worldmodels.dream.native import Dream
from worldmodels.dream.world_model import load_world_model
from worldmodels.models.agent import load_controller
from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model
from worldmodels.support.simd import set_simd_level, simd_level
from worldmodels.web.bundle import BundledAgent, bundle

TRACE = """
  const world = await load();
  return given.map(({ seed, episode, temperature, termination, maxSteps, agent }) => {
    const dream = world.dream({ seed: 99, temperature, termination, maxSteps });
    dream.reset(BigInt(seed), episode);
    const z = [...dream.z], action = [], reward = [], probability = [];
    let step;
    do {
      action.push(...dream.act(agent));
      step = dream.step(action.slice(-world.info.actionSize));
      z.push(...dream.z), reward.push(step.reward), probability.push(step.terminationProbability);
    } while (!step.terminated && !step.truncated);
    const last = { terminated: step.terminated, steps: dream.steps };
    dream.free();
    return { z: Float32Array.from(z), action: Float32Array.from(action), reward: Float32Array.from(reward),
             probability: Float64Array.from(probability), ...last };
  });
"""


@pytest.fixture(autouse=True)
def baseline():
    before = simd_level()
    set_simd_level("baseline")
    yield
    set_simd_level(before)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "dream.safetensors"
    path.write_bytes(small_bundle(small_world()))
    return path


@pytest.fixture(scope="module")
def takecover(tmp_path_factory):
    """The file of the pretrained world model, its V, its agent and its parameters."""
    folder = pretrained.path("takecover")
    vae = load_model(folder / "vae" / "vae.safetensors", ConvVAE)
    controller, params, _ = load_controller(folder / "evolve" / "controller.safetensors")
    contents = bundle(
        vae,
        load_world_model("takecover"),
        {"takecover": BundledAgent(controller, params, 1.15)},
        task="takecover",
        termination="expected",
        temperature=1.15,
        max_steps=2100,
    )
    path = tmp_path_factory.mktemp("takecover") / "dream.safetensors"
    path.write_bytes(contents)
    return path, vae, params


def check_traces(found, dreams, cases):
    """Compare the traces of JavaScript with the native ones, bit for bit."""
    for trace, (dream, params, pos_weight), case in zip(found, dreams, cases, strict=True):
        expected = dream.trace(params, seed=case["seed"], episode=case["episode"])
        assert trace["steps"] == len(expected.reward)
        assert trace["z"].tobytes() == expected.z.tobytes()
        assert trace["action"].tobytes() == expected.action.tobytes()
        assert trace["reward"].tobytes() == expected.reward.tobytes()
        if expected.done_logit is not None:
            logit = expected.done_logit.astype(np.float64) - np.log(pos_weight)
            np.testing.assert_allclose(trace["probability"], 1 / (1 + np.exp(-logit)), rtol=1e-12)


SHAPES = [
    {},
    {"latent_size": 5, "hidden_size": 13, "mixtures": 5, "reward_head": True},
    {"latent_size": 9, "hidden_size": 3, "mixtures": 9, "restart_input": False, "done_pos_weight": 10.0},
    {"latent_size": 1, "hidden_size": 1, "mixtures": 1, "done_head": False, "reward_head": True},
]


@pytest.mark.parametrize("options", SHAPES, ids=range(len(SHAPES)))
def test_a_dream_equals_the_native_trace(tmp_path, options):
    """Whole episodes, for seeds, temperatures, terminations and controllers."""
    world = small_world(**options)
    shapes = [
        {},
        {"features": "z", "bias": True},
        {"features": "zc", "hidden_units": 5},
        {"features": "zh", "bias": True},
    ]
    agents = {f"agent {number}": small_agent(world, seed=number, **shape) for number, shape in enumerate(shapes)}
    path = tmp_path / "dream.safetensors"
    path.write_bytes(small_bundle(world, agents=agents))
    terminations = ("threshold", "sample", "expected") if world.mdnrnn.done_head else ("threshold",)
    cases, dreams = [], []
    for number, seed in enumerate([0, 7, 2**32, 2**64 - 1]):
        for termination in terminations:
            for temperature in (0.0, 0.1, 1.0, 1.7):
                name = f"agent {number}"
                cases.append(
                    {
                        "seed": seed,
                        "episode": number,
                        "temperature": temperature,
                        "termination": termination,
                        "maxSteps": 60,
                        "agent": name,
                    }
                )
                agent = agents[name]
                dream = Dream(*world, agent.controller, temperature=temperature, max_steps=60, termination=termination)
                dreams.append((dream, agent.params, world.mdnrnn.done_pos_weight))
    found = run(TRACE, path, [{**case, "seed": str(case["seed"])} for case in cases])
    check_traces(found, dreams, cases)
    lengths = {trace["steps"] for trace in found}
    assert not world.mdnrnn.done_head or len(lengths) > 2, lengths


def test_the_pretrained_dream_equals_the_native_trace(takecover):
    path, _, params = takecover
    cases = [
        {"seed": seed, "episode": 0, "temperature": temperature, "termination": termination, "maxSteps": 300}
        for seed, temperature, termination in [(1, 1.15, "expected"), (2, 1.0, "sample"), (3, 0.1, "threshold")]
    ]
    dreams = []
    for case in cases:
        settings = {"temperature": case["temperature"], "termination": case["termination"], "max_steps": 300}
        dream = Dream.pretrained("takecover", **settings)
        dreams.append((dream, params, load_world_model("takecover").mdnrnn.done_pos_weight))
    given = [{**case, "seed": str(case["seed"]), "agent": "takecover"} for case in cases]
    check_traces(run(TRACE, path, given), dreams, cases)


def test_actions_squashed_as_those_of_the_car(tmp_path):
    torch.manual_seed(0)
    world = small_world()
    mdnrnn = MDNRNN(4, 3, 8, mixtures=2, restart_input=True, done_head=True, reward_head=True)
    with torch.no_grad():
        for parameter in mdnrnn.parameters():
            parameter.copy_((0.3 * torch.randn_like(parameter)).half().float())
    world = world._replace(mdnrnn=mdnrnn)
    agent = small_agent(world, squash="carracing")
    path = tmp_path / "dream.safetensors"
    path.write_bytes(small_bundle(world, agents={"car": agent}))
    case = {"seed": 5, "episode": 2, "temperature": 1.0, "termination": "threshold", "maxSteps": 30, "agent": "car"}
    dream = Dream(*world, agent.controller, max_steps=30)
    found = run(TRACE, path, [{**case, "seed": "5"}])
    check_traces(found, [(dream, agent.params, 1.0)], [case])
    assert len(np.unique(found[0]["action"])) > 10


@pytest.mark.parametrize("choices", [(18,), (2, 3, 4)], ids=str)
def test_discrete_actions_are_the_native_ones(tmp_path, choices):
    """In a dream of the file's agent, in evolution, and where they are set from outside."""
    world = small_world(action_size=sum(choices), reward_head=True, done_head=False)
    shape = {"squash": "argmax", "choices": choices}
    agents = {"one": small_agent(world, **shape), "deep": small_agent(world, bias=True, hidden_units=5, **shape)}
    path = tmp_path / "dream.safetensors"
    path.write_bytes(small_bundle(world, agents=agents))
    case = {"episode": 1, "temperature": 1.0, "termination": "threshold", "maxSteps": 40}
    cases = [{**case, "seed": seed, "agent": name} for seed, name in enumerate(agents)]
    found = run(TRACE, path, [{**one, "seed": str(one["seed"])} for one in cases])
    dreams = [Dream(*world, agent.controller, max_steps=40) for agent in agents.values()]
    check_traces(found, [(dream, agents[name].params, 1.0) for dream, name in zip(dreams, agents, strict=True)], cases)
    actions = found[0]["action"].reshape(-1, sum(choices))
    assert (actions.sum(axis=1) == len(choices)).all() and len(np.unique(actions, axis=0)) > 1

    settings = {"popsize": 4, "episodes": 2, "sigma0": 0.3, "maxSteps": 10, "seed": 6}
    code = """
      const world = await load(), search = world.evolution(given), { returns } = (search.generation(), search);
      world.setAgent("one", search.parameters, search.shape);
      const action = world.dream().act("one"), { shape, parameters } = search;
      search.free();
      return { returns, shape, parameters, action };
    """
    searched = run(code, path, settings)
    assert searched["shape"]["choices"] == list(choices)
    es = CMAES(np.zeros(dreams[0].controller.size), 0.3, popsize=4, seed=6, separable=True)
    solutions = es.ask()
    expected = (
        dreams[0].rollout(solutions, 2, seed=7, common_random_numbers=True, max_steps=10).returns.astype(np.float64)
    )
    np.testing.assert_array_equal(searched["returns"], expected.mean(axis=1))
    es.tell(solutions, -expected.mean(axis=1))
    np.testing.assert_array_equal(searched["parameters"], es.mean.astype(np.float32))
    assert searched["action"].sum() == len(choices)


def test_random_words_are_philox():
    code = """
      const { instance } = await WebAssembly.instantiate(files.wasm, { wasi_snapshot_preview1: {
        fd_close() {}, fd_seek() {}, fd_write() {} } });
      const { philox, allocate, memory } = instance.exports, at = allocate(16);
      return given.map((words) => { philox(...words, at); return new Uint32Array(memory.buffer, at, 4).slice(); });
    """
    generator = np.random.default_rng(0)
    cases = [*generator.integers(0, 2**32, (20, 6)).tolist(), [0] * 6, [2**32 - 1] * 6]
    for (low, high, *counter), found in zip(cases, run(code, given=cases), strict=True):
        assert found.tolist() == reference.philox4x32(counter, (low, high))


def test_frames_are_those_of_v(takecover):
    """The folded decoder, whose weights are float16, and the encoder."""
    path, vae, _ = takecover
    z = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    code = """
      const world = await load();
      return given.map((z) => { const frame = world.decode(z); return { frame, ...world.encode(frame) }; });
    """
    with torch.inference_mode():
        expected = vae.decode(torch.from_numpy(z)).permute(0, 2, 3, 1).numpy()
    for found, brightness in zip(run(code, path, z.tolist()), expected, strict=True):
        frame = found["frame"].reshape(64, 64, 4)
        assert (frame[..., 3] == 255).all()
        assert np.abs(frame[..., :3] - 255 * brightness).max() < 0.5 + 1.0
        with torch.inference_mode():
            mu, logvar = vae.encode(torch.from_numpy(frame[None, ..., :3] / np.float32(255)).permute(0, 3, 1, 2))
        np.testing.assert_allclose(found["mu"], mu[0].numpy(), atol=2e-5 * float(mu.abs().max()))
        np.testing.assert_allclose(found["logvar"], logvar[0].numpy(), atol=2e-5 * float(logvar.abs().max()))


@pytest.mark.parametrize("latent_size", [1, 6, 33])
def test_frames_of_any_number_of_latents(tmp_path, latent_size):
    world = small_world(latent_size)
    torch.manual_seed(5)
    vae = ConvVAE(latent_size).eval()
    path = tmp_path / "dream.safetensors"
    path.write_bytes(small_bundle(world, vae))
    z = np.random.default_rng(1).standard_normal((2, latent_size), np.float32)
    found = run("const world = await load(); return given.map((z) => world.decode(z));", path, z.tolist())
    with torch.inference_mode():
        expected = 255 * vae.decode(torch.from_numpy(z)).permute(0, 2, 3, 1).numpy()
    for frame, brightness in zip(found, expected, strict=True):
        assert np.abs(frame.reshape(64, 64, 4)[..., :3] - brightness).max() < 0.5 + 1.0


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_a_mixture_is_the_density_of_the_sample(tmp_path, temperature):
    world = small_world(3, 8, mixtures=4)
    path = tmp_path / "dream.safetensors"
    path.write_bytes(small_bundle(world))
    code = """
      const world = await load(), dream = world.dream({ seed: 4, temperature: given });
      const all = () => [0, 1, 2].map((dimension) => dream.mixture(dimension));
      const before = { z: dream.z, h: dream.h, c: dream.c, mixtures: all() };
      dream.step([0.5]);
      dream.temperature = 2; // of the next step
      return [before, { z: dream.z, h: dream.h, c: dream.c, mixtures: all() }];
    """
    before, after = run(code, path, temperature)
    for mixture in before["mixtures"]:  # the initial state's normal distribution
        assert mixture["weights"].tolist() == [1.0]
        assert any(np.isin(mixture["means"], column).all() for column in world.initial_mu.T)
    with torch.inference_mode():
        z, action = torch.from_numpy(before["z"].copy())[None, None], torch.tensor([[[0.5]]])
        out, (h, c) = world.mdnrnn(z, action, torch.ones(1, 1))
    np.testing.assert_allclose(after["h"], h[0, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(after["c"], c[0, 0].numpy(), atol=1e-5)
    for dimension, mixture in enumerate(after["mixtures"]):
        assert mixture["sample"] == after["z"][dimension]
        logmix = out.logmix[0, 0, dimension].double()
        if temperature:
            expected = torch.softmax(logmix / temperature, 0).numpy()
        else:
            expected = np.eye(4)[int(logmix.argmax())]
        np.testing.assert_allclose(mixture["weights"], expected, atol=1e-5)
        np.testing.assert_allclose(mixture["means"], out.mean[0, 0, dimension].numpy(), rtol=1e-4, atol=1e-5)
        stds = np.exp(out.logstd[0, 0, dimension].numpy()) * np.sqrt(temperature)
        np.testing.assert_allclose(mixture["stds"], stds, rtol=1e-4, atol=1e-7)
        if not temperature:
            assert mixture["sample"] in mixture["means"]


def test_temperature_takes_effect_in_flight(weights):
    code = """
      const world = await load();
      const play = (second) => {
        const dream = world.dream({ seed: 1, temperature: 1 });
        dream.step([0]);
        dream.temperature = second;
        const { z } = dream;
        dream.step([0]);
        return [z, dream.z];
      };
      return [play(1), play(1), play(0.2)];
    """
    one, same, other = run(code, weights)
    np.testing.assert_array_equal(one[1], same[1])
    np.testing.assert_array_equal(one[0], other[0])
    assert (one[1] != other[1]).any()


@pytest.mark.parametrize("termination", ["threshold", "expected"])
def test_evolution_equals_the_native_one(weights, termination):
    """Five generations of CMA-ES in the dream, whole and in slices."""
    settings = {"popsize": 10, "episodes": 5, "sigma0": 0.3, "temperature": 1.1, "maxSteps": 40, "seed": 6}
    code = """
      const world = await load(), settings = given;
      const play = (next) => {
        const search = world.evolution(settings), all = [];
        for (let generation = 0; generation < 5; ++generation)
          all.push({ ...next(search), returns: search.returns, parameters: search.parameters,
                     bestParameters: search.bestParameters });
        world.setAgent("found", search.parameters, search.shape);
        const action = world.dream().act("found");
        search.free();
        return { all, action };
      };
      const sliced = (search) => { for (;;) { const found = search.run(0); if (found) return found; } };
      return [play((search) => search.generation()), play(sliced)];
    """
    whole, sliced = run(code, weights, {**settings, "termination": termination})
    world = small_world()
    dream = Dream(*world, Controller(4, 8, 1), temperature=1.1, max_steps=settings["maxSteps"], termination=termination)
    es = CMAES(np.zeros(dream.controller.size), 0.3, popsize=10, seed=6, separable=True)
    for generation in range(5):
        solutions = es.ask()
        result = dream.rollout(solutions, 5, seed=6 + generation + 1, common_random_numbers=True)
        returns = result.returns.astype(np.float64).mean(axis=1)
        es.tell(solutions, -returns)
        for found in (whole["all"][generation], sliced["all"][generation]):
            np.testing.assert_array_equal(found["returns"], returns)
            np.testing.assert_array_equal(found["parameters"], es.mean.astype(np.float32))
            np.testing.assert_array_equal(found["bestParameters"], solutions[returns.argmax()].astype(np.float32))
            assert found["generation"] == generation + 1 and found["steps"] == result.lengths.sum()
            assert (found["sigma"], found["best"], found["worst"]) == (es.sigma, returns.max(), returns.min())
            assert found["mean"] == pytest.approx(returns.mean(), rel=1e-12)
    assert len(np.unique(whole["all"][0]["returns"])) > 1
    np.testing.assert_array_equal(whole["action"], sliced["action"])


def test_the_file_is_what_python_wrote(weights):
    info = run("const world = await load(); return { ...world.info, names: world.agents };", weights)
    assert info["task"] == "toy" and info["agents"] == info["names"] == ["one"] and info["latentSize"] == 4
    assert info["controllers"]["one"]["features"] == "zch"
    contents = weights.read_bytes()
    tensors = read_tensors(contents)
    assert tensors["rnn.weight_hh"].dtype == np.float16 and tensors["agents.one"].dtype == np.float32
    header = json.loads(contents[8 : 8 + struct.unpack("<Q", contents[:8])[0]])
    digest = header["__metadata__"]["sha256"].encode()
    assert hashlib.sha256(contents.replace(digest, b"0" * 64, 1)).hexdigest().encode() == digest
    assert small_bundle(small_world()) == contents


@pytest.mark.parametrize("count", [0, 1, 55, 56, 63, 64, 65, 1000])
def test_sha256(count):
    given = np.random.default_rng(count).integers(0, 256, count, dtype=np.uint8)
    found = run("return api.sha256(Uint8Array.from(given));", given=given.tolist())
    assert found == hashlib.sha256(given.tobytes()).hexdigest()


def test_damaged_files_are_refused(weights):
    code = """
      const cut = (bytes, count) => bytes.subarray(0, count), whole = files.weights;
      const changed = (at, by = 1) => { const copy = Buffer.from(whole); copy[at] ^= by; return copy; };
      const header = 8 + whole.readUInt32LE(0), text = whole.indexOf("maxSteps");
      const cases = {
        empty: cut(whole, 0), seven: cut(whole, 7), header: cut(whole, 100), tensors: cut(whole, header + 9),
        last: cut(whole, whole.length - 1), longer: Buffer.concat([whole, Buffer.alloc(1)]),
        bit: changed(whole.length - 1), first: changed(header), setting: changed(text + 12), length: changed(6),
        text: Buffer.from("<html>404</html>"), zeros: Buffer.alloc(1000), name: changed(10),
        hash: changed(whole.indexOf("sha256") + 12),
      };
      const found = {};
      for (const [name, weights] of Object.entries(cases)) found[name] = await message(() => load({ weights }));
      found.none = await message(() => load({ weights: undefined }));
      found.wasm = await message(() => load({ wasm: cut(files.wasm, 5000) }));
      found.page = await message(() => load({ wasm: Buffer.from("<html>") }));
      found.answer = await message(() => load({ wasm: Promise.resolve(new Response("no", { status: 404 })) }));
      found.whole = await message(() => load());
      found.view = await message(() => load({ weights: Uint8Array.from([0, ...whole]).subarray(1) }));
      return found;
    """
    found = run(code, weights)
    assert found.pop("whole") is None and found.pop("view") is None
    assert found.pop("none") == "WorldModelError: weights: expected an ArrayBuffer or a Uint8Array, got undefined"
    for name in ("wasm", "page"):
        assert found.pop(name).startswith("WorldModelError: dream.wasm: expected the file of this version, got ")
    assert found.pop("answer") == "WorldModelError: dream.wasm: the server answered 404"
    for name in ("header", "tensors", "last"):
        assert "truncated" in found[name], (name, found[name])
    for name in ("bit", "first", "setting", "hash", "longer"):
        assert "altered" in found[name], (name, found[name])
    for name, message in found.items():
        assert message.startswith("WorldModelError: dream.safetensors: "), (name, message)


@pytest.mark.parametrize(
    ("changed", "tensor"),
    [({"hiddenSize": 9}, "rnn.weight_ih"), ({"initialStates": 8}, "initial.mu"), ({"mixtures": 3}, "rnn.head_weight")],
)
def test_sizes_that_do_not_fit_the_tensors_are_refused(tmp_path, changed, tensor):
    path = tmp_path / "dream.safetensors"
    path.write_bytes(small_bundle(small_world(), metadata=changed))
    found = run("return await message(() => load());", path)
    assert found.startswith("WorldModelError: dream.safetensors: expected ") and f" numbers in {tensor}, got" in found


def test_a_browser_without_simd_is_named(weights):
    code = "WebAssembly.validate = () => false; return await message(() => load());"
    assert run(code, weights).startswith("WorldModelError: This browser has no WebAssembly SIMD")


def test_what_does_not_fit_is_named(weights):
    code = """
      const world = await load(), dream = world.dream();
      const calls = {
        action: () => dream.step([0, 1]), finite: () => dream.step([NaN]), agent: () => dream.act("two"),
        temperature: () => { dream.temperature = -1; }, text: () => { dream.temperature = "1"; },
        seed: () => dream.reset(-1), fraction: () => dream.reset(0.5), big: () => dream.reset(2n ** 64n),
        termination: () => world.dream({ termination: "never" }), dimension: () => dream.mixture(4),
        z: () => world.decode([1]), rgba: () => world.encode(new Uint8Array(3)),
        popsize: () => world.evolution({ popsize: 1 }),
        sigma: () => world.evolution({ sigma0: 0 }), features: () => world.evolution({ features: "ch" }),
        squash: () => world.evolution({ squash: "carracing" }), argmax: () => world.evolution({ squash: "argmax" }),
        choices: () => world.setAgent("two", [1], { squash: "argmax", choices: [2, 3] }),
        tanh: () => world.evolution({ choices: [2] }), parameters: () => world.setAgent("two", [1, 2]),
      };
      const found = {};
      for (const [name, call] of Object.entries(calls)) found[name] = await message(call);
      return found;
    """
    expected = {
        "action": "action: expected 1 numbers, got 2",
        "finite": "action: expected finite numbers",
        "agent": "agent: expected one of one, got two",
        "temperature": "temperature: expected a finite number of at least 0, got -1",
        "text": "temperature: expected a finite number of at least 0, got 1",
        "seed": "seed: expected an integer from 0 to 2^64 - 1, got -1",
        "fraction": "seed: expected an integer from 0 to 2^64 - 1, got 0.5",
        "big": f"seed: expected an integer from 0 to 2^64 - 1, got {2**64}",
        "termination": "termination: expected one of threshold, sample, expected, got never",
        "dimension": "dimension: expected an integer from 0 to 3, got 4",
        "z": "z: expected 4 numbers, got 1",
        "rgba": "rgba: expected 16384 numbers (64 x 64 RGBA), got 3",
        "popsize": "popsize: expected an integer from 2 to 4096, got 1",
        "sigma": "sigma0: expected a finite number of at least 5e-324, got 0",
        "features": "features: expected one of z, zh, zc, zch, got ch",
        "squash": "squash: expected tanh for 1 actions, got carracing",
        "argmax": f"choices: expected an integer from 2 to {2**31 - 1}, got 1",
        "choices": "choices: expected a sum of 1 for argmax, got 5",
        "tanh": "choices: expected a sum of 0 for tanh, got 2",
        "parameters": "parameters: expected 20 numbers, got 2",
    }
    assert run(code, weights) == {name: f"WorldModelError: {text}" for name, text in expected.items()}


def test_a_world_model_that_can_be_saved_has_a_file():
    world = small_world()
    wide = world._replace(initial_mu=world.initial_mu.astype(np.float64), initial_logvar=world.initial_logvar.tolist())
    assert small_bundle(wide) == small_bundle(world)
    large = world._replace(initial_mu=np.full((7, 4), 1e5))  # beyond float16
    assert small_bundle(large) == small_bundle(large._replace(initial_mu=np.full((7, 4), 1e5, np.float32)))


def test_what_does_not_fit_in_a_file_is_named():
    world = small_world()
    with pytest.raises(ValueError, match=r"^initial_mu: expected \(K, 4\) float32, got \(7, 3\) float32"):
        small_bundle(world._replace(initial_mu=world.initial_mu[:, 1:]))
    with pytest.raises(TypeError, match=r"^vae: expected a ConvVAE, got Identity"):
        small_bundle(world, torch.nn.Identity())
    with pytest.raises(ValueError, match=r"^vae: expected 4 latents, as M has, got 5"):
        small_bundle(world, ConvVAE(5))
    with pytest.raises(
        ValueError, match=r"^agents: expected \(latent, hidden, action\) sizes \(4, 8, 1\) of M in 'big'"
    ):
        small_bundle(world, agents={"big": small_agent(small_world(5))})
    with torch.no_grad():
        world.mdnrnn.head.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^rnn.head_weight: expected finite numbers, got nan"):
        small_bundle(world)
