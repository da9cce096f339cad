"""Environments of other packages: what `gymnasium.make` returns is played, and what breaks the contract is refused."""

from __future__ import annotations

import re
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

import odd_env
from conftest import make_mdnrnn, make_vae
from worldmodels import Controller
from worldmodels.cli import main
from worldmodels.data.episodes import EpisodeStore
from worldmodels.data.records import EpisodeTrace
from worldmodels.envs import ContractError, vector
from worldmodels.envs import envpool as pool
from worldmodels.envs.actions import ActionMap
from worldmodels.envs.any_gymnasium import AdaptedEnv
from worldmodels.envs.making import make
from worldmodels.envs.policies import constant
from worldmodels.envs.process_vector import ProcessVectorEnv
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.thread_vector import ThreadVectorEnv
from worldmodels.envs.vector import make_vector_env
from worldmodels.pipeline import tasks
from worldmodels.pipeline.run import Run
from worldmodels.rollout.environments import Environments, play_policy, record
from worldmodels.rollout.evaluators.environment import EnvironmentEvaluator
from worldmodels.rollout.players import OpenLoopPlayer
from worldmodels.support.settings import check

TANH = Rules("tanh", 20)
LEFT = constant(-1.0)


class Left:
    """A player that always acts -1."""

    def reset(self, batch, *, seed=0):
        pass

    def act(self, frames, restart=None, episodes=None, *, env_ids=None):
        return np.full((len(frames), 1), -1, np.float32)


def odd(kind):
    return EnvSpec(id=f"odd_env:Odd/{kind}-v0", variant="", resolution="")


def adapt(squash="tanh", **odd):
    return AdaptedEnv(odd_env.Odd(**odd), "odd", squash)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose entry points name a task for every odd environment."""
    root = tmp_path / "package"
    info = root / "odd-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 0.1\n")
    entries = ["[worldmodels.pipeline.tasks]"]
    for kind in odd_env.KINDS:
        name = f"odd_{kind.lower()}"
        (root / f"task_{name}.py").write_text(f"from odd_env import task\nTASK = task({kind!r})\n")
        entries.append(f"{name} = task_{name}")
    (info / "entry_points.txt").write_text("\n".join(entries) + "\n")
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def collect(kind, *flags):
    return main(["collect", "--task", f"odd_{kind.lower()}", "--preset", "quick", "--out", "run", *flags])


def episodes(folder):
    store = EpisodeStore(folder / "run" / "episodes")
    found = list(store.episodes())
    store.close()
    return found


# ---- what is played


@pytest.mark.parametrize(
    ("kind", "steps", "first"), [("Limited", 7, 0), ("Black", 7, 0), ("Dim", 7, 100), ("Maker", 4, 0), ("AtOnce", 1, 0)]
)
@pytest.mark.parametrize("kinds", ["thread", "threads", "processes"])
def test_every_batch_plays_what_gymnasium_makes(kind, steps, first, kinds):
    made = {
        "thread": lambda: ThreadVectorEnv(odd(kind), 2, 1, {}),
        "threads": lambda: ThreadVectorEnv(odd(kind), 2, 2, {}),
        "processes": lambda: ProcessVectorEnv(odd(kind), 2, 2, {}),
    }[kinds]()
    frames = made.reset([0, 1], [1, 2])
    assert (frames == first).all()
    for step in range(1, steps + 1):
        frames, _, terminated, truncated = made.step([0, 1], np.zeros((2, 1), np.float32))
        assert (terminated | truncated == (step == steps)).all()
        assert (frames == (0 if kind == "Black" else step + first)).all()
    made.close()


def test_every_caller_plays_the_time_limit():
    assert play_policy(odd("Limited"), LEFT, 2, seed=0, purpose="test", num_envs=2) == [-7.0, -7.0]
    assert record(odd("Limited"), Left(), seed=0, episode_seed=1) == EpisodeTrace(rewards=[-1.0] * 7)
    evaluator = make_evaluator("Limited", rules=None)
    assert evaluator(0)[1].tolist() == [[7]]


def make_evaluator(kind, rules, max_steps=100):
    controller = Controller(4, 8, 1)
    evaluator = EnvironmentEvaluator(
        make_vae(), make_mdnrnn(), controller, odd(kind), num_envs=1, num_workers=1, max_steps=max_steps,
        precision="float32", rules=rules,
    )  # fmt: skip

    def play(value):
        params = np.full((1, controller.size), value)
        played = evaluator.play(params, 1, seed=0, common_random_numbers=True, on_progress=lambda *_: None)
        evaluator.close()
        return played.returns, played.lengths

    return play


@pytest.mark.parametrize("name", ["TakeCover", "Pendulum", "CarRacing"])
def test_spaces_of_our_own_environments_fit_their_tasks(name):
    task = tasks.get(name.lower())
    env = make(replace(task.presets["paper"].environment, backend="gymnasium"), rules=task.rules)
    assert env.actions.scaling == "" and env.action_space == env.env.action_space
    env.close()


def test_an_environment_without_an_end_is_truncated():
    assert play_policy(odd("Endless"), LEFT, 2, seed=0, purpose="test", num_envs=1, rules=TANH) == [-20.0, -20.0]
    assert len(record(odd("Endless"), Left(), seed=0, episode_seed=1, rules=TANH).rewards) == 20
    for max_steps, length in ((100, 20), (20, 20), (6, 6)):
        assert make_evaluator("Endless", TANH, max_steps)(0)[1].tolist() == [[length]]
    scores = {}
    with Environments(odd("Endless"), 1, 5, rules=TANH) as environments:
        environments.play(OpenLoopPlayer(LEFT, "x"), [0], seed=0, purpose="x", finished=scores.__setitem__)
    assert scores == {0: -5.0}


@pytest.mark.parametrize(
    ("kind", "length", "cut"), [("Endless", 20, 4), ("Limited", 7, 0), ("LimitedAt20", 20, 0), ("AtOnce", 1, 0)]
)
def test_collect_says_how_many_episodes_it_has_cut(package, capsys, kind, length, cut):
    assert collect(kind) == 0
    found = episodes(package)
    assert [len(episode.frames) for episode in found] == [length] * 4
    assert not any(episode.terminated for episode in found)
    assert [episode.cut for episode in found] == [cut > 0] * 4
    said = "collect: 4 of 4 episodes were truncated at Task.max_steps = 20\n"
    assert capsys.readouterr().err.count(said) == (cut > 0)
    with Run(package / "run") as experiment:
        assert experiment.summary("collect").get("cut", 0) == cut
    (package / "run" / "stages" / "collect.json").unlink()  # all shards are there: it is still known
    assert collect(kind) == 0
    assert capsys.readouterr().err.count(said) == (cut > 0)


def test_episodes_longer_than_the_longest_are_refused(package, capsys):
    assert collect("Endless", "--min-length", "21") == 1
    assert (
        "collect.min_length: expected at most Task.max_steps = 20, the longest episode of odd_endless, got 21"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("max_steps", [0, -1, 1.5, None, True])
def test_the_longest_episode_is_a_number(max_steps):
    with pytest.raises((ValueError, TypeError), match=r"^max_steps: expected an integer"):
        replace(odd_env.task("Endless"), max_steps=max_steps)


def test_an_action_repeat_beyond_float64_is_refused():
    with pytest.raises(ValueError, match=r"^environment\.action_repeat: expected a finite number, got an integer"):
        check(EnvSpec, "action_repeat", 10**400, "environment.action_repeat")


def test_entry_points_of_every_kind():
    for kind in ("Endless", "Black", "Maker"):
        assert not vector._threads(f"odd_env:Odd/{kind}-v0")
    assert vector._threads("worldmodels/TakeCover-v0")
    with pytest.raises(
        ValueError, match=r"^environment\.id: expected an environment with an entry point, got 'odd_env"
    ):
        make_vector_env(odd("VectorOnly"), 2, num_workers=2)


# ---- actions


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_actions_are_scaled_to_the_bounds(dtype):
    low, high = np.array([-5, 0, -1, 2, 3]), np.array([5, 10, 1, 2, 4])
    actions = ActionMap("odd", Box(low.astype(dtype), high.astype(dtype), dtype=dtype), "tanh")
    assert actions.space == Box(-1.0, 1.0, (5,), np.float32)
    assert actions(np.ones(5)).dtype == dtype
    for value, share in ((-1, 0), (-3, 0), (0, 0.5), (0.5, 0.75), (1, 1), (1e9, 1)):
        np.testing.assert_array_equal(actions(np.full(5, value)), (low + share * (high - low)).astype(dtype))
    tiny = np.float32(1e-30)
    assert actions(np.full(5, tiny))[2] == np.full(5, tiny).astype(dtype)[2]  # where bounds are [-1, 1], as it is
    assert actions.scaling == (
        "actions in [-1, 1] are scaled to the environment's Box([-5., 0., -1., 2., 3.], [ 5., 10., 1., 2., 4.])"
    )


def test_bounds_may_be_as_large_as_floats_are():
    most = np.finfo(np.float64).max
    actions = ActionMap("odd", Box(np.array([-most]), np.array([most]), dtype=np.float64), "tanh")
    assert [float(actions([value])[0]) for value in (-1, 0, 1)] == [-most, 0, most]


def test_actions_of_bounds_of_one_are_not_touched():
    values = np.random.default_rng(0).uniform(-1, 1, (1000, 1)).astype(np.float32)
    env = adapt()
    env.reset(seed=0)
    for value in values:
        env.step(value)
    np.testing.assert_array_equal(np.stack(env.unwrapped.given), values)
    assert env.unwrapped.given[0].dtype == np.float32 and env.actions.scaling == ""


def test_cars_steer_as_they_are():
    low, high = np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32)
    actions = ActionMap("odd", Box(low, high), "carracing")
    np.testing.assert_array_equal(actions([0.5, 0.25, -1]), np.array([0.5, 0.25, 0], np.float32))
    assert actions.scaling == ""


@pytest.mark.parametrize(
    ("squash", "space"),
    [
        ("tanh", Box(-np.inf, np.inf, (1,))),
        ("tanh", Box(np.array([-1, -np.inf], np.float32), np.array([1, 1], np.float32))),
        ("tanh", Box(0, 5, (1,), np.int64)),
        ("tanh", Box(0, 255, (1,), np.uint8)),
        ("tanh", Box(-1, 1, (2, 2))),
        ("tanh", Box(-1, 1, ())),
        ("tanh", Discrete(3)),
        ("tanh", MultiDiscrete([2, 2])),
        ("tanh", Dict({"a": Box(-1, 1, (1,))})),
        ("carracing", Box(-1, 1, (3,))),
        ("carracing", Box(-1, 1, (1,))),
        (None, Discrete(3)),
    ],
)
def test_other_action_spaces_are_refused_at_once(squash, space):
    with pytest.raises(ContractError, match=rf"^odd: expected .*, got {re.escape(type(space).__name__)}") as caught:
        adapt(squash, space=space)
    assert "\n" not in str(caught.value)


def test_nan_bounds_are_refused():
    space = Box(-1.0, 1.0, (1,))
    space.low = np.array([np.nan], np.float32)
    with pytest.raises(ContractError, match="finite bounds"):
        adapt(space=space)


@pytest.mark.parametrize("action", [[0.0, 0.0], 0.0, [np.nan], [np.inf], [[0.0]], ["a"]])
def test_bad_actions_are_refused(action):
    env = adapt()
    env.reset(seed=1)
    with pytest.raises(ContractError, match=r"^odd: expected "):
        env.step(np.asarray(action))


def test_an_action_is_not_repeated_to_fill_its_row():
    """Of length one, in memory for actions of two."""
    for made in (ProcessVectorEnv(odd("Two"), 2, 2, {}), ThreadVectorEnv(odd("Two"), 2, 1, {})):
        made.reset([0, 1], [1, 2])
        with pytest.raises(ContractError, match="expected actions of 2 finite numbers"):
            made.step([0, 1], np.zeros((2, 1), np.float32))
        made.close()


@pytest.mark.parametrize(("kind", "low", "high"), [("Wide", -5, 5), ("Skewed", -1, 3)])
def test_what_is_stored_is_the_action_of_the_policy(package, capsys, kind, low, high):
    """And the environment gets the scaled one: it pays what it was given."""
    assert collect(kind, "--policies", "uniform, beyond") == 0
    said = f"collect: actions in [-1, 1] are scaled to the environment's Box([{low}.], [{high}.])\n"
    assert capsys.readouterr().err.count(said) == 1
    found = episodes(package)
    assert {episode.policy for episode in found} == {"uniform", "beyond"}
    for episode in found:
        actions = episode.actions[:, 0]
        assert (actions == 1).all() if episode.policy == "beyond" else (np.abs(actions) <= 1).all()
        np.testing.assert_allclose(episode.rewards, low + (actions + 1) / 2 * (high - low), rtol=1e-5, atol=1e-5)


def test_evaluation_scales_too():
    assert play_policy(odd("Wide"), LEFT, 1, seed=0, purpose="x", num_envs=1, rules=TANH) == [-50.0]
    assert play_policy(odd("Wide"), LEFT, 1, seed=0, purpose="x", num_envs=1) == [-10.0]  # actions of the environment
    assert record(odd("Wide"), Left(), seed=0, episode_seed=1, rules=TANH).rewards == [-5.0] * 10
    batch = ProcessVectorEnv(odd("Wide"), 2, 2, {"rules": TANH})
    batch.reset([0, 1], [1, 2])
    assert batch.step([0, 1], np.array([[1], [-0.5]], np.float32))[1].tolist() == [5.0, -2.5]
    assert batch.scaling.endswith("Box([-5.], [5.])")
    batch.close()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("Whole", "odd_env:Odd/Whole-v0: expected an action space of floats, got Box(0, 5, (1,), int64)"),
        ("Boundless", "odd_env:Odd/Boundless-v0: expected an action space with finite bounds, got Box(-inf, inf, (1,)"),
        ("Two", "policies['uniform']: expected actions of shape (2,) and finite numbers, as odd_env:Odd/Two-v0 takes"),
        ("Nan", "odd_env:Odd/Nan-v0: expected a finite reward, got nan at step 3 of the episode with seed "),
        (
            "OldApi",
            "odd_env:Odd/OldApi-v0: expected (observation, reward, terminated, truncated, info) from step, got 4",
        ),
    ],
)
def test_collect_refuses_in_one_line_and_leaves_nothing(package, capsys, kind, said):
    assert collect(kind, "--num-workers", "2") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"worldmodels: {said}")
    assert list((package / "run" / "episodes").iterdir()) == []


def test_finished_shards_are_kept_where_a_later_one_is_refused(package, monkeypatch, capsys):
    assert collect("Limited", "--episodes", "2") == 0
    kept = (package / "run" / "episodes" / "00000.h5").read_bytes()
    (package / "run" / "stages" / "collect.json").unlink()
    config = replace(odd_env.task("Limited").presets["quick"], environment=odd("Nan"))
    config = replace(config, collect=replace(config.collect, episodes=6, num_workers=2))
    with Run(package / "run", config) as experiment:
        with pytest.raises(ContractError, match="expected a finite reward"):
            experiment.run_stage("collect")
    assert [path.name for path in (package / "run" / "episodes").iterdir()] == ["00000.h5"]
    assert (package / "run" / "episodes" / "00000.h5").read_bytes() == kept


# ---- answers


FRAME = np.zeros((64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"reward": np.nan}, "a finite reward, got nan"),
        ({"reward": np.inf}, "a finite reward, got inf"),
        ({"reward": -np.inf}, "a finite reward, got -inf"),
        ({"reward": 1e39}, r"a finite reward, got 1e\+39"),  # in float32, that of the store, it is none
        ({"reward": None}, "a finite reward, got None"),
        ({"reward": np.ones(1)}, r"a finite reward, got \(1,\) float64"),
        ({"reward": "1"}, "a finite reward, got '1'"),
        ({"reward": 1j}, "a finite reward, got 1j"),
        ({"terminated": None}, "a boolean for terminated, got None"),
        ({"terminated": np.zeros(2, bool)}, r"a boolean for terminated, got \(2,\) bool"),
        ({"truncated": 0}, "a boolean for truncated, got 0"),
        ({"truncated": "no"}, "a boolean for truncated, got 'no'"),
        ({"info": None}, "a dictionary as the info of a step, got None"),
        ({"frame_": None}, r"an observation of shape \(64, 64, 3\) and dtype uint8, got None"),
        ({"frame_": np.zeros((32, 64, 3), np.uint8)}, r"an observation .*, got \(32, 64, 3\) uint8"),
        ({"frame_": np.full((64, 64, 3), np.nan)}, r"an observation .*, got \(64, 64, 3\) float64"),
        ({"frame_": np.zeros((64, 64, 3), np.int8)}, r"an observation .*, got \(64, 64, 3\) int8"),
        ({"frame_": FRAME.tolist()}, r"an observation .*, got \[\[\["),
        (
            {"step_": (FRAME, 0.0, False, {})},
            r"\(observation, .*, info\) from step, got 4 values: ndarray, float, bool",
        ),
        ({"step_": None}, r"\(observation, .*, info\) from step, got None"),
        ({"step_": (FRAME, 0.0, False, False, {}, 1)}, r"\(observation, .*, info\) from step, got 6 values"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_bad_steps_are_refused(answer, said, wrapped):
    env = odd_env.Odd(at=2, **answer)
    if wrapped and "step_" in answer:  # the time limit takes the answer apart
        env, said = gymnasium.wrappers.TimeLimit(env, 100), r"\(observation, .*, info\) from step: "
    env = AdaptedEnv(env, "odd", "tanh")
    env.reset(seed=77)
    env.step(np.zeros(1))
    with pytest.raises(
        ContractError, match=rf"^odd: expected (?:{said}).* at step 2 of the episode with seed 77$"
    ) as no:
        env.step(np.zeros(1))
    assert "\n" not in str(no.value) and len(str(no.value)) < 400


@pytest.mark.parametrize(
    "answer",
    [
        {"reset_": FRAME},
        {"reset_": (FRAME, {}, 1)},
        {"reset_": (FRAME, None)},
        {"reset_": None},
        {"frame_": None},
        {"frame_": np.zeros((64, 64, 3))},
        {"frame_": np.zeros((64, 64), np.uint8)},
    ],
)
def test_bad_resets_are_refused(answer):
    env = adapt(**answer)
    with pytest.raises(ContractError, match=r"^odd: expected .* at the reset of the episode with seed 5$"):
        env.reset(seed=5)
    if answer.get("reset_") is FRAME:
        env = AdaptedEnv(odd_env.Black(odd_env.Odd(**answer)), "odd", "tanh")
        with pytest.raises(ContractError, match=r"^odd: expected \(observation, info\) from reset"):
            env.reset(seed=5)


def test_a_reset_without_a_seed_is_refused():
    class Old(odd_env.Odd):
        def reset(self):
            return np.zeros((64, 64, 3), np.uint8)

    with pytest.raises(ContractError, match=r"^odd: expected a reset that takes seed and options: .*'seed'"):
        AdaptedEnv(Old(), "odd", "tanh").reset(seed=1)


@pytest.mark.parametrize(
    "space",
    [None, Box(0, 255, (32, 64, 4), np.uint8), Box(0, 1, (64, 64, 3)), Box(0, 255, (64,), np.uint8), Discrete(2)],
)
def test_other_observation_spaces_are_refused_at_once(space):
    wanted = r"^odd: expected a Box of shape \(height, .* and dtype uint8 as its observation space, got "
    with pytest.raises(ContractError, match=wanted):
        adapt(observation_space=space)


def test_rewards_and_flags_of_numpy_are_fine():
    env = adapt(reward=np.float32(2), terminated=np.True_, truncated=np.bool_(False))
    env.reset(seed=0)
    _, reward, terminated, truncated, _ = env.step(np.zeros(1))
    assert (reward, terminated, truncated) == (2.0, True, False) and type(terminated) is bool
    assert adapt(reward=np.array(3)).actions.scaling == ""
    for whole in (np.array(3), 3, True):
        env = adapt(reward=whole)
        env.reset()
        assert env.step(np.zeros(1))[1] == float(whole)


@pytest.mark.skipif(not pool.installed(), reason="EnvPool is not installed")
def test_rewards_of_envpool_are_checked():
    cars = EnvSpec(id="worldmodels/CarRacing-v0", variant="", resolution="", backend="envpool")
    made = make_vector_env(cars, 2, num_workers=1, rules=tasks.get("carracing").rules)
    made.prefetch([5, 6])
    made.reset([0, 1], [5, 6])
    actions = np.zeros((2, 3), np.float32)
    made.step([0, 1], actions)
    made.send([1, 0], actions)
    (sent,) = made._sent
    receive = sent[0].games.recv

    class Games:
        @staticmethod
        def recv():
            screens, rewards, *rest = receive()
            order = rest[2]["env_id"]
            return screens, np.where(order == sent[2][1], np.float32(np.nan), rewards), *rest

        close = sent[0].games.close

    games, sent[0].games = sent[0].games, Games
    with pytest.raises(ContractError, match=r"CarRacing-v0: expected a finite reward, got nan at step 2 of .* seed 6$"):
        made.recv()
    sent[0].games = games
    with pytest.raises(ContractError, match="expected actions of 3 finite numbers"):
        made.send([0, 1], np.zeros((2, 1), np.float32))
    made.close()
