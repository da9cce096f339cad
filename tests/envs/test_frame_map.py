"""Frames from images of every kind, discrete actions, action repeat."""

from __future__ import annotations

import itertools
import re

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from image_env import Image
from worldmodels.envs import ContractError
from worldmodels.envs.actions import ActionMap, choices_of
from worldmodels.envs.frames import find_source
from worldmodels.envs.making import make
from worldmodels.envs.policies import repeated_choices
from worldmodels.envs.preprocessing import resize
from worldmodels.envs.process_vector import ProcessVectorEnv
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.thread_vector import ThreadVectorEnv


def spec(kind, **settings):
    return EnvSpec(id=f"image_env:Image/{kind}-v0", variant="", resolution="", **settings)


THREE = Rules("argmax", 100, (3,))
RIGHT = np.array([0, 0, 1], np.float32)

# ---- frames


@pytest.mark.parametrize(("kind", "source"), [("Discrete", "observation"), ("Dict", "screen"), ("Discrete", "render")])
def test_frames_are_cropped_and_resized(kind, source):
    env = make(spec(kind, source=source, crop_top=1, crop_bottom=3, crop_left=2, crop_right=4), rules=THREE)
    frame, _ = env.reset(seed=0)
    picture = env.unwrapped.picture()
    np.testing.assert_array_equal(frame, resize(np.ascontiguousarray(picture[1:45, 2:28])))
    assert env.observation_space == Box(0, 255, (64, 64, 3), np.uint8)
    following, *_ = env.step(RIGHT)
    np.testing.assert_array_equal(following, resize(np.ascontiguousarray(env.unwrapped.picture()[1:45, 2:28])))
    assert (following != frame).any()
    env.close()


@pytest.mark.parametrize(("kind", "choices"), [("Grey", (3,)), ("MultiBinary", (2, 2))])
def test_grey_becomes_rgb(kind, choices):
    env = make(spec(kind), rules=Rules("argmax", 100, choices))
    frame, _ = env.reset(seed=0)
    grey = env.unwrapped.picture()[:, :, :1]
    np.testing.assert_array_equal(frame, resize(np.repeat(grey, 3, axis=2)))
    env.close()


@pytest.mark.parametrize(
    ("kind", "source"), [("Discrete", "observation"), ("Dict", "screen"), ("Rendered", "render"), ("Text", None)]
)
def test_the_source_is_found(kind, source):
    env = gymnasium.make(f"image_env:Image/{kind}-v0", disable_env_checker=True)
    assert find_source(env) == source


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "Discrete",
            {"crop_top": 40, "crop_bottom": 8},
            "environment.crop_top, environment.crop_bottom: expected less",
        ),
        ("Discrete", {"crop_left": 32}, "environment.crop_left, environment.crop_right: expected less than the 32 col"),
        ("Discrete", {"source": "screen"}, "expected a Box of shape (height, width, 3), (height, width, 1) or (height"),
        ("Dict", {}, "and dtype uint8 as its observation space, got Dict("),
        ("Floats", {}, "and dtype uint8 as its observation space, got Box(-1.0, 1.0, (3,), float32)"),
    ],
)
def test_what_is_no_image_is_refused_at_once(kind, settings, message):
    with pytest.raises(ContractError, match=re.escape(message)):
        make(spec(kind, **settings), rules=THREE)


def test_rendered_images_are_checked(monkeypatch):
    env = make(spec("Discrete", source="render", crop_top=50), rules=THREE)
    with pytest.raises(
        ContractError, match=r"^environment.crop_top, .*48 rows .* at the reset of the episode with seed"
    ):
        env.reset(seed=3)
    for image, came in ((None, "None"), (np.zeros((4, 4)), r"\(4, 4\) float64")):
        monkeypatch.setattr(Image, "render", lambda self, image=image: image)
        env = make(spec("Discrete", source="render"), rules=THREE)
        with pytest.raises(ContractError, match=rf"expected a rendered image of shape \(height, .*, got {came} at the"):
            env.reset(seed=3)


# ---- actions


@pytest.mark.parametrize(
    ("space", "choices", "vector", "action"),
    [
        (Discrete(3), (3,), [0, 1, 0], 1),
        (Discrete(3, start=-4), (3,), [0, 0, 1], -2),
        (MultiDiscrete([3, 2]), (3, 2), [0, 0, 1, 0, 1], [2, 1]),
        (MultiDiscrete([2, 2], start=[5, 7]), (2, 2), [1, 0, 0, 1], [5, 8]),
        (MultiBinary(3), (2, 2, 2), [1, 0, 0, 1, 0, 1], [0, 1, 1]),
    ],
)
def test_one_hot_vectors_become_discrete_actions(space, choices, vector, action):
    actions = ActionMap("odd", space, "argmax")
    assert actions.choices == choices_of(space) == choices and actions.scaling == ""
    assert actions.space == Box(0.0, 1.0, (len(vector),), np.float32) and actions.size == len(vector)
    given = actions(np.array(vector, np.float32))
    np.testing.assert_array_equal(given, action)
    assert space.contains(given)
    np.testing.assert_array_equal(actions(np.array([vector] * 4)), [action] * 4)


def test_the_first_of_equal_numbers_is_taken():
    assert ActionMap("odd", Discrete(3), "argmax")(np.zeros(3)) == 0
    assert ActionMap("odd", Discrete(3), "argmax")([0, 1, 1]) == 1


@pytest.mark.parametrize(
    ("space", "choices"),
    [
        (Discrete(1), ()),
        (MultiDiscrete([2, 1]), ()),
        (MultiDiscrete([[2, 2]]), ()),
        (MultiBinary((2, 2)), ()),
        (Box(-1, 1, (2,)), ()),
        (Discrete(3), (2,)),
    ],
)
def test_other_spaces_are_no_discrete_actions(space, choices):
    with pytest.raises(ContractError, match=rf"^odd: expected a Discrete, .*, got {type(space).__name__}"):
        ActionMap("odd", space, "argmax", choices)


def test_discrete_actions_are_no_numbers():
    with pytest.raises(ContractError, match=r"^odd: expected a Box of shape \(A,\)"):
        ActionMap("odd", Discrete(3), "tanh")
    with pytest.raises(ContractError, match="expected actions of 3 finite numbers"):
        ActionMap("odd", Discrete(3), "argmax")([0, 1])


def test_random_choices_are_uniform_and_repeated():
    stream = repeated_choices(2, 4, (3, 2))(np.random.default_rng(0))
    actions = np.stack(list(itertools.islice(stream, 6000)))
    assert set(np.unique(actions)) == {0, 1} and actions.dtype == np.float32
    assert (actions[:, :3].sum(axis=1) == 1).all() and (actions[:, 3:].sum(axis=1) == 1).all()
    np.testing.assert_allclose(actions.mean(axis=0), [1 / 3] * 3 + [1 / 2] * 2, atol=0.04)
    runs = [len(list(group)) for _, group in itertools.groupby(map(tuple, actions.tolist()))]
    assert min(runs[:-1]) >= 2 and {2, 3, 4} <= set(runs)
    with pytest.raises(ValueError, match=r"^low, high: expected 1 <= low <= high, got 3, 2"):
        repeated_choices(3, 2, (2,))


# ---- action repeat


def test_a_repeated_action_adds_the_rewards():
    once, thrice = (make(spec("Discrete", action_repeat=count), rules=THREE) for count in (1, 3))
    once.reset(seed=1)
    thrice.reset(seed=1)
    steps = [once.step(RIGHT) for _ in range(5)]
    frame, reward, terminated, truncated, _ = thrice.step(RIGHT)
    assert reward == pytest.approx(sum(step[1] for step in steps[:3])) and not terminated and not truncated
    np.testing.assert_array_equal(frame, steps[2][0])
    frame, reward, terminated, *_ = thrice.step(RIGHT)
    assert reward == pytest.approx(steps[3][1] + steps[4][1]) and terminated  # the episode ends after five steps
    np.testing.assert_array_equal(frame, steps[4][0])


def test_every_vector_plays_discrete_actions():
    made = [
        ThreadVectorEnv(spec("Dict", source="screen", action_repeat=2), 2, 1, {"rules": THREE}),
        ProcessVectorEnv(spec("Dict", source="screen", action_repeat=2), 2, 2, {"rules": THREE}),
    ]
    outcomes = []
    for envs in made:
        frames = [envs.reset([0, 1], [4, 3])]
        actions = np.array([[0, 0, 1], [1, 0, 0]], np.float32)
        for _ in range(2):
            frame, rewards, *_ = envs.step([0, 1], actions)
            frames.append(frame)
        outcomes.append((np.stack(frames), rewards))
        envs.close()
    np.testing.assert_array_equal(outcomes[0][0], outcomes[1][0])
    np.testing.assert_array_equal(outcomes[0][1], outcomes[1][1])
    assert outcomes[0][1][0] > outcomes[0][1][1]
