"""The `worldmodels` command: flags from dataclasses, helpful refusals, exit codes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from conftest import TOY, command, environment, make_latents, toy_config
from worldmodels import __version__, cli, pretrained
from worldmodels.cli import arguments as parsing
from worldmodels.cli import main
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import SECTIONS, Config, section_names
from worldmodels.pipeline.config_file import read_config_file
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stages import NAMES, STAGES, get
from worldmodels.pipeline.tasks import preset

COMMANDS = [stage.replace("_", "-") for stage in NAMES]


@pytest.fixture
def ran(monkeypatch):
    """Stages that only keep the settings they were run with, by name."""
    ran = {}
    for stage in NAMES:
        monkeypatch.setitem(
            vars(get(stage)),
            "run",
            lambda experiment, stage=stage: ran.update({stage: experiment.config}) or {},
        )
    return ran


def flags(section):
    return [field.name.replace("_", "-") for field in fields(getattr(Config(), section))]


def help_of(capsys, *arguments, flag="--help"):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, flag])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_all_of_run_lists_every_setting_of_every_stage(capsys):
    text = help_of(capsys, "run", flag="--help-all")
    assert "--probe" not in text and "--import PACKAGE" in text  # a probe is measured
    for section in section_names():
        for flag in flags(section):
            assert f"--{section.replace('_', '-')}.{flag}" in text
    assert "--seed" in text and "--rounds.vae-steps" in text
    assert "--vae-steps" in help_of(capsys, "iterate", flag="--help-all")
    assert "{pretrained,quick,small,full,paper}" in text
    assert "{pretrained,quick,small,full,paper,dream}" in help_of(capsys, "run", "carracing")


@pytest.mark.parametrize("stage", NAMES)
def test_help_all_of_a_stage_lists_its_settings(capsys, stage):
    text = help_of(capsys, stage.replace("_", "-"), flag="--help-all")
    for flag in [*flags(stage), "out", "force", "task", "preset", "world-model", "seed"]:
        assert f"--{flag}" in text
    assert ("--environment.variant" in text) == (stage == "collect")
    assert "(quick: " in text and "Values in parentheses are those of task takecover, preset quick." in flat(text)
    assert "--help-all shows" not in text


def flat(text):
    """Help without its line breaks."""
    return " ".join(text.split())


@pytest.mark.parametrize("name", ["run", "sweep", "ablate", "iterate"])
def test_help_is_short_and_points_at_the_rest(capsys, name):
    text = flat(help_of(capsys, name, "takecover"))
    listed = set(re.findall(r"--[a-z-]+\.[a-z0-9-]+", text)) - {"--environment.imports"}  # which --import mentions
    assert {"--evolve.generations", "--train-rnn.steps", "--collect.episodes", "--evaluate.episodes"} <= listed
    assert len(listed) <= 12 and "--evolve.sigma0" not in text
    hidden = int(re.search(r"--help-all shows (\d+) more settings\.", text).group(1))
    every = sum(len(flags(section)) for section in section_names())
    assert hidden == every - len(listed) - (name == "iterate")  # its --rounds has no section in front
    for flag in ("--config", "--log", "--preset", "--out", "--help-all"):
        assert flag in text


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("run takecover --preset quick", ["task takecover, preset quick", "(quick: 5000)", "LSTM units (quick: 512)"]),
        ("run --preset=small takecover", ["task takecover, preset small", "(small: 6000)"]),
        ("run carracing", ["task carracing, preset pretrained"]),
        (
            "run takecover",
            ["task takecover, preset pretrained", "episodes to keep (pretrained: not used)", "(pretrained: 100)"],
        ),
        ("run takecover --from-scratch", ["task takecover, preset quick"]),
        (
            "iterate takecover",
            [
                "task takecover, preset quick",
                "(default: quick, or a preset that evolves C in the dream)",
                "(default: that of the preset, at least 1)",
            ],
        ),
        ("run", ["task takecover, preset pretrained"]),
        ("collect --task carracing --preset paper", ["task carracing, preset paper", "(paper: 10000)"]),
    ],
)
def test_help_shows_the_values_of_the_chosen_preset(capsys, arguments, shown):
    text = flat(help_of(capsys, *arguments.split()))
    assert all(part in text for part in shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "run takecover --preset tiny",
            "run: preset: expected one of pretrained, quick, small, full, paper, got",
        ),
        ("collect --task pong", "collect: task: expected one of carracing, pendulum, takecover, got 'pong'"),
    ],
)
def test_help_of_what_does_not_exist_is_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments.split(), "--help"])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(capsys, shell):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as stopped:
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert stopped.value.code == 0
    for text in ("check-dream", "evolve.generations", "takecover", "pretrained", "help-all"):
        assert text in script
    if shell == "bash":
        line = "COMP_WORDS=(worldmodels run takecover --pres); COMP_CWORD=3; _shtab_worldmodels; echo ${COMPREPLY[@]}"
        done = subprocess.run(["bash", "-c", f"{script}\n{line}"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["--preset"]


def test_completion_without_shtab_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 1
    assert "pip install 'worldmodels-rl[completion]'" in capsys.readouterr().err


def test_help_lists_the_commands(capsys):
    text = help_of(capsys)
    for name in ("run", "info", *COMMANDS):
        assert re.search(rf"^ +{name}\s", text, re.MULTILINE)


def test_flags_become_settings(tmp_path, ran):
    arguments = [
        *("run", "takecover", "--preset", "small", "--out", str(tmp_path), "--seed", "5"),
        *("--collect.policies", "left:1, repeat 1-60:2", "--collect.episodes", "7", "--environment.variant", "modern"),
        *("--no-train-rnn.done-head", "--train-rnn.reward-head", "--evolve.termination", "threshold"),
        *("--evolve.sigma0", "0.5", "--evolve.common-random-numbers"),
    ]
    assert main(arguments) == 0
    assert list(ran) == list(NAMES)
    config = ran["evolve"]
    assert (config.preset, config.seed) == ("small", 5)
    assert (config.collect.policies, config.collect.episodes) == ("left:1, repeat 1-60:2", 7)
    assert config.environment.variant == "modern"
    assert (config.train_rnn.done_head, config.train_rnn.reward_head) == (False, True)
    assert (config.evolve.sigma0, config.evolve.common_random_numbers) == (0.5, True)
    assert config.train_vae == preset("takecover", "small").train_vae
    assert Run.stored_config(tmp_path) == config


def test_a_stage_alone_goes_on_with_the_settings_of_the_folder(tmp_path, ran):
    out = ["--out", str(tmp_path)]
    assert main(["collect", *out, "--preset", "quick", "--episodes", "9", "--environment.resolution", "320x240"]) == 0
    assert main(["train-vae", *out, "--latent-size", "3"]) == 0
    config = ran["train_vae"]
    assert (config.preset, config.collect.episodes, config.environment.resolution) == ("quick", 9, "320x240")
    assert config.train_vae.latent_size == 3
    assert list(ran) == ["collect", "train_vae"]


@pytest.mark.parametrize("task", ["takecover", "carracing"])
def test_a_stage_alone_in_a_new_folder_uses_the_preset_quick_and_says_so(tmp_path, ran, capsys, task):
    quick, paper = tmp_path / "new", tmp_path / "paper"
    assert main(["collect", "--out", str(quick), "--task", task]) == 0
    assert ran["collect"] == Run.stored_config(quick) == preset(task, "quick")
    said = f"{quick}: new run folder of task {task}, preset quick\n"
    assert capsys.readouterr().err == said
    assert main(["collect", "--out", str(quick)]) == 0
    assert "new run folder" not in capsys.readouterr().err
    assert main(["collect", "--out", str(paper), "--task", task, "--preset", "paper"]) == 0
    assert ran["collect"] == preset(task, "paper")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "name", "folder", "world"),
    [
        (["run", "takecover"], "pretrained", "takecover", "takecover"),
        (["run", "takecover", "--from-scratch"], "quick", "takecover-quick", ""),
        (["run", "takecover", "--from-scratch", "--preset", "small"], "small", "takecover-small", ""),
        (["run", "takecover", "--preset", "paper"], "paper", "takecover-paper", ""),
        (
            ["run", "takecover", "--preset", "quick", "--world-model", "takecover"],
            "quick",
            "takecover-quick",
            "takecover",
        ),
    ],
)
def test_a_run_uses_the_pretrained_world_model_unless_it_is_told_to_train(
    tmp_path, monkeypatch, ran, arguments, name, folder, world
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0
    config = Run.stored_config(Path("runs", folder))
    assert (config.preset, config.world_model) == (name, world)
    assert set(ran) == set(NAMES) - ({stage.name for stage in STAGES if stage.world_model} if world else set())


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_gpu_that_is_not_there_is_missed_before_anything_is_trained(tmp_path, capsys, ran):
    line = refused(capsys, "run", "takecover", "--from-scratch", "--out", str(tmp_path), "--evolve.device", "cuda")
    assert "evolve.device: expected cpu, as there is no CUDA device here, got cuda" in line
    assert not ran and not list(tmp_path.iterdir())


def test_a_given_world_model_is_not_trained(tmp_path, monkeypatch, ran, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "takecover"]) == 0
    given = pretrained.folder("takecover")
    for file in ("vae/vae.safetensors", "rnn/rnn.safetensors", "rnn/initial.safetensors"):
        assert (tmp_path / "runs" / "takecover" / file).read_bytes() == (given / file).read_bytes()
    assert "copied from the world model takecover" in capsys.readouterr().err
    line = refused(capsys, "run", "takecover", "--from-scratch", "--out", "runs/takecover")
    assert "--from-scratch: expected a run that trains V and M, got one with the world model takecover" in line
    for arguments in (["train-rnn", "--force"], ["run", "takecover", "--train-rnn.steps", "9"]):
        line = refused(capsys, *arguments, "--out", "runs/takecover")
        assert "train-rnn: nothing to do in runs/takecover, a run with the world model takecover" in line
    assert "(world_model)" in refused(capsys, "run", "takecover", "--world-model", "elsewhere")
    assert "rounds.rounds: expected a run that trains V and M, got 1 and the world model takecover" in refused(
        capsys, "iterate", "takecover", "--world-model", "takecover", "--out", "other"
    )
    assert (
        "world_model: expected a run folder with vae/vae.safetensors, or one of carracing, takecover, got nowhere"
        in refused(capsys, "run", "takecover", "--world-model", "nowhere", "--out", "other")
    )
    assert not Path("other").exists()


def test_a_stage_of_a_run_with_a_world_model_copies_it_first(tmp_path, ran, capsys):
    """It needs no commands for the stages that have nothing to do."""
    out = tmp_path / "run"
    assert main(["evolve", "--preset", "pretrained", "--out", str(out)]) == 0
    assert list(ran) == ["evolve"]
    given = pretrained.folder("takecover")
    assert (out / "rnn" / "rnn.safetensors").read_bytes() == (given / "rnn" / "rnn.safetensors").read_bytes()
    assert "train-rnn  copied from the world model takecover" in capsys.readouterr().err
    other = tmp_path / "other"
    assert "`worldmodels evaluate` needs the outputs of `worldmodels evolve`" in refused(
        capsys, "evaluate", "--preset", "pretrained", "--out", str(other)
    )


def refused(capsys, *arguments):
    """The message of a command that is refused."""
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    (line,) = [line for line in err.splitlines() if line.startswith("worldmodels: ")]
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "run takecover --preset tiny --out x",
            "run: --preset: expected one of dream, full, paper, pretrained, quick, small",
        ),
        ("run takecover --preset Quick --out x", "got 'Quick'; did you mean 'quick'?"),
        (
            "run pong --out x",
            "run: task: expected one of carracing, pendulum, takecover, or a Gymnasium id such as CartPole-v1, got",
        ),
        ("run doom --out x", "got 'doom'; did you mean 'takecover'?"),
        ("run TakeCover", "got 'TakeCover'; did you mean 'takecover'?"),
        ("run CarRacing", "got 'CarRacing'; did you mean 'carracing'?"),
        ("collect", "collect: the following arguments are required: --out"),
        ("evolve --out x --popsize many", "evolve: --popsize: invalid int value: 'many'"),
        ("evolve --out x --features hz", "evolve: --features: expected one of z, zh, zc, zch, got 'hz'"),
        ("evolve --out x --nonsense 1", "evolve: unexpected --nonsense 1 (see `worldmodels evolve --help`)"),
        ("evolve --out x --popsze 3", "evolve: unexpected --popsze 3; did you mean '--popsize'?"),
        ("run takecover --temprature=2", "unexpected --temprature=2; did you mean '--evolve.temperature'?"),
        ("play takecover quick", "play: unexpected quick (see"),
        ("nonsense", "worldmodels: command: expected one of run, sweep, "),
        ("Evaluat", "got 'Evaluat'; did you mean 'evaluate'?"),
        ("play", "play: agent: expected a pretrained agent or a run folder, such as carracing, takecover, runs/mine ("),
        ("dream --gif x.gif", "dream: agent: expected a pretrained agent or a run folder, such as carracing, takecov"),
        ("run takecover --out=", "run: --out: expected a path, got an empty string"),
        ("play takecover --gif=", "play: --gif: expected a path, got an empty string"),
        ("bench --json=", "bench: --json: expected a path, got an empty string"),
        ("run takecover --world-model=", "run: --world-model: expected a path, got an empty string"),
        ("play takecover --gif=~nobody-here/x.gif", "play: --gif: expected a path, got '~nobody-here/x.gif'"),
    ],
)
def test_what_the_parser_refuses_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    mine = tmp_path / "runs" / "mine" / "evolve" / "controller.safetensors"
    mine.parent.mkdir(parents=True)
    mine.touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_no_command_lists_the_commands(capsys):
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert err == "" and all(name in out for name in (*COMMANDS, "run", "play", "dream"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("play nowhere", "nowhere: expected a run folder or one of carracing, takecover"),
        ("play Takecovr", "Takecovr: expected a run folder or one of carracing, takecover; did you mean 'takecover'?"),
        ("play half", "half: expected a run with an agent, got one without evolve/controller.safetensors"),
        ("dream takecover --gif film.mp4", "--gif: expected a file that ends in .gif, got film.mp4"),
        ("dream takecover --gif no/film.gif", "--gif: no such folder: no"),
        ("dream takecover --gif folder.gif", "--gif: expected a file, got a folder: folder.gif"),
        ("dream takecover --temperature -1", "--temperature: expected a number >= 0, got -1.0"),
        ("play takecover --episodes 1000000000000", "--episodes: expected an integer from 1 to 1000000"),
        ("bench --json figures.csv", "--json: expected a file that ends in .json, got figures.csv"),
        ("bench --rounds 0", "--rounds: expected an integer from 1 to 10000, got 0"),
        ("run takecover --out file", "--out: expected a folder, got a file: file"),
        ("evolve --out nowhere", "nowhere: `worldmodels evolve` needs the outputs of `worldmodels collect`"),
        ("evolve --out half --popsize 1", "half: `worldmodels evolve` needs the outputs of `worldmodels collect`"),
    ],
)
def test_paths_and_numbers_are_refused_before_any_work(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.gif").mkdir()
    (tmp_path / "file").touch()
    with Run("half", preset("takecover", "quick")):
        pass
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    assert message in refused(capsys, *arguments.split())
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


def test_a_wrong_agent_is_refused_without_loading_pytorch(tmp_path):
    code = "import sys; from worldmodels.cli import main; main(['play', 'nowhere']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_home_folder_is_expanded_where_the_shell_does_not(tmp_path, monkeypatch, ran):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["collect", "--out=~/run", "--episodes", "3"]) == 0
    assert Run.stored_config(tmp_path / "run").collect.episodes == 3


def shell(line, cwd):
    """Runs a line of shell with `worldmodels` as ``$WM``: its status, and what is left on its stderr."""
    line = f"WM='{sys.executable} -m worldmodels'; {line}"
    done = subprocess.run(["bash", "-c", line], cwd=cwd, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_on_a_full_disk_is_explained(tmp_path, flag):
    assert shell(f"$WM {flag} > /dev/full", tmp_path) == (1, "worldmodels: [Errno 28] No space left on device\n")


@pytest.mark.parametrize(
    "line",
    ["$WM >&-", "$WM 2>&-", "$WM info <&- >&- 2>&-", "set -o pipefail; $WM info | true", "$WM | head -1"],
)
def test_closed_streams_and_readers_that_leave_are_no_errors(tmp_path, line):
    assert shell(line, tmp_path) == (0, "")


def test_what_is_printed_never_lands_in_a_file(tmp_path):
    """With stdout closed, the next file that is opened would be given its descriptor."""
    gif = tmp_path / "dream.gif"
    assert shell("$WM dream takecover --gif dream.gif --seconds 0.5 --scale 1 <&- >&- 2>&-", tmp_path) == (0, "")
    assert gif.read_bytes().startswith(b"GIF8") and b"animation: " not in gif.read_bytes()


def test_a_full_disk_behind_stdout_is_explained(tmp_path):
    status, err = shell("$WM info > /dev/full", tmp_path)
    assert status == 1 and err == "worldmodels: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evolve", "--popsize", "0"], "evolve.popsize: expected more than zero, got 0"),
        (["collect", "--num-workers", "-1"], "collect.num_workers: expected zero or more, got -1"),
        (["collect", "--policies", "left:1, hover"], "collect.policies: expected '<name>:<weight>, ...'"),
        (["collect", "--policies", "left:0"], "got 'left:0'"),
        (["collect", "--seed", str(2**64)], "--seed: expected an integer from 0 to 18446744073709551615, got"),
        (["collect", "--seed", "-1"], "--seed: expected an integer from 0 to 18446744073709551615, got -1"),
        (["train-vae"], "`worldmodels train-vae` needs the outputs of `worldmodels collect`"),
    ],
)
def test_what_the_stages_refuse(tmp_path, capsys, arguments, message):
    assert message in refused(capsys, *arguments, "--out", str(tmp_path / "run"))


def test_other_settings_of_a_finished_stage_are_refused(tmp_path, ran, capsys):
    out = ["--out", str(tmp_path)]
    assert main(["collect", *out]) == 0
    for arguments in (["collect", "--episodes", "3"], ["run", "takecover", "--collect.episodes", "3"]):
        message = refused(capsys, *arguments, *out)
        assert "collect is complete with other settings (episodes)" in message
        assert "--force" in message
    assert "(seed)" in refused(capsys, "train-vae", *out, "--seed", "3")
    message = refused(capsys, "run", "takecover", *out, "--preset", "paper")
    assert f"--preset: {tmp_path} holds a run of preset 'quick', got 'paper'" in message


def test_flags_of_a_stage_may_have_its_prefix(tmp_path, ran, capsys):
    """Those of `run`, so that a line can be copied."""
    assert main(["collect", "--out", str(tmp_path), "--collect.episodes=7", "--no-collect.ignore-done"]) == 0
    assert ran["collect"].collect.episodes == 7
    with pytest.raises(SystemExit):
        main(["collect", "--out", str(tmp_path), "--evolve.episodes", "3"])
    with pytest.raises(SystemExit):
        main(["play", "takecover", "--play.episodes", "3"])


def test_force_discards_a_stage_and_all_later_ones_and_reruns_it(tmp_path, ran):
    out = ["--out", str(tmp_path)]
    assert main(["run", "takecover", "--from-scratch", *out]) == 0
    ran.clear()
    (tmp_path / "latents").mkdir()
    make_latents([3]).save(tmp_path / "latents" / "00000.safetensors")
    assert main(["train-rnn", *out, "--force", "--hidden-size", "7"]) == 0
    assert list(ran) == ["train_rnn"]
    left = [stage for stage in NAMES if (tmp_path / "stages" / f"{stage}.json").exists()]
    assert left == ["collect", "train_vae", "encode", "train_rnn"]
    ran.clear()
    assert main(["run", "takecover", *out]) == 0
    assert list(ran) == ["check_dream", "evolve", "evaluate", "report"]
    assert ran["evolve"].train_rnn.hidden_size == 7


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to resume from the last checkpoint\n"),
        (RuntimeError("a worker failed"), 1, "worldmodels: a worker failed"),
        (MemoryError(), 1, "worldmodels: out of memory; run the same command again"),
        (ModuleNotFoundError("no vizdoom", name="vizdoom"), 1, "no vizdoom; install it with `pip install 'worldmodels"),
        (ModuleNotFoundError("No module named 'mine'", name="mine"), 1, "worldmodels: No module named 'mine'\n"),
    ],
)
def test_what_goes_wrong_in_a_stage_is_explained(tmp_path, monkeypatch, capsys, error, status, message):
    def fail(_):
        raise error

    monkeypatch.setitem(vars(get("collect")), "run", fail)
    assert main(["collect", "--out", str(tmp_path)]) == status
    assert message in capsys.readouterr().err


def test_a_forced_stage_is_resumed_without_force(tmp_path, monkeypatch, capsys):
    """With the flag, its checkpoint would be discarded; `worldmodels run --force` discards nothing."""

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(vars(get("collect")), "run", interrupt)
    whole = ["run", "takecover", "--from-scratch"]
    for words, said in ((["collect"], "without --force, which would"), (whole, "again to resume")):
        assert main([*words, "--out", str(tmp_path / words[0]), "--force"]) == 130
        assert f"interrupted; run the same command {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"), [(KeyboardInterrupt, "\ninterrupted\n"), (MemoryError, "worldmodels: out of memory\n")]
)
def test_what_has_no_checkpoint_promises_none(monkeypatch, capsys, error, message):
    def fail(_):
        raise error

    monkeypatch.setitem(cli._COMMANDS, "play", fail)
    assert main(["play", "takecover"]) != 0
    assert capsys.readouterr().err == message


def test_a_separator_makes_the_name_of_a_pretrained_agent_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with Run("takecover", toy_config()):
        pass
    for line in (["dream"], ["export", "--out", "onnx"]):
        for name in ("./takecover", "takecover/", str(tmp_path / "takecover")):
            assert Run.find(parsing.parse([*line, name]).agent)[0] == Path(name)
        assert capsys.readouterr().err == ""
        assert Run.find(parsing.parse([*line, "takecover"]).agent)[0] == pretrained.path("takecover")
        assert capsys.readouterr().err.startswith("WARNING: takecover: the pretrained agent, not the run folder")
    Path("mine.toml").write_text('world-model = "./takecover"\n[evolve]\ninit-from = "takecover/"\n')
    file = read_config_file(Path("mine.toml"))
    assert file.top == {"world_model": "./takecover"} and file.changes == {"evolve": {"init_from": "takecover/"}}


@pytest.mark.parametrize(("task", "preset"), [("takecover", "quick"), ("carracing", "full"), ("pendulum", "quick")])
def test_iterate_takes_a_preset_that_trains_and_dreams(task, preset):
    assert parsing.default_preset(tasks.get(task), "iterate", from_scratch=False) == preset


def test_a_dry_run_refuses_what_a_run_refuses(tmp_path, monkeypatch, capsys, ran):
    with Run(tmp_path / "imported", toy_config()) as run:
        run.path("vae").mkdir()
        run.path("vae", "vae.safetensors").touch()
    line = ["run", "takecover", "--from-scratch", "--preset", "paper", "--dry-run"]
    assert "expected a run folder whose models its stages made" in refused(
        capsys, "run", "takecover", "--out", str(tmp_path / "imported"), "--dry-run"
    )
    monkeypatch.setattr("worldmodels.pipeline.sinks.find_spec", lambda _: None)
    assert "--log: wandb requires" in refused(capsys, *line, "--out", str(tmp_path / "run"), "--log", "wandb")
    flags = ["--evolve.device", "cuda", "--evolve.precision", "float32"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "evolve.device" in refused(capsys, *line, "--out", str(tmp_path / "run"), *flags)


INTERRUPTED = """
import os, signal, sys, time
from worldmodels.cli import main
from worldmodels.pipeline.stages import get
vars(get("collect"))["run"] = lambda _: exec("os.kill(os.getpid(), signal.SIGINT); time.sleep(10)")
raise SystemExit(main(["collect", "--out", sys.argv[1]]))
"""


def test_ctrl_c_while_source_text_runs_as_in_an_import_ends_with_the_status_too(tmp_path):
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    line = [sys.executable, "-m", "interrupted", str(tmp_path / "run")]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job hands on that it is ignored
    ended = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 130, ended.stderr
    assert "interrupted; run the same command again" in ended.stderr and "Traceback" not in ended.stderr


HOLDER = """
import sys
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.tasks import preset
with Run(sys.argv[1], preset("takecover", "quick")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_held_by_another_process_is_refused_until_that_is_gone(tmp_path, ran, capsys):
    line = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()) as holder:
        assert holder.stdout.readline() == "held\n"
        message = refused(capsys, "collect", "--out", str(tmp_path))
        assert f"{tmp_path}: another worldmodels process has locked this folder" in message
        assert ran == {}
        holder.send_signal(signal.SIGKILL)
    assert main(["collect", "--out", str(tmp_path)]) == 0
    assert list(ran) == ["collect"]


def test_info_says_what_a_report_of_a_bug_needs(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for name in ("worldmodels", "torch", "numpy", "vizdoom", "cores", "SIMD level", "torch threads", "device"):
        assert f" {name}  " in text
    assert "baseline" in text
    assert re.search(r"cores  \d+ \(affinity \d+(, cgroup quota \d+)?\)\n", text)
    assert re.search(r"threads  \d+ \((cores|OMP_NUM_THREADS)\)\n", text)


def test_info_of_a_run_prints_seconds_per_stage_and_phase(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 1
    assert f"{tmp_path}: expected a run folder with config.json, got none" in capsys.readouterr().err
    with Run(tmp_path, toy_config()) as run:
        assert main(["info", str(tmp_path)]) == 0
        assert "no stage has a profile" in capsys.readouterr().out
        run.log("evolve", generation=1, best=3.0, mean=2.0, worst=1.0)
        for _ in range(2):
            run.log("profile", of="evolve", profile={"ask": 0.5, "rollout": 3.0, "other": 1.5})
        run.log("profile", of="train-vae", profile={"data": 1.0})
        run.log("profile", of="train-vae", profile={"data": "much"})
        assert [line["generation"] for line in run.metrics("evolve")] == [1]
    assert main(["info", str(tmp_path)]) == 0  # also of a run in progress
    assert capsys.readouterr().out.splitlines()[2:] == [
        "train-vae            1.0       ",
        "  data               1.0  100 %",
        "evolve              10.0       ",
        "  rollout            6.0   60 %",
        "  other              3.0   30 %",
        "  ask                1.0   10 %",
    ]


def test_the_command_is_installed(tmp_path):
    done = command("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n")
    script = Path(sys.executable).with_name("worldmodels")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n")


def test_toy_settings_are_settings():
    assert set(TOY) <= set(SECTIONS)
