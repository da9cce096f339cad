"""Small worlds for the tests: synthetic episodes and latents, toy settings, run folders made by hand, the command."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldmodels.data.episodes import Episode, EpisodeWriter, shard_path
from worldmodels.data.latents import Latents
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import save_model, save_tensors
from worldmodels.pipeline.config import Config, override
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stages import get
from worldmodels.pipeline.tasks import preset

#: Settings under which every stage takes seconds.
TOY: dict[str, dict[str, Any]] = {
    "collect": {"episodes": 6, "min_length": 1, "shard_episodes": 2, "num_workers": 2},
    "train_vae": {"latent_size": 4, "steps": 6, "batch_size": 4, "checkpoint_every": 3, "validation_frames": 8},
    "train_rnn": {
        "hidden_size": 8,
        "num_mixtures": 2,
        "steps": 6,
        "batch_size": 2,
        "sequence_length": 16,
        "checkpoint_every": 2,
    },
    "check_dream": {"episodes": 2, "dream_episodes": 4, "num_envs": 2},
    "evolve": {
        "generations": 2,
        "popsize": 4,
        "episodes": 2,
        "max_steps": 50,
        "evaluate_every": 2,
        "evaluate_episodes": 4,
        "num_threads": 1,
        "precision": "float32",
    },
    "evaluate": {"episodes": 2, "num_envs": 2, "recording_steps": 6},
    "report": {"dream_steps": 6},
}


def toy_config(*, seed: int = 0, **sections: dict[str, Any]) -> Config:
    """The toy settings, with those of ``sections`` in place of theirs."""
    paper = preset("takecover", "paper")
    config = override(Config(**{**vars(paper), "seed": seed}), TOY)
    return override(config, sections)


def make_episode(length: int, seed: int = 0, *, terminated: bool = True, policy: str = "noop") -> Episode:
    """Random frames, actions and rewards."""
    rng = np.random.default_rng([seed, length])
    return Episode(
        rng.integers(0, 256, (length, 64, 64, 3), dtype=np.uint8),
        rng.uniform(-1, 1, (length, 1)).astype(np.float32),
        rng.normal(size=length).astype(np.float32),
        terminated,
        policy,
        seed,
    )


def write_store(folder: Path, episodes: Sequence[Episode], per_shard: int = 2) -> None:
    """Writes episodes as the shards of a store."""
    for index, start in enumerate(range(0, len(episodes), per_shard)):
        with EpisodeWriter(shard_path(folder, index), 1) as writer:
            for episode in episodes[start : start + per_shard]:
                writer.append(episode)


def make_latents(
    lengths: Sequence[int], terminated: Sequence[bool] | None = None, latent_size: int = 3, seed: int = 0
) -> Latents:
    """Random latents in which ``mu[:, 0]`` is the number of the frame over 64 (exact in float16)."""
    rng, total = np.random.default_rng(seed), sum(lengths)
    mu = rng.normal(size=(total, latent_size)).astype(np.float16)
    mu[:, 0] = np.arange(total) / 64
    return Latents(
        mu,
        rng.normal(-2, 0.5, (total, latent_size)).astype(np.float16),
        rng.uniform(-1, 1, (total, 1)).astype(np.float32),
        rng.normal(size=total).astype(np.float32),
        np.array(lengths, np.int64),
        np.array([True] * len(lengths) if terminated is None else terminated, np.bool_),
    )


def make_mdnrnn(
    latent_size: int = 4, hidden_size: int = 8, *, action_size: int = 1, seed: int = 1, **options: Any
) -> MDNRNN:
    """An M for TakeCover in whose dreams it matters what one does: 1 to 100 steps, by the controller and by chance."""
    torch.manual_seed(seed)
    options = {"mixtures": 2, "restart_input": True, "done_head": True, **options}
    model = MDNRNN(latent_size, action_size, hidden_size, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
        model.lstm.weight_ih_l0[:, latent_size : latent_size + action_size] *= 5
        if model.done_head:
            model.head.weight[0] *= 4
            model.head.bias[0] = -1.5
    return model.eval()


def make_vae(latent_size: int = 4, *, seed: int = 1) -> ConvVAE:
    """An untrained V."""
    torch.manual_seed(seed)
    return ConvVAE(latent_size).eval()


def write_world(experiment: Run, latent_size: int = 4, hidden_size: int = 8) -> None:
    """Puts random V and M into a run folder, as if the stages up to train-rnn were done."""
    save_model(experiment.path("vae", "vae.safetensors"), make_vae(latent_size))
    save_model(experiment.path("rnn", "rnn.safetensors"), make_mdnrnn(latent_size, hidden_size))
    torch.manual_seed(2)
    starts = {"mu": torch.randn(20, latent_size), "logvar": torch.randn(20, latent_size) - 2}
    save_tensors(experiment.path("rnn", "initial.safetensors"), starts, {"frames": 20})
    mark_done(experiment, "collect", "train_vae", "encode", "train_rnn")


def mark_done(experiment: Run, *stages: str, summary: dict[str, Any] | None = None) -> None:
    """Marks stages as complete with the settings of now, without running them."""
    for stage in stages:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(vars(get(stage)), "run", lambda _: summary or {})
            experiment.run_stage(stage)


def copy_linked(folder: Path, to: Path) -> Path:
    """Copies a folder with hard links: for what only reads its files, or replaces them atomically."""
    return Path(shutil.copytree(folder, to, copy_function=os.link, dirs_exist_ok=True))


def interrupt(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, after: bool = False) -> None:
    """Ctrl-C at the ``call``-th call of a function of a module or class: before it does its work, or after."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def wrapper(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise KeyboardInterrupt
        value = real(*arguments, **options)
        if calls == call:
            raise KeyboardInterrupt
        return value

    patch.setattr(owner, name, wrapper)


def metrics(experiment: Run, stage: str) -> list[dict[str, Any]]:
    """A stage's lines of metrics.jsonl without what may differ from run to run."""
    return [{key: line[key] for key in line if key != "seconds"} for line in experiment.metrics(stage)]


def processes(mark: str | Path, name: str = "") -> list[int]:
    """Ids of the running processes with ``WM_TEST=<mark>`` in their environment: all of them, or those of a name."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            about, called = (folder / "stat").read_text(), (folder / "comm").read_text().strip()
            zombie = about.rpartition(") ")[2].startswith("Z")
            if f"WM_TEST={mark}".encode() in (folder / "environ").read_bytes().split(b"\0") and not zombie:
                found += [int(folder.name)] if name in ("", called) else []
        except OSError:  # it has just ended
            continue
    return found


def gone(mark: str | Path, name: str = "", seconds: float = 10.0) -> bool:
    """Whether :func:`processes` finds none, now or before the seconds are over."""
    deadline = time.monotonic() + seconds
    while found := processes(mark, name):
        if time.monotonic() > deadline:
            print(f"left behind: {found}")
            return False
        time.sleep(0.05)
    return True


def pytest_configure() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job hands on that it is ignored


def environment() -> dict[str, str]:
    """Of a subprocess: no display, one thread."""
    kept = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return {**kept, "OMP_NUM_THREADS": "1"}


def start(*arguments: str | Path, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """Starts the `worldmodels` command; ``options`` are those of a process."""
    line = [sys.executable, "-m", "worldmodels", *map(str, arguments)]
    options = {"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(line, cwd=cwd, text=True, **options)


def command(*arguments: str | Path, cwd: Path, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """Runs the `worldmodels` command to its end."""
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def forked(work: Callable[[], Any], seconds: float = 60.0) -> str:
    """What a forked process says of `work`: the value, or the error; "hangs" where it says nothing."""
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if child == 0:
        try:
            text = repr(work())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(theirs, text.encode())
        os._exit(0)
    os.close(theirs)
    if not select.select([ours], [], [], seconds)[0]:
        os.kill(child, signal.SIGKILL)
    text = os.read(ours, 10_000).decode() or "hangs"
    os.close(ours)
    os.waitpid(child, 0)
    return text


#: `worldmodels run` of a whole toy pipeline.
WHOLE = ["run", "takecover", "--from-scratch", "--out", "toy", "--seed", "3"] + [
    text
    for section, settings in {**TOY, "evolve": {**TOY["evolve"], "generations": 200, "evaluate_every": 20}}.items()
    for name, value in settings.items()
    for text in (f"--{section}.{name}".replace("_", "-"), str(value))
]


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """`worldmodels run takecover`, with no display to draw on: the folder in which it ran, and what it said."""
    folder = tmp_path_factory.mktemp("whole")
    done = command(*WHOLE, cwd=folder, timeout=280)
    assert done.returncode == 0, done.stderr
    return folder, done
