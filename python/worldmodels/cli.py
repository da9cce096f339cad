"""The `worldmodels` command: every stage by its name, every setting of its dataclass as a flag."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from worldmodels import __version__, tasks
from worldmodels.checks import MOST_SEED, check_integer
from worldmodels.config import CHOICES, Config, field_help, override
from worldmodels.experiment import MAKERS, STAGES, Experiment, command, section_names, versions
from worldmodels.threads import describe

_ABOUT = {
    "collect": "play the real game with fixed policies and keep every frame",
    "train_vae": "train V, the autoencoder of frames",
    "encode": "encode every frame with V",
    "train_rnn": "train M, the model of what comes next",
    "check_dream": "compare fixed policies in the dream and in the game",
    "evolve": "evolve C inside the dream, or in the real environment",
    "evaluate": "play the real game with the agent and with policies beside it",
    "report": "draw the pictures and the page",
}


_WHOLE = {
    "run": "all stages (TakeCover's V and M come with the package unless --from-scratch); run again to resume",
    "sweep": "one controller per temperature in the same dream: the paper's table",
    "ablate": "controllers that see z, z and h, and so on, and an untrained M: what is it that helps?",
    "iterate": "rounds of play with the agent, training on everything, and evolution in the new dream",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="worldmodels", description="World Models: learn a dream, evolve in it, play for real."
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    experiments = tasks.names()
    presets = sorted({name for experiment in experiments for name in tasks.get(experiment).presets})

    for name, about in _WHOLE.items():
        whole = commands.add_parser(name, help=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        whole.add_argument("experiment", choices=experiments, help="which experiment")
        _add_common(whole, presets, out="runs/<experiment>, with the preset behind it if one is given")
        whole.add_argument(
            "--from-scratch", action="store_true", help="train V and M too: the preset quick, unless --preset says more"
        )
        if name == "sweep":
            whole.add_argument(
                "--temperatures", type=float, nargs="+", default=[0.1, 0.5, 1.0, 1.15, 1.3], help="of the dreams"
            )
        for section in section_names():
            if section != "iterate":
                _add_section(whole, section, f"{command(section)}.")
            elif name == "iterate":
                _add_section(whole, section, "")

    for stage in STAGES:
        one = commands.add_parser(
            command(stage), help=_ABOUT[stage], formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        one.add_argument(
            "--experiment", choices=experiments, default="takecover", help="in a new folder: which experiment"
        )
        _add_common(one, presets)
        one.add_argument(
            "--again", action="store_true", help="discard what this stage and all after it made, and do it again"
        )
        _add_section(one, stage, "")
        if stage == "collect":
            _add_section(one, "environment", "environment.")
    play = commands.add_parser(
        "play", help="an agent in the real game", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    _add_show(play)
    play.add_argument(
        "--variant", choices=CHOICES["environment", "variant"], default=argparse.SUPPRESS, help="rule set"
    )
    play.add_argument("--resolution", metavar="SIZE", default=argparse.SUPPRESS, help="screen that is rendered")
    dream = commands.add_parser(
        "dream", help="an agent in its dream", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    _add_show(dream)
    dream.add_argument(
        "--temperature", type=float, default=argparse.SUPPRESS, help="of the dream (default: that of its evolution)"
    )
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


def _add_show(target: argparse.ArgumentParser) -> None:
    target.add_argument("agent", help="an agent of the package (takecover), or a run folder")
    target.add_argument("--episodes", type=int, default=1, help="episodes to score")
    target.add_argument("--gif", metavar="FILE", help="write an animation of the first episode")
    target.add_argument("--window", action="store_true", help="show the first episode in a window")
    target.add_argument("--seed", type=int, default=0, help="of everything that is random")


def _add_common(target: argparse.ArgumentParser, presets: Sequence[str], out: str = "") -> None:
    where = f"the run folder (default: {out})" if out else "the run folder"
    target.add_argument("--out", required=not out, default=argparse.SUPPRESS, metavar="FOLDER", help=where)
    usual = "the experiment's own" if out else "paper"
    target.add_argument(
        "--preset", choices=presets, default=argparse.SUPPRESS, help=f"in a new folder: its settings (default: {usual})"
    )
    target.add_argument(
        "--world",
        metavar="NAME",
        default=argparse.SUPPRESS,
        help="in a new folder: take V and M from here, a world of the package (takecover) or a run folder",
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
        elif options.command in ("play", "dream"):
            _show(options)
        else:
            _work(options)
    except KeyboardInterrupt:
        # Python remembers a Ctrl-C that came while it ran source text (imports do: dataclasses, namedtuples) and would
        # end by the signal in spite of the status; running another text makes it forget.
        exec("")
        print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError, MemoryError) as error:
        print(f"worldmodels: {_explain(error)}", file=sys.stderr)
        return 1
    return 0


def _explain(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; install the extra of the experiment, such as `pip install 'worldmodels[takecover]'`"
    if isinstance(error, MemoryError):
        return f"memory ran out ({str(error) or 'no more is said'}); the same command goes on from the last checkpoint"
    return str(error)


def _work(options: argparse.Namespace) -> None:
    chosen = vars(options)
    changes: dict[str, dict[str, Any]] = {}
    for key, value in chosen.items():
        section, dot, name = key.partition(".")
        if dot:
            changes.setdefault(section, {})[name] = value
    out = Path(chosen.get("out") or _folder(options))
    config = override(_config(options, out), changes)
    stage = options.command.replace("-", "_")
    trained = [section for section in MAKERS if section in changes or section == stage]
    if config.world and trained:
        raise ValueError(
            f"{command(trained[0])}: nothing to do in {out}, which takes V and M from {config.world}; "
            "use another --out, and --from-scratch with `worldmodels run`"
        )

    if config.evolve.device == "cuda" and options.command in (*_WHOLE, "evolve"):
        from worldmodels.evaluators.dream import gpu

        gpu()  # one that is not there is missed before V and M are trained
    if options.command in ("sweep", "ablate", "iterate"):
        from worldmodels import studies

        if options.command == "sweep":
            studies.sweep(out, config, options.temperatures)
        elif options.command == "ablate":
            studies.ablate(out, config)
        else:
            studies.iterate(out, config)
        return
    stages = STAGES if options.command == "run" else (options.command.replace("-", "_"),)
    with Experiment(out, config, again=stages[0] if getattr(options, "again", False) else None) as experiment:
        for stage in stages:
            experiment.run(stage)


def _folder(options: argparse.Namespace) -> Path:
    """Where a run lies that was not told where."""
    name = getattr(options, "preset", "quick" if options.from_scratch else "")
    return Path("runs", f"{options.experiment}-{name}" if name else options.experiment)


def _config(options: argparse.Namespace, out: Path) -> Config:
    """The settings to start from: those in the folder, or in a new one those of its preset."""
    chosen = vars(options)
    whole, scratch = options.command in _WHOLE, chosen.get("from_scratch", False)
    wanted: dict[str, Any] = {key: chosen[key] for key in ("preset", "seed", "world") if key in chosen}
    stored = Experiment.stored_config(out)
    if stored is None:
        usual = tasks.get(options.experiment).usual_preset(whole)
        if whole and (scratch or options.command == "iterate") and tasks.preset(options.experiment, usual).world:
            usual = "quick"
        config = tasks.preset(options.experiment, wanted.get("preset", usual))
        config = replace(config, world=wanted.get("world", config.world))
    else:
        config = stored
        if whole:
            wanted["experiment"] = options.experiment
        for key, value in wanted.items():
            if key != "seed" and getattr(stored, key) != value:
                raise ValueError(f"--{key}: {out} holds a run of {key} {getattr(stored, key)!r}, got {value!r}")
    if scratch and config.world:
        raise ValueError(f"--from-scratch: expected a run that trains V and M, got one that takes them: {config.world}")
    if "seed" in wanted:
        config = replace(config, seed=check_integer("--seed", wanted["seed"], 0, MOST_SEED))
    return config


def _show(options: argparse.Namespace) -> None:
    from worldmodels import load_world, show
    from worldmodels.dream import done_weight
    from worldmodels.envs.play import describe_environment
    from worldmodels.figures import save_animation

    if options.episodes < 1:
        raise ValueError(f"--episodes: expected one or more, got {options.episodes}")
    check_integer("--seed", options.seed, 0, MOST_SEED)
    if options.gif and not Path(options.gif).absolute().parent.is_dir():
        raise FileNotFoundError(f"--gif: no such folder: {Path(options.gif).parent}")
    if options.window:
        show.check_display()
    folder, config = show.source(options.agent)
    task = tasks.get(config.experiment)
    if options.command == "dream":
        temperature = vars(options).get("temperature", config.evolve.temperature)
        chosen = {
            "temperature": temperature,
            "seed": options.seed,
            "max_steps": config.evolve.max_steps,
            "done_weight": done_weight(folder, config.evolve.ends),
        }
        about = f"{options.agent}, in its dream at temperature {temperature:g}"
        scores = show.dream_scores(folder, options.episodes, **chosen)
        if not task.dreams_are_scored(load_world(folder).mdnrnn):
            about += ", in steps (M has no reward head)"
    else:
        environment = replace(
            config.environment, **{key: vars(options)[key] for key in ("variant", "resolution") if key in options}
        )
        about = f"{options.agent}, {describe_environment(environment)}"
        scores = show.play(folder, environment, options.episodes, seed=options.seed)
    print(show.report_scores(about, scores))
    if not (options.gif or options.window):
        return
    if options.command == "dream":
        pictures, actions, _ = show.record_dream(folder, **chosen)
    else:
        pictures, actions = show.record_play(folder, environment, seed=options.seed)
    if options.gif:
        fps = task.frames_per_second
        save_animation(Path(options.gif), pictures, actions, frames_per_second=fps, threshold=task.threshold)
        print(f"animation: {options.gif}")
    if options.window:
        show.window(pictures, actions, about, frames_per_second=task.frames_per_second)


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
        **describe(),
        "torch threads": str(torch.get_num_threads()),
        "SIMD level": f"{simd_level()} (of {', '.join(worldmodels.simd_levels())})",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    for name, value in lines.items():
        print(f"{name:>14}  {value}")
