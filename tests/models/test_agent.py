"""The agent: V's sampled latent, C's formula, M's memory; the same in every slot of every batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import worldmodels as wm
from conftest import make_mdnrnn, make_vae, toy_config, write_world
from worldmodels.pipeline.evolution import save_controller
from worldmodels.pipeline.run import Run

LATENT, HIDDEN = 4, 6


@pytest.fixture(scope="module")
def agent():
    controller = wm.Controller(LATENT, HIDDEN, 1)
    params = np.random.default_rng(0).normal(0, 0.3, controller.size)
    return wm.Agent(make_vae(LATENT), make_mdnrnn(LATENT, HIDDEN), controller, params)


def frames(batch, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def remember(mdnrnn, z, action, restart, h, c):
    """One step of M's LSTM in NumPy, (B, H): torch's gate order i, f, g, o."""
    w_input, w_recurrent, *biases = (
        mdnrnn.lstm.get_parameter(name).detach().numpy().astype(np.float64)
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    )
    x = np.concatenate([z, action, restart[:, None]], axis=1)
    i, f, g, o = np.split(x @ w_input.T + h @ w_recurrent.T + sum(biases), 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def test_actions_are_those_of_the_paper(agent):
    """a = tanh(W [z, c, h]); M then takes (z, a, restart); a restart zeroes the memory first."""
    h = c = np.zeros((3, HIDDEN))
    agent.reset(3, seed=5)
    for step in range(6):
        restart = np.array([step == 0, step in (0, 3), step == 0])
        action = agent.act(frames(3, step), restart if step else None)
        h, c = h * ~restart[:, None], c * ~restart[:, None]
        expected = np.tanh(np.concatenate([agent.z, c, h], axis=1) @ agent.params)
        assert action.shape == (3, 1)
        assert action.dtype == np.float32
        np.testing.assert_allclose(action[:, 0], expected, atol=1e-5)
        h, c = remember(agent.mdnrnn, agent.z, action, restart, h, c)
    assert np.abs(h).min() > 1e-6


def test_latents_are_sampled_around_v(agent):
    """Every slot draws its own z ~ N(mu, sigma) of the same frame."""
    same = np.repeat(frames(1), 2000, axis=0)
    with torch.inference_mode():
        x = torch.from_numpy(same[:1]).permute(0, 3, 1, 2).float() / 255
        mu, logvar = (part[0].numpy() for part in agent.vae.encode(x))
    sigma = np.exp(logvar / 2)
    agent.reset(len(same), seed=1)
    agent.act(same)
    scaled = (agent.z - mu) / sigma
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=5 / 2000**0.5)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=0.08)
    assert np.abs(np.corrcoef(scaled.T) - np.eye(LATENT)).max() < 0.12


def play(agent, slots, slot, episode, steps=5):
    """Actions in one slot while other episodes are played beside it."""
    agent.reset(slots, seed=3)
    episodes = np.arange(100, 100 + slots)
    episodes[slot] = episode
    first = np.ones(slots, np.bool_)
    actions = []
    for step in range(steps):
        batch = frames(slots, 50 + 10 * step + slot)
        batch[slot] = frames(1, step)[0]
        actions.append(agent.act(batch, first if step == 0 else np.zeros(slots, np.bool_), episodes)[slot])
    return np.stack(actions)


def test_an_episode_does_not_depend_on_its_slot_or_its_batch(agent):
    alone = play(agent, 1, 0, 7)
    for slots, slot in ((2, 1), (5, 0), (5, 3)):
        np.testing.assert_allclose(play(agent, slots, slot, 7), alone, atol=1e-5)
    assert np.abs(play(agent, 1, 0, 8) - alone).max() > 1e-3  # another episode draws other latents


def test_slots_that_rest_change_nothing_and_are_not_changed(agent):
    pictures = [frames(4, step) for step in range(6)]
    acting = [[0, 1, 2, 3], [2, 0], [3], [1, 3, 0], [2], [0, 1, 2, 3]]
    agent.reset(4, seed=3)
    found = {slot: [] for slot in range(4)}
    for step, slots in enumerate(acting):
        for slot, action in zip(slots, agent.act(pictures[step][slots], env_ids=np.array(slots)), strict=True):
            found[slot].append(action)
    for slot in range(4):
        agent.reset(4, seed=3)
        alone = [
            agent.act(pictures[step][[slot]], env_ids=np.array([slot]))[0]
            for step, slots in enumerate(acting)
            if slot in slots
        ]
        np.testing.assert_array_equal(np.stack(alone), np.stack(found[slot]))


@pytest.mark.parametrize("slots", [[], [0, 0], [4], [-1], [[0]], [0.5]])
def test_slots_that_are_not_there_are_refused(agent, slots):
    agent.reset(4)
    with pytest.raises(ValueError, match=r"^env_ids: expected distinct integers from 0 to 3, got "):
        agent.act(frames(1), env_ids=np.array(slots))


def test_reset_forgets(agent):
    agent.reset(2, seed=1)
    first = [agent.act(frames(2, step)) for step in range(3)]
    agent.reset(2, seed=1)
    np.testing.assert_array_equal([agent.act(frames(2, step)) for step in range(3)], first)
    agent.reset(2, seed=2)
    assert np.abs(agent.act(frames(2, 0)) - first[0]).max() > 1e-4


def test_load_gives_the_agent_of_the_run_folder(tmp_path, agent):
    with Run(tmp_path / "run", toy_config()) as experiment:
        write_world(experiment, LATENT, HIDDEN)
        with pytest.raises(FileNotFoundError, match=r"controller\.safetensors"):
            wm.Agent.load(experiment.folder)
        save_controller(experiment, agent.controller, agent.params.astype(np.float64), {"score": 1.0})
    loaded = wm.Agent.load(str(tmp_path / "run"))
    for player in (agent, loaded):
        player.reset(2, seed=1)
    np.testing.assert_array_equal(loaded.act(frames(2)), agent.act(frames(2)))


def test_bad_arguments_are_named(agent):
    controller, params = agent.controller, agent.params
    with pytest.raises(ValueError, match=r"controller: expected \(latent, hidden, action\) sizes \(4, 6, 1\)"):
        wm.Agent(agent.vae, agent.mdnrnn, wm.Controller(LATENT, HIDDEN + 1, 1), params)
    with pytest.raises(ValueError, match="controller: expected"):
        wm.Agent(make_vae(3), agent.mdnrnn, wm.Controller(3, HIDDEN, 1), params)
    with pytest.raises(ValueError, match=r"params: expected \(16,\) finite numbers"):
        wm.Agent(agent.vae, agent.mdnrnn, controller, params[:-1])
    with pytest.raises(ValueError, match="params: expected"):
        wm.Agent(agent.vae, agent.mdnrnn, controller, np.full(16, np.nan))
    with pytest.raises(ValueError, match="batch: expected an integer from 1 to 1048576, got 0"):
        agent.reset(0)
    agent.reset(2)
    with pytest.raises(ValueError, match=r"frames: expected \(2, 64, 64, 3\) uint8, got \(1, 64, 64, 3\)"):
        agent.act(frames(1))
    with pytest.raises(ValueError, match=r"frames: expected .* float32"):
        agent.act(frames(2).astype(np.float32))
    with pytest.raises(ValueError, match=r"restart: expected \(2,\) bool, got \(1,\)"):
        agent.act(frames(2), np.ones(1, np.bool_))


def test_parameters_of_an_environment_are_copied_and_checked(agent):
    agent.reset(2, seed=5)
    params = np.random.default_rng(3).normal(size=agent.controller.size)
    agent.set_params(1, params)
    want = agent.act(frames(2))
    for bad, message in (
        (params[:-1], r"\(15,\) float64"),
        (np.where(np.arange(16) == 3, np.nan, params), r"nan at \[3\]"),
        (np.full(16, 1e300), r"inf at \[0\]"),
        (np.full(16, "1"), r"\(16,\) <U1"),
    ):
        with pytest.raises(ValueError, match=rf"^params: expected \(16,\) finite numbers, got {message}"):
            agent.set_params(1, bad)
    agent.reset(2, seed=5)
    agent.set_params(1, params)
    params[:] = 0
    np.testing.assert_array_equal(agent.act(frames(2)), want)


def test_load_takes_the_name_of_a_pretrained_agent():
    one, other = wm.Agent.load("takecover"), wm.Agent.pretrained("takecover")
    np.testing.assert_array_equal(one.params, other.params)
    assert one.controller == other.controller


def test_streams_of_different_seeds_and_episodes_are_different(agent):
    """Two 32-bit words of a seed are not the seed and the episode of another; bits of smaller seeds are pinned."""

    def latents(seed, episode):
        agent.reset(1, seed=seed)
        agent.act(frames(1), np.array([True]), np.array([episode]))
        return agent.z.copy()

    keys = [(5 + 7 * 2**32, 3), (5, 7), (5, 3), (7, 5), (7 * 2**32, 0), (7 * 2**32, 5), (2**64 - 1, 0), (2**64 - 1, 1)]
    assert len(np.unique(np.concatenate([latents(*key) for key in keys]), axis=0)) == len(keys)
    for seed in (2**32 - 1, 2**32, 5 + 7 * 2**32):
        agent.reset(2, seed=seed)
        predicted, _ = agent.predict(frames(2))
        np.testing.assert_array_equal(predicted, agent.act(frames(2)))
    (mu,), (sigma,) = encoded(agent, frames(1))
    noise = np.random.default_rng([2**32 - 1, 9]).standard_normal(LATENT, np.float32)
    np.testing.assert_allclose(latents(2**32 - 1, 9)[0], mu + sigma * noise, atol=1e-5)


def encoded(agent, seen):
    """V's mean and standard deviation of frames (B, 64, 64, 3)."""
    with torch.inference_mode():
        mu, logvar = agent.vae.encode(torch.from_numpy(seen).permute(0, 3, 1, 2).float() / 255)
    return mu.numpy(), np.exp(logvar.numpy() / 2)


def test_predictions_without_chance_are_those_of_the_paper_with_means(agent):
    """The state goes in and comes out; a start of an episode zeroes it."""
    h = c = np.zeros((3, HIDDEN))
    state = None
    for step in range(6):
        start = np.array([step == 0, step in (0, 3), step == 0])
        action, state = agent.predict(frames(3, step), state, start if step else None, deterministic=True)
        h, c = h * ~start[:, None], c * ~start[:, None]
        z, _ = encoded(agent, frames(3, step))
        np.testing.assert_allclose(action[:, 0], np.tanh(np.concatenate([z, c, h], axis=1) @ agent.params), atol=1e-5)
        assert action.shape == (3, 1) and action.dtype == np.float32
        h, c = remember(agent.mdnrnn, z, action, start, h, c)
        np.testing.assert_allclose(state.h, h, atol=1e-5)
        np.testing.assert_allclose(state.c, c, atol=1e-5)
    assert state.episode.tolist() == [0, 1, 0] and state.step.tolist() == [6, 3, 6]


def test_predictions_sample_latents_around_v():
    """A controller of z alone: the arc tangents of its actions are normal."""
    controller = wm.Controller(LATENT, HIDDEN, 1, features="z")
    params = np.float32([0.3, -0.2, 0.1, 0.25])
    agent = wm.Agent(make_vae(LATENT), make_mdnrnn(LATENT, HIDDEN), controller, params)
    (mu,), (sigma,) = encoded(agent, frames(1))
    action, state = agent.predict(np.repeat(frames(1), 2000, axis=0))
    later, _ = agent.predict(np.repeat(frames(1), 2000, axis=0), state)
    std = np.linalg.norm(params * sigma)
    for outputs in (np.arctanh(action[:, 0]), np.arctanh(later[:, 0])):
        scaled = (outputs - mu @ params) / std
        assert abs(scaled.mean()) < 5 / 2000**0.5 and abs(scaled.std() - 1) < 0.08
    assert abs(np.corrcoef(action[:, 0], later[:, 0])[0, 1]) < 0.12


def test_predictions_change_nothing_of_the_agent(agent):
    agent.reset(2, seed=4)
    want = [agent.act(frames(2, step)) for step in range(3)]
    agent.reset(2, seed=4)
    state, found = None, []
    for step in range(3):
        np.testing.assert_array_equal(agent.act(frames(2, step)), want[step])
        one, after = agent.predict(frames(3, step), state)
        again, same = agent.predict(frames(3, step), state)
        np.testing.assert_array_equal(one, again)
        for mine, other in zip(after, same, strict=True):
            np.testing.assert_array_equal(mine, other)
        found.append(one)
        state = after
    agent.reset(1, seed=5)
    assert (agent.predict(frames(3))[0] != found[0]).any()


def test_episodes_and_environments_have_latents_of_their_own(agent):
    """Of the same frames: the first episode of an environment repeats, and differs from its second."""
    agent.reset(1, seed=0)
    same = np.repeat(frames(1), 2, axis=0)
    first, state = agent.predict(same)
    second, _ = agent.predict(same, state, np.ones(2, np.bool_))
    assert len(np.unique([*first.ravel(), *second.ravel()])) == 4
    np.testing.assert_array_equal(agent.predict(same)[0], first)
    np.testing.assert_allclose(agent.predict(same[:1])[0], first[:1], atol=1e-6)


@pytest.mark.parametrize("choices", [(), (3,), (2, 3)], ids=str)
def test_a_single_frame_has_a_single_action(choices):
    size = sum(choices) or 2
    shape = {"squash": "argmax", "choices": choices} if choices else {}
    controller = wm.Controller(LATENT, HIDDEN, size, **shape)
    params = np.random.default_rng(1).normal(size=controller.size)
    agent = wm.Agent(make_vae(LATENT), make_mdnrnn(LATENT, HIDDEN, action_size=size), controller, params)
    alone, state = agent.predict(frames(1)[0])
    many, _ = agent.predict(frames(1))
    np.testing.assert_array_equal(alone, many[0])
    assert state.h.shape == (1, HIDDEN)
    next_alone, _ = agent.predict(frames(1)[0], state, np.array([False]))
    assert np.shape(next_alone) == np.shape(alone) == {0: (2,), 1: (), 2: (2,)}[len(choices)]
    if not choices:
        return
    agent.reset(1, seed=0)  # the first latents of the first environment are those of `act`
    vectors = agent.act(frames(1))[0]
    assert many.dtype == np.int64
    want = [part.argmax() for part in np.split(vectors, np.cumsum(choices)[:-1])]
    assert np.atleast_1d(alone).tolist() == want


def test_states_that_do_not_fit_are_refused(agent):
    _, state = agent.predict(frames(2))
    with pytest.raises(ValueError, match=r"^state\.h: expected \(3, 6\) float32, got \(2, 6\) float32"):
        agent.predict(frames(3), state)
    with pytest.raises(ValueError, match=r"^state\.step: expected \(2,\) int64, got \(2,\) float64"):
        agent.predict(frames(2), state._replace(step=np.zeros(2)))
    with pytest.raises(ValueError, match=r"^state\.h: expected finite numbers, got NaN or infinity"):
        agent.predict(frames(2), state._replace(h=np.full_like(state.h, np.nan)))
    with pytest.raises(ValueError, match=r"^state\.episode: expected integers of at least 0, got -1"):
        agent.predict(frames(2), state._replace(episode=state.episode - 1))
    with pytest.raises(TypeError, match=r"^state: expected None or a state that predict has returned, got \("):
        agent.predict(frames(2), (state.h, state.c))
    with pytest.raises(ValueError, match=r"^episode_start: expected \(2,\) bool, got \(2,\) int64"):
        agent.predict(frames(2), state, np.array([0, 1]))
    with pytest.raises(ValueError, match=r"^observation: expected \(2, 64, 64, 3\) uint8, got \(2, 3, 64, 64\) uint8"):
        agent.predict(frames(2).transpose(0, 3, 1, 2))
    for observation in (None, 3):
        with pytest.raises(ValueError, match=r"^observation: expected \(0, 64, 64, 3\) uint8, got \(\) (object|int64)"):
            agent.predict(observation)
    with pytest.raises(ValueError, match=r"^observation: expected \(1, 64, 64, 3\) uint8, got \(1, 64, 64, 3\) int64"):
        agent.predict(frames(1)[0].tolist())


def test_overruled_actions_are_taken_and_remembered(agent):
    """NaN leaves the decision to the agent; whatever is taken is what M remembers."""
    h = c = np.zeros((2, HIDDEN))
    agent.reset(2, seed=5)
    for step in range(4):
        forced_actions = np.float32([[np.nan], [0.75]])
        action = agent.act(frames(2, step), forced_actions=forced_actions)
        own = np.tanh(np.concatenate([agent.z, c, h], axis=1) @ agent.params)
        np.testing.assert_allclose(action[:, 0], [own[0], 0.75], atol=1e-5)
        h, c = remember(agent.mdnrnn, agent.z, action, np.full(2, step == 0), h, c)


def test_a_slot_may_have_a_controller_of_its_own(agent):
    agent.reset(2, seed=5)
    own = np.random.default_rng(3).normal(size=agent.controller.size).astype(np.float32)
    agent.set_params(1, own)
    action = agent.act(frames(2))
    features = np.concatenate([agent.z, np.zeros((2, 2 * HIDDEN))], axis=1)
    np.testing.assert_allclose(action[:, 0], np.tanh([features[0] @ agent.params, features[1] @ own]), atol=1e-5)
    agent.set_params(1, None)
    agent.reset(2, seed=5)
    again = agent.act(frames(2))
    np.testing.assert_allclose(again[:, 0], np.tanh(features @ agent.params), atol=1e-5)
