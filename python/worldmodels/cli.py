"""The command line: one command per stage and study, one flag per setting."""

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
from worldmodels.pipeline.folder import RunFolder
from worldmodels.pipeline.run import Run, check_inputs, require_earlier, section_names
from worldmodels.pipeline.stage import Stage, command
from worldmodels.pipeline.stages import NAMES, STAGES
from worldmodels.support import settings
from worldmodels.support.cluster import cluster_address, use_cluster
from worldmodels.support.cpu import describe
from worldmodels.support.launch import check_launch
from worldmodels.support.processes import Terminated, defer_sigint, keep_sigint
from worldmodels.support.suggestions import suggestion
from worldmodels.support.validation import MAX_SEED, check_integer, check_positive, check_real
from worldmodels.support.versions import versions

#: Extra of this package that installs a module; for other modules, the extra `takecover`.
_EXTRAS = {"Box2D": "carracing", "envpool": "envpool", "tensorboard": "tensorboard", "stable_baselines3": "examples"}
_MAX_EPISODES = 1_000_000  # of `play` and `dream`
_MAX_SCALE = 8  # of GIFs and MP4s; a panel is then 512 pixels wide

#: Commands that run all stages.
_ALL_STAGES = {
    "run": "run all stages, or resume them",
    "sweep": "evolve one controller per temperature of the dream",
    "ablate": "evolve controllers with other inputs, and with an untrained M",
    "iterate": "run all stages in rounds of own play: those of the preset, or one",
}


class _Parser(argparse.ArgumentParser):
    """Argument parser with one-line errors, without the usage, which has hundreds of lines."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')} (see `{self.prog} --help`)\n")

    def flags(self) -> list[str]:
        """List all flags."""
        return list(self._option_string_actions)


def _one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Create an argument type that accepts the given names; its error suggests the closest one."""
    known = list(names)

    def check(text: str) -> str:
        if text not in known:
            choices = ", ".join(name or "(empty)" for name in known)
            raise argparse.ArgumentTypeError(f"expected one of {choices}, got {text!r}{suggestion(text, known)}")
        return text

    return check


def _braces(names: Iterable[str]) -> str:
    return "{" + ",".join(names) + "}"


def _path(text: str) -> str:
    """Argument type: a non-empty path, with ``~`` expanded."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a path, got an empty string")
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}: {error}") from error


def _path_or_empty(text: str) -> str:
    """Argument type: a path with ``~`` expanded, or an empty string."""
    return _path(text) if text else text


def parser() -> _Parser:
    """Create the parser of the command line."""
    top = _Parser(
        prog="worldmodels", description="World Models: train a world model, evolve a controller in its dream."
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    presets = sorted({name for task in tasks.names() for name in tasks.get(task).presets})
    for name, summary in _ALL_STAGES.items():
        _add_study(_add_command(commands, name, summary), name, presets)
    for stage in STAGES:
        _add_stage(_add_command(commands, stage.command, stage.help), stage, presets)
    _add_play(_add_command(commands, "play", "play the real environment with an agent"))
    _add_dream(_add_command(commands, "dream", "play the dream with an agent"))
    _add_web(_add_command(commands, "web", "make a page with a playable dream, or serve it to the browser"))
    _add_bench(_add_command(commands, "bench", "benchmark the dream, training and games against other implementations"))
    info = _add_command(commands, "info", "print versions, SIMD level, threads and devices, or the profile of a run")
    info.add_argument("run", nargs="?", type=_path, help="run folder; prints seconds per stage and phase")
    return top


def _add_command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    return added


def _add_study(target: argparse.ArgumentParser, name: str, presets: Sequence[str]) -> None:
    """Add the arguments of a command that runs all stages."""
    target.add_argument("task", type=_one_of(tasks.names()), help=f"one of {', '.join(tasks.names())}")
    _add_common(target, presets, out="runs/<task>, or runs/<task>-<preset> if a preset is given")
    _add_cluster(target)
    target.add_argument(
        "--from-scratch", action="store_true", help="train V and M, with preset quick unless --preset is given"
    )
    if name == "sweep":
        target.add_argument(
            "--temperatures",
            type=float,
            nargs="+",
            default=[0.1, 0.5, 1.0, 1.15, 1.3],
            help="temperatures of the dreams",
        )
        target.add_argument(
            "--only",
            type=int,
            metavar="K",
            default=argparse.SUPPRESS,
            help="run the K-th temperature alone, without the table, as others run; 0 for the stages that all share",
        )
    for section in section_names():
        _add_section(target, section, "" if (name, section) == ("iterate", "rounds") else f"{command(section)}.")


def _add_stage(target: argparse.ArgumentParser, stage: Stage, presets: Sequence[str]) -> None:
    """Add the arguments of a command that runs one stage."""
    known = tasks.names()
    target.add_argument(
        "--task",
        type=_one_of(known),
        metavar=_braces(known),
        default=argparse.SUPPRESS,
        help="task of a new run folder (default: takecover)",
    )
    _add_common(target, presets)
    if stage.clustered:
        _add_cluster(target)
    _add_section(target, stage.name, "")
    if stage.name == "collect":
        _add_section(target, "environment", "environment.")


def _add_play(target: argparse.ArgumentParser) -> None:
    _add_show(target)
    _add_cluster(target)
    variants = settings.choices(EnvSpec, "variant")
    target.add_argument(
        "--variant",
        type=_one_of(variants),
        metavar=_braces(variants),
        default=argparse.SUPPRESS,
        help="rules of the game (default: those of the collected episodes)",
    )
    target.add_argument(
        "--resolution",
        metavar="SIZE",
        default=argparse.SUPPRESS,
        help="size of the rendered screen (default: that of the collected episodes)",
    )


def _add_dream(target: argparse.ArgumentParser) -> None:
    _add_show(target)
    target.add_argument(
        "--temperature",
        type=float,
        default=argparse.SUPPRESS,
        help="temperature of the dream (default: that of the evolution)",
    )


def _add_web(target: argparse.ArgumentParser) -> None:
    _add_agent(target)
    target.add_argument(
        "--out",
        metavar="PATH",
        type=_path,
        help="write one HTML file (*.html) that works offline, or with --split a folder; without --out, serve the page "
        "on this machine and open the browser",
    )
    target.add_argument(
        "--split", action="store_true", help="write a folder with the weights in files of their own, for a web server"
    )


def _add_bench(target: argparse.ArgumentParser) -> None:
    target.add_argument("--rounds", type=int, default=5, help="repetitions; medians are printed")
    target.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, default=True, help="also benchmark NumPy, PyTorch and JAX"
    )
    target.add_argument("--json", metavar="FILE", type=_path, help="JSON file of the results (*.json)")


def _add_cluster(target: argparse.ArgumentParser) -> None:
    target.add_argument(
        "--cluster",
        type=cluster_address,
        metavar="CLUSTER",
        default=argparse.SUPPRESS,
        help="do the work on a Ray cluster (extra `ray`): local:N or local:auto workers on this machine, auto for the "
        "cluster this machine belongs to, or HOST:PORT of its head; changes no result",
    )


def _add_agent(target: argparse.ArgumentParser) -> None:
    target.add_argument("agent", nargs="?", type=_path, help="pretrained agent (takecover) or run folder")


def _add_show(target: argparse.ArgumentParser) -> None:
    _add_agent(target)
    target.add_argument("--episodes", type=int, default=1, help="episodes to score")
    target.add_argument(
        "--gif", metavar="FILE", type=_path, help="write the first episode as a GIF (*.gif) of at most 4 MB"
    )
    target.add_argument(
        "--video",
        metavar="FILE",
        type=_path,
        help="write the first episode as an MP4 (*.mp4); needs the extra `video`",
    )
    target.add_argument(
        "--seconds", type=float, default=20.0, help="longest duration of the GIF and the MP4, at the game's speed"
    )
    target.add_argument("--scale", type=int, default=4, help="pixels per pixel of the GIF and the MP4")
    target.add_argument(
        "--window",
        action="store_true",
        help="play in a window at the game's speed: arrows play, m toggles the agent, r restarts, + and - change the "
        "temperature of a dream, space pauses, . makes a single step, Escape ends",
    )
    target.add_argument("--seed", type=int, default=0, help="seed of all random numbers")


def _add_common(target: argparse.ArgumentParser, presets: Sequence[str], out: str = "") -> None:
    out_help = f"run folder (default: {out})" if out else "run folder"
    target.add_argument(
        "--out", required=not out, type=_path, default=argparse.SUPPRESS, metavar="FOLDER", help=out_help
    )
    default_preset = "that of the task" if out else "quick"
    target.add_argument(
        "--preset",
        type=_one_of(presets),
        metavar=_braces(presets),
        default=argparse.SUPPRESS,
        help=f"settings of a new run folder (default: {default_preset})",
    )
    target.add_argument(
        "--world-model",
        metavar="NAME",
        type=_path,
        default=argparse.SUPPRESS,
        help="world model of a new run folder, instead of training one: a pretrained one (takecover), or a run folder",
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
    """Add one flag per setting of a section. A missing flag keeps the setting of the preset or of the run folder."""
    kind = type(getattr(Config(), section))
    group = target.add_argument_group(f"{command(section)} ({(kind.__doc__ or '').rstrip('.')})")
    defaults = kind()
    for name, declared in settings.declared(kind).items():
        hint, choices = settings.kind(kind, name), settings.choices(kind, name)
        parse: Any = _one_of(choices) if choices else _path_or_empty if declared.location else hint
        group.add_argument(
            f"--{prefix}{command(name)}",
            dest=f"{section}.{name}",
            **({"action": argparse.BooleanOptionalAction} if hint is bool else {"type": parse}),
            metavar=None if hint is bool else _braces(choices) if choices else hint.__name__.upper(),
            default=argparse.SUPPRESS,
            help=f"{declared.help} (paper preset: {getattr(defaults, name)})".replace("%", "%%"),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Arguments; None for those of the process.

    Returns:
        Exit status: 0, 1 after an error, 130 after Ctrl-C, 143 after SIGTERM.
    """
    if arguments is None:
        _protect_streams()
        arguments = sys.argv[1:]
    try:
        try:
            options = _parse(arguments)
        except SystemExit:
            sys.stdout.flush()  # prints --help and --version
            raise
        if options is None:
            pass
        elif options.command == "info":
            _info() if options.run is None else _profile(Path(options.run))
        elif options.command == "bench":
            _bench(options)
        elif options.command in ("play", "dream"):
            with use_cluster(vars(options).get("cluster")):
                _show(options)
        elif options.command == "web":
            _web(options)
        else:
            check_launch(os.environ, on_cluster=vars(options).get("cluster") is not None)
            with use_cluster(vars(options).get("cluster")), keep_sigint():
                _work(options)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        # After a Ctrl-C during exec() (used by dataclasses and namedtuples), Python exits by the signal instead of with
        # the status. Another exec() clears that flag.
        exec("")
        what, status = ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
        print(f"\n{what}; run the same command again to resume from the last checkpoint", file=sys.stderr)
        return status
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError, MemoryError) as error:
        print(f"worldmodels: {_explain(error)}", file=sys.stderr)
        return 1
    return 0


class _Pipe(io.FileIO):
    """Standard stream that discards output after its reader has closed the pipe."""

    failed = False

    def write(self, data: Any) -> int:
        """Write the data, or discard it after a BrokenPipeError. Other errors are raised once."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)
        except OSError:
            if self.failed:  # the interpreter flushes again at exit
                return len(data)
            self.failed = True
            raise


def _protect_streams() -> None:
    """Open closed standard streams on the null device, and ignore closed readers of stdout and stderr.

    Otherwise the next opened file would get the descriptor of a closed stream, and printed text would go to that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
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
    """Parse the command line.

    Returns:
        Options; None if there are no arguments, after printing the help.

    Raises:
        SystemExit: An argument is invalid or missing (status 2), or help was printed.
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
    if options.command in ("play", "dream", "web") and options.agent is None:
        runs = sorted(path.parent.parent for path in Path("runs").glob("*/evolve/controller.safetensors"))
        examples = ", ".join([*pretrained.names(), *map(str, runs)])
        commands[options.command].error(f"agent: expected a pretrained agent or a run folder, such as {examples}")
    return options


def _explain(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get((error.name or "").partition(".")[0], "takecover")
        text = str(error)
        return text if "pip install" in text else f"{text}; install it with `pip install 'worldmodels-rl[{extra}]'`"
    if isinstance(error, MemoryError):
        details = f" ({error})" if str(error) else ""
        return f"out of memory{details}; run the same command again to resume from the last checkpoint"
    return str(error)


def _import_torch() -> None:
    """Import PyTorch. A KeyboardInterrupt in its C++ initialization would abort the process."""
    with defer_sigint():
        import torch  # noqa: F401


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
            f"{command(trained[0])}: nothing to do in {out}, a run with the world model {config.world_model}; use "
            "another --out, and --from-scratch with `worldmodels run`"
        )

    _import_torch()
    if config.evolve.device == "cuda" and options.command in (*_ALL_STAGES, "evolve"):
        from worldmodels.pipeline.evaluators import gpu

        gpu()  # raises before V and M are trained
    if options.command in ("sweep", "ablate"):
        from worldmodels.pipeline import studies

        if options.command == "sweep":
            studies.sweep(out, config, options.temperatures, force=options.force, only=chosen.get("only"))
        else:
            studies.ablate(out, config, force=options.force)
        return
    if options.command in _ALL_STAGES:
        from worldmodels.pipeline.rounds import run_all

        if options.command == "iterate" and config.rounds.rounds == 0:
            config = override(config, {"rounds": {"rounds": 1}})
        with Run(out, config, force=options.force) as run:
            _print_estimate(run)
            done = run.is_done("report")
            run_all(run)
            if run.ranks.is_main:
                _print_results(run, done)
        return
    require_earlier(RunFolder(out, config), stage)
    if options.force:
        check_inputs(out, stage)
    with Run(out, config, rerun=stage if options.force else None, force=options.force) as run:
        run.run_stage(stage)


def _print_estimate(run: Run) -> None:
    """Print the number of incomplete stages and the duration of all stages."""
    rounds = run.rounds
    total, left = len(NAMES) * len(rounds), sum(not part.is_done(name) for part in rounds for name in NAMES)
    if left == 0 or not run.ranks.is_main:
        return
    text = f"{left} stages" if left == total else f"{left} of {total} stages left"
    text += f" in {len(rounds)} rounds" if len(rounds) > 1 else ""
    minutes, preset = run.task.minutes.get(run.config.preset), run.task.presets.get(run.config.preset)
    if minutes is not None and preset is not None:
        duration = f"about {minutes:g} minutes on 2 cores"
        usual = left == total and replace(preset, seed=run.given.seed) == run.given
        number = len(NAMES) * (preset.rounds.rounds + 1)
        text += f", {duration}" if usual else f" (all {number} with the settings of preset {preset.preset}: {duration})"
    print(text, file=sys.stderr)


def _print_results(run: Run, reported: bool) -> None:
    """Print the results of the rounds, the page of a report that was complete before, and the agent's score."""
    if not run.path("results.json").is_file():
        return
    from worldmodels.analysis.stats import table
    from worldmodels.data.records import Results
    from worldmodels.pipeline.report import format_score
    from worldmodels.pipeline.rounds import ROUND_COLUMNS, round_results, round_rows

    if run.given.rounds.rounds:
        print(table(ROUND_COLUMNS, round_rows(round_results(run), "+-")))
    if reported:  # else the stage has printed it
        print(f"report: {run.path('report', 'index.html')}")
    print(format_score(Results.read(run.path("results.json")), run.task))


def _folder(options: argparse.Namespace) -> Path:
    """Return the default run folder."""
    name = getattr(options, "preset", "quick" if options.from_scratch else "")
    return Path("runs", f"{options.task}-{name}" if name else options.task)


def _config(options: argparse.Namespace, out: Path) -> Config:
    """Return the settings of the run folder, or of the preset for a new run folder, without the section flags."""
    chosen = vars(options)
    all_stages, scratch = options.command in _ALL_STAGES, chosen.get("from_scratch", False)
    given: dict[str, Any] = {key: chosen[key] for key in ("task", "preset", "world_model") if key in chosen}
    stored = Run.stored_config(out)
    if stored is None:
        task = tasks.get(given.get("task", "takecover"))
        default = task.default_preset if all_stages else task.training_preset
        if all_stages and (scratch or options.command == "iterate") and task.presets[default].world_model:
            default = task.training_preset
        config = tasks.preset(task.name, given.get("preset", default))
        config = replace(config, world_model=given.get("world_model", config.world_model))
        if not all_stages and "preset" not in given:
            print(f"{out}: new run folder of task {task.name}, preset {default}", file=sys.stderr)
    else:
        config = stored
        for key, value in given.items():
            if getattr(stored, key) != value:
                flag = key if all_stages and key == "task" else f"--{command(key)}"
                raise ValueError(f"{flag}: {out} holds a run of {key} {getattr(stored, key)!r}, got {value!r}")
    if scratch and config.world_model:
        raise ValueError(
            f"--from-scratch: expected a run that trains V and M, got one with the world model {config.world_model}"
        )
    if "seed" in chosen:
        config = replace(config, seed=check_integer("--seed", chosen["seed"], 0, MAX_SEED))
    return config


def _check_output(flag: str, path: str, ending: str) -> None:
    """Check an output file before any work.

    Raises:
        ValueError: The file name has another ending.
        OSError: The folder does not exist or is not writable, or the path is a folder.
    """
    if Path(path).suffix.lower() != ending:
        raise ValueError(f"{flag}: expected a file that ends in {ending}, got {path}")
    parent = Path(path).absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"{flag}: no such folder: {Path(path).parent}")
    if Path(path).is_dir():
        raise IsADirectoryError(f"{flag}: expected a file, got a folder: {path}")
    if not os.access(path if Path(path).exists() else parent, os.W_OK):
        raise PermissionError(f"{flag}: expected a writable file, got {path}")


def _show(options: argparse.Namespace) -> None:
    check_integer("--episodes", options.episodes, 1, _MAX_EPISODES)
    check_integer("--seed", options.seed, 0, MAX_SEED)
    if "temperature" in options:
        check_real("--temperature", options.temperature, 0)
    check_positive("--seconds", options.seconds)
    check_integer("--scale", options.scale, 1, _MAX_SCALE)
    if options.gif:
        _check_output("--gif", options.gif, ".gif")
    if options.video:
        _check_output("--video", options.video, ".mp4")
        from worldmodels.analysis.recording import check_video

        check_video()
    if options.window and (options.gif or options.video or options.episodes > 1):
        raise ValueError("--window: expected no --gif, --video or --episodes, as you play until you close the window")
    folder, config = Run.agent(options.agent)
    _import_torch()
    task = tasks.get(config.task)
    chosen = _dream_settings(options, config) if options.command == "dream" else {}
    environment = replace(
        config.environment, **{key: vars(options)[key] for key in ("variant", "resolution") if key in options}
    )
    if options.window:
        _play_live(options, folder, task, chosen, environment)
        return

    from worldmodels.analysis import playback as show
    from worldmodels.analysis.recording import save_gif, save_video
    from worldmodels.rollout.runner import describe_environment

    if options.command == "dream":
        about = f"{options.agent}, in its dream at temperature {chosen['temperature']:g}{_dream_unit(folder, task)}"
        scores = show.dream_scores(folder, options.episodes, **chosen)
    else:
        about = f"{options.agent}, {describe_environment(environment)}"
        modules = (tasks.module(config.task),)
        scores = show.play(folder, environment, options.episodes, seed=options.seed, rules=task.rules, modules=modules)
    print(show.report_scores(about, scores))
    if not (options.gif or options.video):
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


def _dream_settings(options: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Return the settings of a dream that is played step by step."""
    from worldmodels.pipeline.evaluators import sampled

    return {
        "temperature": vars(options).get("temperature", config.evolve.temperature),
        "seed": options.seed,
        "max_steps": config.evolve.max_steps,
        "termination": sampled(config.evolve.termination),
    }


def _dream_unit(folder: Path, task: tasks.Task) -> str:
    """Return a remark on the unit of the returns of a dream, empty if it is that of the task."""
    from worldmodels import load_world_model

    return "" if task.dream_has_reward(load_world_model(folder).mdnrnn) else ", in steps (M has no reward head)"


def _play_live(
    options: argparse.Namespace, folder: Path, task: tasks.Task, chosen: dict[str, Any], environment: EnvSpec
) -> None:
    """Let the user play in a window, and print the scores."""
    from worldmodels.support.display import check_display

    check_display("--window", "--gif FILE or --video FILE")

    from worldmodels.analysis import live
    from worldmodels.rollout.runner import describe_environment

    game: live.Game
    if options.command == "dream":
        name = f"{options.agent}, in its dream{_dream_unit(folder, task)}"
        game = live.DreamGame(folder, **chosen)
    else:
        environment = replace(environment, backend="gymnasium")
        name = f"{options.agent}, {describe_environment(environment)}"
        game = live.RealGame(folder, environment, seed=options.seed, rules=task.rules)
    for line in live.play(game, task.keys, name, task.frames_per_second):
        print(line)


def _web(options: argparse.Namespace) -> None:
    if options.split and not options.out:
        raise ValueError("--split: expected --out FOLDER next to it")
    if options.out and not options.split:
        _check_output("--out", options.out, ".html")
    folder, config = Run.find(options.agent)

    from worldmodels.pipeline.dream_page import make_page
    from worldmodels.web.page import check_folder, write_page
    from worldmodels.web.server import serve

    if options.out and options.split:
        check_folder("--out", Path(options.out))
    page = make_page(folder, config)
    if not options.out:
        serve(page.folder(), page.policy)
        return
    size = write_page(page, Path(options.out), split=options.split)
    print(f"page: {options.out} ({size / 1e6:.1f} MB)")


def _bench(options: argparse.Namespace) -> None:
    check_integer("--rounds", options.rounds, 1, 10_000)
    if options.json:
        _check_output("--json", options.json, ".json")

    from worldmodels.benchmarks import measure
    from worldmodels.support.files import write_json

    rows = measure.measure(measure.cases(options.peers), options.rounds, lambda line: print(line, file=sys.stderr))
    machine = measure.machine()
    print(measure.as_table(rows, machine))
    if options.json:
        write_json(Path(options.json), measure.as_json(rows, machine))


def _profile(folder: Path) -> None:
    """Print the seconds per stage and phase of a run."""
    from worldmodels.pipeline.profiles import format_profiles, read_profiles

    if Run.stored_config(folder) is None:
        raise FileNotFoundError(f"{folder}: expected a run folder with config.json, got none")
    profiles = read_profiles(folder)
    print(format_profiles(profiles) if profiles else f"{folder}: no stage has a profile")


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
