import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from bundles import small_world
from gymnasium.vector import AutoresetMode
from PIL import Image

from worldmodels.dream.env import DreamVectorEnv

EXAMPLES = Path(__file__).parents[2] / "examples"
SPEED = r"speed: +(\d+) steps/s, ([\d.]+) % of the native rollout's (\d+)"


@pytest.fixture
def example(monkeypatch):
    def load(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return load


@pytest.mark.filterwarnings("ignore")  # stable-baselines3's own
def test_ppo_in_the_dream(example, capsys):
    example("ppo_in_the_dream.py", "--steps", "2048", "--envs", "8", "--episodes", "1")
    out = capsys.readouterr().out
    assert "before: " in out and "after:  " in out and "steps survived over 1 episodes" in out
    assert "ep_rew_mean" in out
    check_speed(out.splitlines()[-2])


@pytest.mark.filterwarnings("ignore")  # stable-baselines3's own
def test_ppo_in_the_dream_refuses_other_tasks_before_it_trains(example, capsys):
    with pytest.raises(SystemExit):
        example("ppo_in_the_dream.py", "--world", "carracing")
    assert "--world: expected a world model of takecover" in capsys.readouterr().err


def check_speed(line):
    speed, share, native = map(float, re.fullmatch(SPEED, line).groups())
    assert 0 < speed < native and share == pytest.approx(100 * speed / native, abs=0.1)


def test_cleanrl_ppo_in_the_dream(example, capsys):
    example("cleanrl_ppo_in_the_dream.py", "--steps", "2048", "--envs", "8")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["update 1", "update 2", "after", "speed"]
    assert "2048 steps, return " in lines[1] and "steps survived in the dream" in lines[2]
    check_speed(lines[-1])


@pytest.mark.filterwarnings("ignore")  # torchrl's own
def test_torchrl_ppo_in_the_dream(example, capsys):
    example("torchrl_ppo_in_the_dream.py", "--steps", "2048", "--envs", "8")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["update 1", "update 2", "after", "speed"]
    assert "2048 steps, reward 1.00, " in lines[1]
    check_speed(lines[-1])


@pytest.mark.filterwarnings("ignore")  # torchrl's own
def test_torchrl_takes_the_dreams_for_an_environment():
    from torchrl.envs.utils import check_env_specs

    names = runpy.run_path(str(EXAMPLES / "torchrl_ppo_in_the_dream.py"))
    dreams = DreamVectorEnv(*small_world(), num_envs=3, max_steps=4, autoreset_mode=AutoresetMode.DISABLED)
    env = names["DreamTorchRLEnv"](dreams)
    check_env_specs(env)
    steps = env.rollout(9, break_when_any_done=False)
    assert (
        steps["next", "done"].any(dim=1).all()
        and (steps["next", "done"] == steps["next", "truncated"] | steps["next", "terminated"]).all()
    )


def test_evolve_in_the_dream(example, capsys):
    example("evolve_in_the_dream.py", "--generations", "3", "--popsize", "8", "--episodes", "4")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [f"generation {i}" for i in range(3)]
    assert lines[3].startswith("zero parameters survive ") and "the evolved mean " in lines[3]


def test_cmaes_on_a_function(example, capsys):
    example("cmaes_on_a_function.py", "--dimensions", "5")
    out = capsys.readouterr().out
    assert "stopped by {'ftarget': 1e-10}" in out
    assert out.splitlines()[-1].endswith(" at [1. 1. 1. 1. 1.]")


def test_look_inside(example, capsys, tmp_path):
    path = tmp_path / "inside.png"
    example("look_inside.py", "--steps", "30", "--latents", "2", "--step", "3", "--out", str(path))
    with Image.open(path) as picture:
        assert picture.width > 1000 and len(np.unique(np.asarray(picture.convert("L")))) > 50
    assert "largest effect on the frame: z" in capsys.readouterr().out


def test_film(example, capsys, tmp_path):
    path = tmp_path / "film.gif"
    example(
        "film.py", str(path), "takecover:dream", "takecover:dream:5", "--seconds", "1", "--scale", "2", "--first", "9"
    )
    assert capsys.readouterr().out == f"{path}: {path.stat().st_size / 1e6:.1f} MB\n"
    with Image.open(path) as image:
        assert image.size[0] == 2 * 128 + 2 and image.n_frames == 18


def test_the_films_of_the_first_page_are_small_and_short():
    for name in ("takecover", "cold_dream"):
        path = EXAMPLES.parent / "docs" / "images" / f"{name}.gif"
        assert path.stat().st_size < 3_000_000
        with Image.open(path) as image:
            delays = []
            for number in range(image.n_frames):
                image.seek(number)
                delays.append(image.info["duration"])
            assert sum(delays) == 10_000 and image.size[0] >= 640


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Jupyter's own
def test_the_notebook_runs_in_jupyter(tmp_path, monkeypatch):
    """As Jupyter runs it, but for the cell that installs the package."""
    jupytext, nbclient = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    notebook = jupytext.read(EXAMPLES / "notebook.py")
    installs = [cell for cell in notebook.cells if "install" in cell.metadata.get("tags", [])]
    assert len(installs) == 1 and '\n%pip install "worldmodels-rl[takecover]"' in installs[0].source
    notebook.cells = [cell for cell in notebook.cells if cell not in installs]
    for name, value in {"QUICK": "1", "OMP_NUM_THREADS": "1", "JUPYTER_PLATFORM_DIRS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    nbclient.NotebookClient(
        notebook, timeout=280, startup_timeout=280, resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "the pretrained agent survives " in text and "generation 1: best " in text and "evolved: " in text
    kinds = {kind for output in outputs if "data" in output for kind in output.data}
    assert {"image/gif", "image/png"} <= kinds
    assert (tmp_path / "dream.gif").stat().st_size > 1_000
