"""The `worldmodels` command: every stage by its name, every setting of its dataclass as a flag."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from worldmodels import __version__
from worldmodels.config import CHOICES, PRESETS, Config, field_help, override, preset
from worldmodels.experiment import STAGES, Experiment, command, section_names, versions
from worldmodels.threads import cores

_ABOUT = {
    "collect": "play the real game with fixed policies and keep every frame",
    "train_vae": "train V, the autoencoder of frames",
    "encode": "encode every frame with V",
    "train_rnn": "train M, the model of what comes next",
    "check_dream": "compare fixed policies in the dream and in the game",
    "evolve": "evolve C inside the dream",
    "evaluate": "play the real game with the agent and with policies beside it",
    "report": "draw the pictures and the page",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="worldmodels", description="World Models: learn a dream, evolve in it, play for real."
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    run = commands.add_parser(
        "run", help="all stages; run again to resume", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    run.add_argument("experiment", choices=sorted(PRESETS), help="which experiment")
    _add_common(run)
    for section in section_names():
        _add_section(run, section, f"{command(section)}.")

    for stage in STAGES:
        one = commands.add_parser(
            command(stage), help=_ABOUT[stage], formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        one.add_argument(
            "--experiment", choices=sorted(PRESETS), default="takecover", help="in a new folder: which experiment"
        )
        _add_common(one)
        one.add_argument(
            "--again", action="store_true", help="discard what this stage and all after it made, and do it again"
        )
        _add_section(one, stage, "")
        if stage == "collect":
            _add_section(one, "environment", "environment.")
    bench = commands.add_parser(
        "bench",
        help="how fast the dream is here, beside NumPy, PyTorch and JAX",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    bench.add_argument("--rounds", type=int, default=5, help="how often everything is timed; medians are printed")
    bench.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="time the peers too")
    bench.add_argument("--json", metavar="FILE", help="write the figures here too")
    commands.add_parser("info", help="versions, SIMD level, threads, devices")
    return top


def _add_common(target: argparse.ArgumentParser) -> None:
    names = sorted({name for presets in PRESETS.values() for name in presets})
    target.add_argument("--out", required=True, metavar="FOLDER", help="the run folder")
    target.add_argument(
        "--preset", choices=names, default=argparse.SUPPRESS, help="in a new folder: its settings (default: paper)"
    )
    target.add_argument("--seed", type=int, default=argparse.SUPPRESS, help="of everything that is random (default: 0)")


def _add_section(target: argparse.ArgumentParser, section: str, prefix: str) -> None:
    """One flag per field; a flag that is not given keeps the preset's (or the folder's) setting."""
    kind = type(getattr(Config(), section))
    hints, texts = get_type_hints(kind), field_help(kind)
    group = target.add_argument_group(f"{command(section)} ({(kind.__doc__ or '').rstrip('.')})")
    for item in fields(kind):
        hint = hints[item.name]
        group.add_argument(
            f"--{prefix}{command(item.name)}",
            dest=f"{section}.{item.name}",
            **({"action": argparse.BooleanOptionalAction} if hint is bool else {"type": hint}),
            choices=CHOICES.get((section, item.name)),
            metavar=None if hint is bool or (section, item.name) in CHOICES else hint.__name__.upper(),
            default=argparse.SUPPRESS,
            help=f"{texts[item.name]} (paper preset: {item.default})".replace("%", "%%"),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 1 for an error that is explained, 130 for Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "info":
            _info()
        elif options.command == "bench":
            _bench(options)
        else:
            _work(options)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, BlockingIOError, RuntimeError, OSError, ModuleNotFoundError) as error:
        print(f"worldmodels: {_explain(error)}", file=sys.stderr)
        return 1
    return 0


def _explain(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; install the extra of the experiment, such as `pip install 'worldmodels[takecover]'`"
    return str(error)


def _work(options: argparse.Namespace) -> None:
    chosen = vars(options)
    changes: dict[str, dict[str, Any]] = {}
    for key, value in chosen.items():
        section, dot, name = key.partition(".")
        if dot:
            changes.setdefault(section, {})[name] = value
    stored = Experiment.stored_config(options.out)
    wanted: dict[str, Any] = {key: chosen[key] for key in ("preset", "seed") if key in chosen}
    if stored is None:
        config = preset(options.experiment, wanted.get("preset", "paper"))
    else:
        config = stored
        if options.command == "run":
            wanted["experiment"] = options.experiment
        for key, value in wanted.items():
            if key != "seed" and getattr(stored, key) != value:
                raise ValueError(f"--{key}: {options.out} holds a run of {key} {getattr(stored, key)!r}, got {value!r}")
    if "seed" in wanted:
        if wanted["seed"] < 0:
            raise ValueError(f"--seed: expected zero or more, got {wanted['seed']}")
        config = Config(**{**vars(config), "seed": wanted["seed"]})
    config = override(config, changes)

    stages = STAGES if options.command == "run" else (options.command.replace("-", "_"),)
    with Experiment(options.out, config, again=stages[0] if getattr(options, "again", False) else None) as experiment:
        for stage in stages:
            experiment.run(stage)


def _bench(options: argparse.Namespace) -> None:
    from worldmodels.benchmarks import measure
    from worldmodels.data.atomic import write_json

    if options.rounds < 1:
        raise ValueError(f"--rounds: expected one or more, got {options.rounds}")
    if options.json and not Path(options.json).absolute().parent.is_dir():
        raise FileNotFoundError(f"--json: no such folder: {Path(options.json).parent}")
    rows = measure.measure(measure.cases(options.peers), options.rounds, lambda line: print(line, file=sys.stderr))
    about = measure.machine()
    print(measure.as_table(rows, about))
    if options.json:
        write_json(Path(options.json), measure.as_json(rows, about))


def _info() -> None:
    import torch

    import worldmodels
    from worldmodels.dream import simd_level

    lines = {
        **versions(),
        "cores": str(cores()),
        "torch threads": str(torch.get_num_threads()),
        "SIMD level": f"{simd_level()} (of {', '.join(worldmodels.simd_levels())})",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    for name, value in lines.items():
        print(f"{name:>14}  {value}")
