import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


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
