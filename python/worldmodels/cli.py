"""The `worldmodels` command: every stage by its name, every setting of its dataclass as a flag."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from worldmodels import __version__, pretrained
from worldmodels.envs.spec import EnvSpec
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import Config, override
from worldmodels.pipeline.run import Run, check_inputs, require_earlier, section_names
from worldmodels.pipeline.stage import command
from worldmodels.pipeline.stages import NAMES, STAGES
from worldmodels.support import settings
from worldmodels.support.cpu import describe
from worldmodels.support.suggestions import suggestion
from worldmodels.support.validation import MAX_SEED, check_integer, check_positive, check_real
from worldmodels.support.versions import versions

#: Extras of the package that bring a module, where it is not the extra `takecover`.
_EXTRAS = {"Box2D": "carracing", "envpool": "envpool", "tensorboard": "tensorboard", "stable_baselines3": "examples"}
_MOST_EPISODES = 1_000_000  # that `play` and `dream` score
_LARGEST_SCALE = 8  # of their GIFs and MP4s: a panel is then 512 pixels wide

_WHOLE = {
    "run": "all stages (TakeCover's V and M come with the package unless --from-scratch); run again to resume",
    "sweep": "one controller per temperature in the same dream: the paper's table",
    "ablate": "controllers that see z, z and h, and so on, and an untrained M: what is it that helps?",
    "iterate": "rounds of play with the agent, training on everything, and evolution in the new dream",
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without hundreds of lines of usage before it."""

    def error(self, message: str) -> NoReturn:
        """Prints the message and where help is; ends with status 2."""
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')} (see `{self.prog} --help`)\n")

    def flags(self) -> list[str]:
        """Every flag by its names."""
        return list(self._option_string_actions)


def _one_of(names: Iterable[str]) -> Callable[[str], str]:
    """A type of arguments: one of the names; the error suggests the closest."""
    known = list(names)

    def check(text: str) -> str:
        if text not in known:
            choices = ", ".join(name or "(empty)" for name in known)
            raise argparse.ArgumentTypeError(f"expected one of {choices}, got {text!r}{suggestion(text, known)}")
        return text

    return check


def _braces(names: Iterable[str]) -> str:
    return "{" + ",".join(names) + "}"


def _place(text: str) -> str:
    """A type of arguments: a path, not empty, with ``~`` expanded."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}: {error}") from error


def _place_or_nothing(text: str) -> str:
    """A type of arguments: as :func:`_place`, or empty for none."""
    return _place(text) if text else text


def parser() -> _Parser:
    """The command line."""
    top = _Parser(prog="worldmodels", description="World Models: learn a dream, evolve in it, play for real.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    known = tasks.names()
    presets = sorted({name for task in known for name in tasks.get(task).presets})

    for name, about in _WHOLE.items():
        whole = commands.add_parser(name, help=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        whole.add_argument("task", type=_one_of(known), help=f"one of {', '.join(known)}")
        _add_common(whole, presets, out="runs/<task>, or runs/<task>-<preset> if a preset is given")
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
            stage.command, help=stage.help, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        one.add_argument(
            "--task",
            type=_one_of(known),
            metavar=_braces(known),
            default=argparse.SUPPRESS,
            help="in a new folder: the task (default: takecover)",
        )
        _add_common(one, presets)
        _add_section(one, stage.name, "")
        if stage.name == "collect":
            _add_section(one, "environment", "environment.")
    play = commands.add_parser(
        "play", help="an agent in the real game", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    _add_show(play)
    play.add_argument(
        "--variant",
        type=_one_of(settings.choices(EnvSpec, "variant")),
        metavar=_braces(settings.choices(EnvSpec, "variant")),
        default=argparse.SUPPRESS,
        help="rules of the game",
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
    bench.add_argument("--json", metavar="FILE", type=_place, help="write the figures here too (*.json)")
    commands.add_parser("info", help="versions, SIMD level, threads, devices")
    return top


def _add_show(target: argparse.ArgumentParser) -> None:
    target.add_argument("agent", nargs="?", type=_place, help="an agent of the package (takecover), or a run folder")
    target.add_argument("--episodes", type=int, default=1, help="episodes to score")
    target.add_argument(
        "--gif", metavar="FILE", type=_place, help="write the first episode as a GIF (*.gif) of at most 4 MB"
    )
    target.add_argument(
        "--video",
        metavar="FILE",
        type=_place,
        help="write the first episode as an MP4 (*.mp4); needs the extra `video`",
    )
    target.add_argument(
        "--seconds", type=float, default=20.0, help="longest duration of the GIF and the MP4, at the game's speed"
    )
    target.add_argument("--scale", type=int, default=4, help="pixels per pixel of the GIF and the MP4")
    target.add_argument("--window", action="store_true", help="show the first episode in a window")
    target.add_argument("--seed", type=int, default=0, help="seed of all random numbers")


def _add_common(target: argparse.ArgumentParser, presets: Sequence[str], out: str = "") -> None:
    where = f"the run folder (default: {out})" if out else "the run folder"
    target.add_argument("--out", required=not out, type=_place, default=argparse.SUPPRESS, metavar="FOLDER", help=where)
    usual = "that of the task" if out else "quick"
    target.add_argument(
        "--preset",
        type=_one_of(presets),
        metavar=_braces(presets),
        default=argparse.SUPPRESS,
        help=f"in a new folder: the settings (default: {usual})",
    )
    target.add_argument(
        "--world-model",
        metavar="NAME",
        type=_place,
        default=argparse.SUPPRESS,
        help="in a new folder: use this V and M, of a pretrained world model (takecover) or a run folder",
    )
    target.add_argument("--seed", type=int, default=argparse.SUPPRESS, help="seed of all random numbers (default: 0)")
    target.add_argument(
        "--force",
        action="store_true",
        help="continue although V or M failed its quality gate"
        if out
        else "discard the outputs of this stage and all later ones and rerun it; continue although V or M failed its "
        "quality gate",
    )


def _add_section(target: argparse.ArgumentParser, section: str, prefix: str) -> None:
    """One flag per field; a flag that is not given keeps the preset's (or the folder's) setting."""
    kind = type(getattr(Config(), section))
    group = target.add_argument_group(f"{command(section)} ({(kind.__doc__ or '').rstrip('.')})")
    defaults = kind()
    for name, declared in settings.declared(kind).items():
        hint, choices = settings.kind(kind, name), settings.choices(kind, name)
        parse: Any = _one_of(choices) if choices else _place_or_nothing if declared.location else hint
        group.add_argument(
            f"--{prefix}{command(name)}",
            dest=f"{section}.{name}",
            **({"action": argparse.BooleanOptionalAction} if hint is bool else {"type": parse}),
            metavar=None if hint is bool else _braces(choices) if choices else hint.__name__.upper(),
            default=argparse.SUPPRESS,
            help=f"{declared.help} (paper preset: {getattr(defaults, name)})".replace("%", "%%"),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 1 for an error that is explained, 130 for Ctrl-C."""
    if arguments is None:
        _open_streams()
        arguments = sys.argv[1:]
    try:
        try:
            options = _parse(arguments)
        except SystemExit:
            sys.stdout.flush()  # of --help and --version
            raise
        if options is None:
            pass
        elif options.command == "info":
            _info()
        elif options.command == "bench":
            _bench(options)
        elif options.command in ("play", "dream"):
            _show(options)
        else:
            _work(options)
        sys.stdout.flush()
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


class _Pipe(io.FileIO):
    """A standard stream whose reader may go away: what is written then is dropped, and the work goes on."""

    failed = False

    def write(self, data: Any) -> int:
        """Writes, or drops the bytes where nobody reads them; another error is raised once."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)
        except OSError:
            if self.failed:  # the interpreter flushes once more when it ends
                return len(data)
            self.failed = True
            raise


def _open_streams() -> None:
    """Makes the standard streams safe to write to: closed ones lead nowhere, and a reader that goes away is no error.

    A closed descriptor would be given to the next file that is opened, and what is printed would end up in it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        encoding = getattr(getattr(sys, name), "encoding", "utf-8")
        opened = io.TextIOWrapper(
            io.BufferedWriter(_Pipe(descriptor, "w", closefd=False)),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=name == "stderr" or os.isatty(descriptor),
        )
        setattr(sys, name, opened)


def _parse(arguments: Sequence[str]) -> argparse.Namespace | None:
    """Reads the command line; None where no command is given and what there is has been listed.

    Raises:
        SystemExit: something is misspelt or missing (status 2), or help was asked for.
    """
    top = parser()
    if not arguments:
        top.print_help()
        return None
    (commands,) = (action.choices for action in top._actions if isinstance(action, argparse._SubParsersAction))
    first = arguments[0]
    if not first.startswith("-") and first not in commands:
        top.error(f"command: expected one of {', '.join(commands)}, got {first!r}{suggestion(first, commands)}")
    options, unknown = top.parse_known_args(arguments)
    if unknown:
        chosen = commands[options.command]
        flags = [text.partition("=")[0] for text in unknown if text.startswith("-")]
        hint = suggestion(flags[0], [flag for flag in chosen.flags() if flag.startswith("--")]) if flags else ""
        chosen.error(f"unexpected {' '.join(unknown)}{hint}")
    if options.command in ("play", "dream") and options.agent is None:
        runs = sorted(path.parent.parent for path in Path("runs").glob("*/evolve/controller.safetensors"))
        here = ", ".join([*pretrained.names(), *map(str, runs)])
        commands[options.command].error(f"agent: expected a pretrained agent or a run folder, such as {here}")
    return options


def _explain(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get((error.name or "").partition(".")[0], "takecover")
        text = str(error)
        return text if "pip install" in text else f"{text}; `pip install 'worldmodels-rl[{extra}]'` brings it"
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
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out: expected a folder, got a file: {out}")
    config = override(_config(options, out), changes)
    stage = options.command.replace("-", "_")
    trained = [one.name for one in STAGES if one.world_model and (one.name in changes or one.name == stage)]
    if config.world_model and trained:
        raise ValueError(
            f"{command(trained[0])}: nothing to do in {out}, which takes V and M from {config.world_model}; "
            "use another --out, and --from-scratch with `worldmodels run`"
        )

    if config.evolve.device == "cuda" and options.command in (*_WHOLE, "evolve"):
        from worldmodels.pipeline.evaluators import gpu

        gpu()  # one that is not there is missed before V and M are trained
    if options.command in ("sweep", "ablate", "iterate"):
        from worldmodels.pipeline import studies

        if options.command == "sweep":
            studies.sweep(out, config, options.temperatures, force=options.force)
        elif options.command == "ablate":
            studies.ablate(out, config, force=options.force)
        else:
            studies.iterate(out, config, force=options.force)
        return
    names = NAMES
    if options.command != "run":
        names = (stage,)
        require_earlier(out, stage)
    rerun = stage if options.force and names == (stage,) else None
    if rerun is not None:
        check_inputs(out, stage)
    with Run(out, config, rerun=rerun, force=options.force) as run:
        if options.command == "run":
            _print_estimate(run)
        done = run.is_done("report")
        for name in names:
            run.run_stage(name)
        if options.command == "run" and done and run.ranks.is_main:  # else the stage has printed it
            print(f"report: {run.path('report', 'index.html')}")


def _print_estimate(run: Run) -> None:
    """Print how many stages are left, and how long all of them take."""
    left = sum(not run.is_done(name) for name in NAMES)
    if left == 0 or not run.ranks.is_main:
        return
    text = f"{left} stages" if left == len(NAMES) else f"{left} of {len(NAMES)} stages left"
    minutes, preset = run.task.minutes.get(run.config.preset), run.task.presets.get(run.config.preset)
    if minutes is not None and preset is not None:
        about = f"about {minutes:g} minutes on 2 cores"
        usual = left == len(NAMES) and replace(preset, seed=run.config.seed) == run.config
        text += f", {about}" if usual else f" (all {len(NAMES)} with the settings of preset {preset.preset}: {about})"
    print(text, file=sys.stderr)


def _folder(options: argparse.Namespace) -> Path:
    """The default run folder."""
    name = getattr(options, "preset", "quick" if options.from_scratch else "")
    return Path("runs", f"{options.task}-{name}" if name else options.task)


def _config(options: argparse.Namespace, out: Path) -> Config:
    """The settings to start from: those in the folder, or in a new one those of its preset."""
    chosen = vars(options)
    whole, scratch = options.command in _WHOLE, chosen.get("from_scratch", False)
    wanted: dict[str, Any] = {key: chosen[key] for key in ("task", "preset", "world_model") if key in chosen}
    stored = Run.stored_config(out)
    if stored is None:
        task = tasks.get(wanted.get("task", "takecover"))
        usual = task.default_preset if whole else task.training_preset
        if whole and (scratch or options.command == "iterate") and task.presets[usual].world_model:
            usual = task.training_preset
        config = tasks.preset(task.name, wanted.get("preset", usual))
        config = replace(config, world_model=wanted.get("world_model", config.world_model))
        if not whole and "preset" not in wanted:
            print(f"{out}: new run folder of {task.name} with the settings of preset {usual}", file=sys.stderr)
    else:
        config = stored
        for key, value in wanted.items():
            if getattr(stored, key) != value:
                flag = key if whole and key == "task" else f"--{command(key)}"
                raise ValueError(f"{flag}: {out} holds a run of {key} {getattr(stored, key)!r}, got {value!r}")
    if scratch and config.world_model:
        raise ValueError(
            f"--from-scratch: expected a run that trains V and M, got one with the world model {config.world_model}"
        )
    if "seed" in chosen:
        config = replace(config, seed=check_integer("--seed", chosen["seed"], 0, MAX_SEED))
    return config


def _output(flag: str, path: str, ending: str) -> None:
    """Refuses a file that cannot be written, or whose ending promises another format, before any work.

    Raises:
        ValueError: the ending is another one.
        OSError: there is no such folder, it cannot be written to, or the path is a folder.
    """
    if Path(path).suffix.lower() != ending:
        raise ValueError(f"{flag}: expected a file that ends in {ending}, got {path}")
    parent = Path(path).absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"{flag}: no such folder: {Path(path).parent}")
    if Path(path).is_dir():
        raise IsADirectoryError(f"{flag}: expected a file, got a folder: {path}")
    if not os.access(path if Path(path).exists() else parent, os.W_OK):
        raise PermissionError(f"{flag}: expected a file that can be written, got {path}")


def _show(options: argparse.Namespace) -> None:
    check_integer("--episodes", options.episodes, 1, _MOST_EPISODES)
    check_integer("--seed", options.seed, 0, MAX_SEED)
    if "temperature" in options:
        check_real("--temperature", options.temperature, 0)
    check_positive("--seconds", options.seconds)
    check_integer("--scale", options.scale, 1, _LARGEST_SCALE)
    if options.gif:
        _output("--gif", options.gif, ".gif")
    if options.video:
        _output("--video", options.video, ".mp4")
        from worldmodels.analysis.recording import check_video

        check_video()
    folder, config = Run.agent(options.agent)

    from worldmodels import load_world_model
    from worldmodels.analysis import playback as show
    from worldmodels.analysis.recording import save_gif, save_video
    from worldmodels.pipeline.evaluators import sampled
    from worldmodels.rollout.runner import describe_environment

    if options.window:
        show.check_display()
    task = tasks.get(config.task)
    if options.command == "dream":
        temperature = vars(options).get("temperature", config.evolve.temperature)
        chosen = {
            "temperature": temperature,
            "seed": options.seed,
            "max_steps": config.evolve.max_steps,
            "termination": sampled(config.evolve.termination),
        }
        about = f"{options.agent}, in its dream at temperature {temperature:g}"
        scores = show.dream_scores(folder, options.episodes, **chosen)
        if not task.dream_has_reward(load_world_model(folder).mdnrnn):
            about += ", in steps (M has no reward head)"
    else:
        environment = replace(
            config.environment, **{key: vars(options)[key] for key in ("variant", "resolution") if key in options}
        )
        about = f"{options.agent}, {describe_environment(environment)}"
        scores = show.play(folder, environment, options.episodes, seed=options.seed, rules=task.rules)
    print(show.report_scores(about, scores))
    if not (options.gif or options.video or options.window):
        return
    if options.command == "dream":
        recording = show.record_dream(folder, **chosen, **task.look)
    else:
        recording = show.record_play(folder, environment, seed=options.seed, rules=task.rules, **task.look)
    if options.gif:
        save_gif(Path(options.gif), recording, seconds=options.seconds, scale=options.scale)
        print(f"GIF: {options.gif}")
    if options.video:
        save_video(Path(options.video), recording, seconds=options.seconds, scale=options.scale)
        print(f"MP4: {options.video}")
    if options.window:
        show.window(recording, about)


def _bench(options: argparse.Namespace) -> None:
    check_integer("--rounds", options.rounds, 1, 10_000)
    if options.json:
        _output("--json", options.json, ".json")

    from worldmodels.benchmarks import measure
    from worldmodels.support.files import write_json

    rows = measure.measure(measure.cases(options.peers), options.rounds, lambda line: print(line, file=sys.stderr))
    about = measure.machine()
    print(measure.as_table(rows, about))
    if options.json:
        write_json(Path(options.json), measure.as_json(rows, about))


def _info() -> None:
    import torch

    import worldmodels
    from worldmodels.support.simd import simd_level

    lines = {
        **versions(),
        **describe(),
        "torch threads": str(torch.get_num_threads()),
        "SIMD level": f"{simd_level()} (of {', '.join(worldmodels.simd_levels())})",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    for name, value in lines.items():
        print(f"{name:>14}  {value}")
