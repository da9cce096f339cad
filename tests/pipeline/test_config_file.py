"""Files of settings: `--config FILE.toml` and `--dry-run`."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import toy_config
from worldmodels.cli import main
from worldmodels.pipeline.config import PROBE, SECTIONS, Config, override
from worldmodels.pipeline.config_file import ConfigFile, format_config, read_config_file
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stages import NAMES, get
from worldmodels.pipeline.tasks import preset

FILE = """
task = "takecover"
preset = "small"
seed = 5

[evolve]
generations = 10
sigma0 = 1
common-random-numbers = false

[train-vae]
kl_weight = 0.5
"""


@pytest.fixture
def ran(monkeypatch):
    """Stages that only keep the settings they were run with, by name."""
    ran = {}
    for stage in NAMES:
        monkeypatch.setitem(vars(get(stage)), "run", lambda run, stage=stage: ran.update({stage: run.config}) or {})
    return ran


def write(folder, text):
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_file_is_read_with_both_spellings(tmp_path):
    assert read_config_file(write(tmp_path, FILE)) == ConfigFile(
        {"task": "takecover", "preset": "small", "seed": 5},
        {
            "evolve": {"generations": 10, "sigma0": 1, "common_random_numbers": False},
            "train_vae": {"kl_weight": 0.5},
        },
    )


@pytest.mark.parametrize(
    ("arguments", "out"),
    [(["run"], "runs/takecover-small"), (["evolve", "--out", "x"], "x"), (["iterate", "--out", "x"], "x")],
)
def test_flags_override_the_file(tmp_path, monkeypatch, ran, arguments, out):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("worldmodels.cli.stages.require_earlier", lambda run, name: None)
    monkeypatch.setattr("worldmodels.pipeline.run.require_earlier", lambda run, name: None)
    monkeypatch.setattr("worldmodels.pipeline.rounds.run_earlier_rounds", lambda run: None)
    write(tmp_path, FILE)
    flag = "--generations" if arguments[0] == "evolve" else "--evolve.generations"
    assert main([*arguments, "--config", "mine.toml", flag, "12", "--seed", "6"]) == 0
    config = Run.stored_config(Path(out))
    assert (config.preset, config.seed) == ("small", 6)
    assert (config.evolve.generations, config.evolve.sigma0, config.train_vae.kl_weight) == (12, 1, 0.5)
    expected = override(preset("takecover", "small"), {"evolve": {"generations": 12, "sigma0": 1.0}})
    assert config.evolve == replace(expected.evolve, common_random_numbers=False)
    assert ran["evolve"].evolve == config.evolve


@pytest.mark.parametrize("arguments", [["run", "takecover"], ["run", "--seed", "1", "takecover"]])
def test_the_task_stands_before_or_after_flags(tmp_path, monkeypatch, ran, arguments):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, 'preset = "quick"')
    assert main([*arguments, "--config", "mine.toml"]) == 0
    assert Run.stored_config(Path("runs/takecover-quick")).preset == "quick"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[evolv]\ngenerations = 3", "evolv: no such setting or section; did you mean 'evolve'?"),
        ("[train-rmm]\nsteps = 3", "train-rmm: no such setting or section; did you mean 'train-rnn'?"),
        ("[evolve]\ngeneratons = 3", "evolve.generatons: no such setting; did you mean 'generations'?"),
        ("[train-vae]\nkl-wieght = 3", "train-vae.kl-wieght: no such setting; did you mean 'kl-weight'?"),
        ("[encode]\nxyz = 3", "encode.xyz: no such setting; expected one of batch-size, precision"),
        ("[evolve]\ngenerations = 'many'", "evolve.generations: expected int, got 'many'"),
        ("[evolve]\ngenerations = 1979-05-27", "evolve.generations: expected int, got datetime.date(1979, 5, 27)"),
        ("[evolve]\nsigma0 = inf", "evolve.sigma0: expected a finite number, got inf"),
        ("[evolve]\nsigma0 = nan", "evolve.sigma0: expected more than zero, got nan"),
        ("evolve = 3", "evolve: expected a section, [evolve], got 3"),
        ("preset = 3", "preset: expected a name, got 3"),
        ("seed = 1.0", "seed: expected an integer, got 1.0"),
        (
            "task = 'doom'",
            "task: expected one of carracing, pendulum, takecover, got 'doom'; did you mean 'takecover'?",
        ),
        ("[train-vae]\nkl-weight = 1\nkl_weight = 2", "train-vae.kl_weight: expected one value, got two"),
        ("seed = ", "expected TOML, got: Invalid value"),
        ("\0", "expected TOML, got: "),
    ],
)
def test_what_is_refused_names_the_file(tmp_path, capsys, ran, text, message):
    path = write(tmp_path, text)
    assert main(["run", "takecover", "--config", str(path), "--out", str(tmp_path / "run")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"worldmodels: {path}: {message}")
    assert ran == {} and not (tmp_path / "run").exists()


def test_other_refusals(tmp_path, capsys, monkeypatch, ran):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "seed = 1")
    Path("bytes.toml").write_bytes(b"\xff")
    for arguments, message in {
        "run --config nowhere.toml": "--config: no such file: nowhere.toml",
        "run --config mine.toml": "mine.toml: expected a task, as the command has none",
        "run takecover --config bytes.toml": "bytes.toml: expected TOML, got: 'utf-8' codec can't decode",
    }.items():
        assert main(arguments.split()) == 1
        assert message in capsys.readouterr().err
    for arguments, message in {
        "run": "run: task: expected one of carracing, pendulum, takecover, a Gymnasium id, or --config FILE with",
        "run --seed 1 pong": "run: task: expected one of carracing, pendulum, takecover, or a Gymnasium id such as",
        "run takecover quick": "run: unexpected quick",
    }.items():
        with pytest.raises(SystemExit):
            main(arguments.split())
        assert message in capsys.readouterr().err
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["bytes.toml", "mine.toml"]


def values(section):
    """Settings of a section, some of which are changed."""
    kind = vars(getattr(Config(), section))
    numbers = {
        int: st.integers(1, 10**6),
        float: st.floats(1e-9, 1e6),
        bool: st.booleans(),
        str: st.text(st.characters(codec="utf-8"), max_size=8),
    }
    return st.fixed_dictionaries({}, optional={name: numbers[type(value)] for name, value in kind.items()})


@given(st.fixed_dictionaries({section: values(section) for section in ("train_vae", "evolve", "rounds")}))
def test_what_is_written_is_read_back(changes):
    base = preset("takecover", "quick")
    config = replace(base, **{name: replace(getattr(base, name), **part) for name, part in changes.items()})
    found = tomllib.loads(format_config(replace(config, seed=2**64 - 1), base))
    assert {name: found.pop(name) for name in ("task", "preset", "seed")} == {
        "task": "takecover",
        "preset": "quick",
        "seed": 2**64 - 1,
    }
    for section, part in found.items():
        name, values = section.replace("-", "_"), {key.replace("-", "_"): value for key, value in part.items()}
        base = replace(base, **{name: replace(getattr(base, name), **values)})
    assert base == config


def test_a_dry_run_writes_nothing_and_prints_a_file_of_settings(tmp_path, monkeypatch, capsys, ran):
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "takecover", "--preset", "quick", "--seed", "4", "--out", "run"]
    changed = ["--evolve.generations", "7", "--collect.policies", "left:1, repeat 1-10:2", "--train-vae.lr", "1e-5"]
    assert main([*arguments, *changed, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert (err, ran, list(tmp_path.iterdir())) == ("", {}, [])
    comments = [line for line in out.splitlines() if line.startswith("#")]
    assert comments[0] == "# worldmodels run takecover, in run"
    assert [line.split() for line in comments[1:9]] == [["#", get(name).command, "to", "do"] for name in NAMES]
    assert (
        comments[9]
        == "# 8 stages (all 8 with the settings of preset quick: about 19 minutes on 2 cores of an AMD EPYC (Zen 5))"
    )
    assert tomllib.loads(out) == {
        "task": "takecover",
        "preset": "quick",
        "seed": 4,
        "collect": {"policies": "left:1, repeat 1-10:2"},
        "train-vae": {"lr": 1e-5},
        "evolve": {"generations": 7},
    }
    assert main(["run", "takecover", "--dry-run"]) == 0
    states = [line.split(None, 2)[2] for line in capsys.readouterr().out.splitlines()[1:9]]
    assert states == ["taken from takecover"] * 4 + ["to do"] * 4
    write(tmp_path, out)
    assert main(["run", "--config", "mine.toml", "--out", "run"]) == 0
    expected = Run.stored_config("run")
    assert (expected.evolve.generations, expected.seed, expected.train_vae.lr) == (7, 4, 1e-5)
    capsys.readouterr()
    Path("run/stages/report.json").unlink()
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main(["run", "takecover", "--out", "run", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "#       report  to do\n# 1 of 8 stages left" in out and out.count("  complete") == 7
    assert tomllib.loads(out)["evolve"] == {"generations": 7}
    assert before == sorted(path for path in tmp_path.rglob("*"))


def test_a_dry_run_checks_the_settings_and_shows_rounds(tmp_path, monkeypatch, capsys, ran):
    monkeypatch.chdir(tmp_path)
    for arguments, message in {
        "--evolve.popsize 1": "evolve.popsize: expected at least 2, got 1",
        "--world-model nowhere": "world_model: expected a run folder",
    }.items():
        assert main(["run", "takecover", "--dry-run", *arguments.split()]) == 1
        assert message in capsys.readouterr().err
    Path("taken/vae").mkdir(parents=True)
    Path("taken/vae/notes.txt").touch()
    assert main(["run", "takecover", "--dry-run", "--out", "taken"]) == 1
    assert "taken: expected a run folder" in capsys.readouterr().err
    with Run("run", toy_config()) as run:
        run.run_stage("collect")
    assert main(["run", "takecover", "--out", "run", "--collect.episodes", "9", "--dry-run"]) == 1
    assert "collect is complete with other settings (episodes)" in capsys.readouterr().err
    assert main(["iterate", "takecover", "--preset", "quick", "--rounds", "2", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if "round " in line] == [
        "# round 0 of 2: runs/takecover-quick/rounds/0",
        "# round 1 of 2: runs/takecover-quick/rounds/1",
        "# round 2 of 2: runs/takecover-quick",
    ]
    assert "# 24 stages in 3 rounds" in out and tomllib.loads(out)["rounds"] == {"rounds": 2}
    assert not Path("runs").exists() and list(ran) == ["collect"]


def test_every_section_can_be_in_a_file(tmp_path):
    sections = [section for section in SECTIONS if section != PROBE]
    text = "".join(f"[{section.replace('_', '-')}]\n" for section in sections)
    assert read_config_file(write(tmp_path, text)).changes == {section: {} for section in sections}
