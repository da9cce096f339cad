from dataclasses import asdict, replace

import numpy as np
import pygame
import pytest
import torch

from worldmodels.analysis import live
from worldmodels.analysis.recording import termination_probability
from worldmodels.cli import main
from worldmodels.dream.env import DreamEnv
from worldmodels.dream.native import Dream
from worldmodels.dream.world_model import load_world_model
from worldmodels.models.agent import Agent, Recorder, load_controller
from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import save_model, save_tensors
from worldmodels.pipeline import tasks
from worldmodels.pipeline.run import Run
from worldmodels.rollout.environments import record
from worldmodels.rollout.players import episode_seed
from worldmodels.support import display

ARROWS = {"left": (-1.0,), "right": (1.0,)}


@pytest.fixture(autouse=True)
def no_screen(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    yield
    pygame.display.quit()


def press(*keys, release=True):
    for key in keys:
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key))
        if release:
            pygame.event.post(pygame.event.Event(pygame.KEYUP, key=key))


class Corridor:
    """Game whose episodes have five steps; the agent's action is 0.5."""

    def __init__(self, action_size=1, temperature=None):
        self.action_size, self.temperature = action_size, temperature
        self.actions, self.temperatures, self.episode, self.closed = [], [], 0, False

    def restart(self):
        self.episode, self.steps = self.episode + 1, 0
        return np.full((64, 64, 3), 10 * self.episode, np.uint8)

    def step(self, action):
        self.steps += 1
        self.actions.append(0.5 if action is None else action.tolist())
        self.temperatures.append(self.temperature)
        return live.Outcome(np.full((64, 64, 3), self.steps, np.uint8), 1.0, self.steps == 5, 0.25)

    def close(self):
        self.closed = True


def test_arrows_play_while_they_are_held():
    player = live.Player(game := Corridor(), ARROWS, "a title")
    assert pygame.display.get_caption()[0] == "a title"
    player.frame()
    press(pygame.K_LEFT, release=False)
    player.frame()
    player.frame()
    press(pygame.K_RIGHT, release=False)  # both: neither
    player.frame()
    pygame.event.post(pygame.event.Event(pygame.KEYUP, key=pygame.K_LEFT))
    player.frame()
    assert game.actions == [[0], [-1], [-1], [0], [1]]


def test_a_key_that_is_released_before_the_step_counts_for_one_step():
    player = live.Player(game := Corridor(), ARROWS, "")
    press(pygame.K_RIGHT)
    player.frame()
    player.frame()
    assert game.actions == [[1], [0]]


def test_the_keys_of_three_actions():
    player = live.Player(game := Corridor(3), tasks.get("carracing").keys, "")
    press(pygame.K_LEFT, pygame.K_UP)
    player.frame()
    press(pygame.K_RIGHT, pygame.K_DOWN)
    player.frame()
    np.testing.assert_allclose(game.actions, [[-1, 1, 0], [1, 0, 0.8]])


@pytest.mark.parametrize("keys", [{"a": (1.0,)}, {"left": (1.0, 0.0)}])
def test_keys_of_a_task_are_checked(keys):
    with pytest.raises(ValueError, match=r"^keys: expected left, right, up, down, each with at most 1 numbers, got '"):
        replace(tasks.get("takecover"), keys=keys)


def test_m_toggles_the_agent():
    player = live.Player(game := Corridor(), ARROWS, "")
    player.frame()
    press(pygame.K_m)
    player.frame()
    assert player.captions()[0] == "step 2   return 2   the agent plays"
    press(pygame.K_m, pygame.K_LEFT)
    player.frame()
    assert player.captions()[0] == "step 3   return 3   you play"
    assert game.actions == [[0], 0.5, [-1]]
    assert player.episodes[0].players == {"you", "the agent"}


def test_space_pauses_and_a_point_is_one_step():
    player = live.Player(game := Corridor(), ARROWS, "")
    press(pygame.K_SPACE)
    player.frame()
    player.frame()
    assert game.steps == 0 and player.captions()[0].endswith("you play, paused")
    press(pygame.K_PERIOD)
    player.frame()
    player.frame()
    assert game.steps == 1
    press(pygame.K_SPACE)
    player.frame()
    player.frame()
    assert game.steps == 3
    press(pygame.K_PERIOD)  # pauses a game that runs
    player.frame()
    player.frame()
    assert game.steps == 4


def test_an_episode_that_is_over_waits_for_r():
    player = live.Player(game := Corridor(), ARROWS, "")
    for _ in range(8):
        player.frame()
    assert game.steps == 5 and player.captions()[0] == "step 5   return 5   over, r restarts"
    press(pygame.K_r)
    player.frame()
    assert (game.episode, game.steps) == (2, 1)
    assert [(episode.score, episode.over) for episode in player.episodes] == [(5, True), (1, False)]
    assert player.captions()[:2] == ["step 1   return 1   you play", "termination probability 0.25"]


@pytest.mark.parametrize(("start", "wanted"), [(1.15, [1.25, 1.05]), (0.05, [0.15, 0.0])])
def test_the_temperature_changes(start, wanted):
    player = live.Player(game := Corridor(temperature=start), ARROWS, "")
    press(pygame.K_PLUS)
    player.frame()
    assert player.captions()[1].startswith(f"temperature {wanted[0]:g} ")
    press(pygame.K_MINUS, pygame.K_KP_MINUS)
    player.frame()
    assert game.temperatures == wanted
    assert player.episodes[0].temperatures == set(wanted)


def test_the_real_environment_has_no_temperature():
    player = live.Player(game := Corridor(), ARROWS, "")
    press(pygame.K_PLUS, pygame.K_MINUS)
    player.frame()
    assert game.temperature is None


def test_the_window_shows_the_frame_and_the_captions():
    player = live.Player(Corridor(), ARROWS, "")
    screen = pygame.display.get_surface()
    assert screen.get_size() == (512, 594)
    assert screen.get_at((0, 0))[:3] == screen.get_at((511, 511))[:3] == (10, 10, 10)
    before = pygame.surfarray.array3d(screen)[:, 512:]
    player.frame()
    assert screen.get_at((300, 300))[:3] == (1, 1, 1)
    after = pygame.surfarray.array3d(screen)[:, 512:]
    assert len(np.unique(after)) > 2 and (before != after).any()


@pytest.mark.parametrize(
    "end", [pygame.event.Event(pygame.QUIT), pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE)]
)
def test_scores_are_told_at_the_end(monkeypatch, end):
    """Each picture takes no time; the events come before the steps 1, 6, 11 and 13."""
    game, waits = Corridor(temperature=1.0), []
    script = {1: [], 5: [pygame.K_r, pygame.K_m], 10: [pygame.K_r, pygame.K_MINUS], 12: end}

    def wait(self, frames_per_second):
        waits.append(frames_per_second)
        match script.get(len(waits)):
            case None:
                pass
            case list(keys):
                press(*keys)
            case event:
                pygame.event.post(event)

    monkeypatch.setattr(display.Window, "wait", wait)
    lines = live.play(game, ARROWS, "a game", 35)
    assert lines == [
        "a game at temperature 1, you: 5 (1 episode)",
        "a game at temperature 1, the agent: 5 (1 episode)",
        "a game at temperature 0.9, the agent: 2 after 2 steps, unfinished",
    ]
    assert set(waits) == {35} and game.closed and pygame.display.get_surface() is None


def test_scores_of_an_episode_with_two_players_and_temperatures():
    episodes = [live.Episode(7.0, 7, True, {"the agent", "you"}, {0.5, 1.15, 1.0}), live.Episode()]
    assert live.report_episodes("x", episodes) == [
        "x at temperatures from 0.5 to 1.15, you and the agent: 7 (1 episode)"
    ]


def dream(temperature=1.15, seed=3):
    folder, _ = Run.agent("takecover")
    return live.DreamGame(folder, temperature=temperature, seed=seed, max_steps=40, termination="sample")


def actions(game, count, keys):
    """Play steps with the given keys pressed; returns the frames."""
    player = live.Player(game, ARROWS, "")
    press(*keys, release=False)
    frames = []
    for _ in range(count):
        player.frame()
        frames.append(player._frame)
    pygame.event.clear()
    return np.stack(frames), player


def test_keys_and_temperature_change_a_dream():
    still, _ = actions(dream(), 10, [])
    again, _ = actions(dream(), 10, [])
    left, _ = actions(dream(), 10, [pygame.K_LEFT])
    hotter, player = actions(dream(), 10, [pygame.K_PLUS])
    np.testing.assert_array_equal(still, again)
    assert (still != left).any() and (still != hotter).any()
    other, _ = actions(dream(1.25), 10, [])
    np.testing.assert_array_equal(hotter, other)  # + was pressed before the first step
    assert player.episodes[0].temperatures == {1.25}


def test_a_dream_by_keys_is_that_of_the_environment():
    frames, _ = actions(dream(), 10, [pygame.K_LEFT])
    env = DreamEnv(world="takecover", temperature=1.15, render_mode="rgb_array")
    env.reset(seed=3)
    for frame in frames:
        env.step(np.array([-1.0], np.float32))
        np.testing.assert_array_equal(frame, env.render())


def test_the_agent_dreams_as_in_a_rollout():
    """Episodes 0 and 1; the controller in NumPy may round differently, so that only the first steps are alike."""
    folder, _ = Run.agent("takecover")
    controller, params, _ = load_controller(folder / "evolve" / "controller.safetensors")
    world = load_world_model("takecover")
    simulator = Dream(*world, controller, temperature=1.15, max_steps=40, termination="sample")
    player = live.Player(game := dream(), ARROWS, "")
    press(pygame.K_m)
    for episode in (0, 1):
        trace = simulator.trace(params, seed=3, episode=episode)
        wanted = termination_probability(world.mdnrnn, trace.z[:-1], trace.action)
        for step in range(6):
            np.testing.assert_allclose(game._observation[:64], trace.z[step], atol=1e-3)
            player.frame()
            assert player._termination == pytest.approx(wanted[step], abs=1e-3)
        press(pygame.K_r)
        player._paused = True  # the restart without a step
        player.frame()
        player._paused = False


def real(seed=1, rules=None, **environment):
    folder, config = Run.agent("takecover")
    environment = replace(config.environment, **environment)
    rules = rules or tasks.get("takecover").rules
    return live.RealGame(folder, environment, seed=seed, rules=rules), folder, config


def test_the_agent_plays_the_game_of_the_command_play():
    """The episode of seed 1 has 142 steps."""
    game, folder, config = real()
    recorder = Recorder(Agent.load(folder))
    rules = tasks.get("takecover").rules
    record(config.environment, recorder, seed=1, episode_seed=episode_seed(1, "play", 0), rules=rules)
    latents, taken = np.stack(recorder.latents), np.stack(recorder.actions)
    wanted = termination_probability(recorder.agent.mdnrnn, latents, taken)
    frame = game.restart()
    for step, expected in enumerate(recorder.frames):
        np.testing.assert_array_equal(frame, expected)
        frame, reward, over, probability = game.step(None)
        assert (reward, over) == (1, step == len(taken) - 1)
        assert probability == pytest.approx(wanted[step], abs=1e-4)
    game.close()


def test_keys_move_the_player_of_the_game():
    frames = []
    for keys in ([], [pygame.K_LEFT], [pygame.K_RIGHT]):
        game, *_ = real()
        pictures, player = actions(game, 12, keys)
        assert player.episodes[0].score == 12
        frames.append(pictures[-1])
        game.close()
    assert all((a != b).any() for a, b in [(frames[0], frames[1]), (frames[1], frames[2]), (frames[0], frames[2])])


def test_the_car_is_driven_by_keys(tmp_path):
    """An agent with random weights, and an M without a termination head."""
    torch.manual_seed(0)
    controller = Controller(4, 8, 3, features="zh", bias=True, squash="carracing")
    save_model(tmp_path / "vae" / "vae.safetensors", ConvVAE(4))
    save_model(tmp_path / "rnn" / "rnn.safetensors", MDNRNN(4, 3, 8))
    where, config = tmp_path / "evolve" / "controller.safetensors", {"config": asdict(controller)}
    save_tensors(where, {"params": torch.randn(controller.size)}, config)
    task = tasks.get("carracing")
    places = []
    for keys in ([], [pygame.K_UP], [pygame.K_UP, pygame.K_LEFT]):
        game = live.RealGame(tmp_path, task.presets["quick"].environment, seed=0, rules=task.rules)
        player = live.Player(game, task.keys, "")
        press(*keys, release=False)
        for _ in range(40):
            player.frame()
        places.append(game._env.unwrapped._position())
        assert player.captions()[1] == ""
        press(pygame.K_m)
        player.frame()
        assert player.episodes[0].players == {"you", "the agent"}
        game.close()
    still, ahead, left = places
    assert np.linalg.norm(ahead - still) > 5 and np.linalg.norm(left - ahead) > 1


@pytest.mark.parametrize(("rules", "environment"), [(3, 0), (3, 4), (4, 3)])
def test_the_game_ends_at_the_limit_of_the_task_or_of_the_environment(rules, environment):
    game, *_ = real(rules=replace(tasks.get("takecover").rules, max_steps=rules), max_steps=environment)
    game.restart()
    assert [game.step(None).over for _ in range(3)] == [False, False, True]
    game.close()


@pytest.mark.parametrize("command", ["dream", "play"])
def test_command(monkeypatch, capsys, command):
    def wait(self, frames_per_second):
        assert frames_per_second == 35
        press(pygame.K_m)
        if next(counter) == 2:
            press(pygame.K_ESCAPE)

    counter = iter(range(10))
    monkeypatch.setattr(display.Window, "wait", wait)
    assert main([command, "takecover", "--window"]) == 0
    name = {"dream": "in its dream at temperature 1.15", "play": "worldmodels/TakeCover-v0 (paper, 160x120)"}[command]
    assert capsys.readouterr().out == f"takecover, {name}, you and the agent: 3 after 3 steps, unfinished\n"
