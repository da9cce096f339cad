"""Arguments: one command per stage and study, one flag per setting."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldmodels import __version__, pretrained
from worldmodels.cli import exchange
from worldmodels.cli.types import (
    OneOf,
    Parser,
    braces,
    parse_path,
    parse_sinks,
    parse_source,
    parse_source_or_empty,
    parse_task,
)
from worldmodels.envs.spec import EnvSpec
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import Config, section_names
from worldmodels.pipeline.sinks import SINKS
from worldmodels.pipeline.stage import Stage, command
from worldmodels.pipeline.stages import STAGES
from worldmodels.support import settings
from worldmodels.support.cluster import cluster_address
from worldmodels.support.suggestions import suggestion

#: Commands that run all stages.
ALL_STAGES = {
    "run": "run all stages, or resume them",
    "sweep": "evolve one controller per temperature of the dream",
    "ablate": "evolve controllers with other inputs, and with an untrained M",
    "iterate": "run all stages in rounds of own play (the paper's iterative training): --rounds, by "
    "default those of the preset, at least one",
}


@dataclass(frozen=True)
class View:
    """What the help shows.

    Attributes:
        config: Settings whose values are shown.
        full: Whether all settings are shown, instead of the common ones.
        presets: Names of the presets; empty for those of all tasks.
    """

    config: Config = field(default_factory=Config)
    full: bool = False
    presets: Sequence[str] = ()


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Formatter that shows the defaults of arguments that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or action.default is False or action.default == ()
        return action.help if plain else super()._get_help_string(action)


def parser(view: View | None = None) -> Parser:
    """Create the parser of the command line.

    Args:
        view: What the help shows; None for the common settings of the preset ``paper``.
    """
    view = view or View()
    top = Parser(prog="worldmodels", description="World Models: train a world model, evolve a controller in its dream.")
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument(
        "--print-completion",
        choices=("bash", "zsh", "tcsh"),
        action=_PrintCompletion,
        help="print a completion script for a shell (extra `completion`)",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    known = tasks.names()
    presets = view.presets or sorted({name for task in tasks.importable() for name in task.presets})
    for name, summary in ALL_STAGES.items():
        _add_study(_add_command(commands, name, summary), name, known, presets, view)
    for stage in STAGES:
        _add_stage(_add_command(commands, stage.command, stage.help), stage, known, presets, view)
    _add_play(_add_command(commands, "play", "run an agent in the real environment, or play it yourself"))
    _add_dream(_add_command(commands, "dream", "run an agent in its dream, or play in it yourself"))
    _add_web(_add_command(commands, "web", "make a page with a playable dream, or serve it to the browser"))
    _add_bench(_add_command(commands, "bench", "benchmark the dream, training and games against other implementations"))
    listing = _add_command(commands, "list", "list pretrained world models, tasks with their presets, and runs")
    listing.add_argument("folder", nargs="?", type=parse_path, default="runs", help="folder of run folders")
    status = _add_command(commands, "status", "print the stages, the progress and the score of a run")
    status.add_argument("run", type=parse_path, help="run folder")
    for name, summary in exchange.COMMANDS.items():
        exchange.add_arguments(_add_command(commands, name, summary), name)
    info = _add_command(commands, "info", "print versions, SIMD level, threads and devices, or the profile of a run")
    info.add_argument("run", nargs="?", type=parse_path, help="run folder; prints seconds per stage and phase")
    return top


def _add_command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=_Formatter,
    )
    return added


def _add_study(
    target: argparse.ArgumentParser, name: str, known: Sequence[str], presets: Sequence[str], view: View
) -> None:
    """Add the arguments of a command that runs all stages."""
    target.add_argument(
        "task",
        nargs="?",
        type=parse_task,
        help=f"one of {', '.join(known)}, or a Gymnasium id; may be in the file of --config",
    )
    default = "quick, or a preset that evolves C in the dream" if name == "iterate" else "that of the task"
    _add_common(target, presets, default, out="runs/<task>, or runs/<task>-<preset> if a preset is given")
    _add_cluster(target)
    target.add_argument(
        "--from-scratch", action="store_true", help="train V and M, with preset quick unless --preset is given"
    )
    if name in ("run", "iterate"):
        target.add_argument(
            "--dry-run",
            action="store_true",
            help="print the stages, the settings (TOML, for --config) and the duration; run and write nothing",
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
            help="run the K-th temperature alone, without the table (job arrays); 0 for the stages that all share",
        )
    for section in section_names():
        _add_section(target, section, "" if (name, section) == ("iterate", "rounds") else f"{command(section)}.", view)


def _add_stage(
    target: argparse.ArgumentParser, stage: Stage, known: Sequence[str], presets: Sequence[str], view: View
) -> None:
    """Add the arguments of a command that runs one stage."""
    target.add_argument(
        "--task",
        type=parse_task,
        metavar=braces([*known, "ID"]),
        default=argparse.SUPPRESS,
        help="task of a new run folder, or a Gymnasium id (default: takecover)",
    )
    _add_common(target, presets, "quick")
    if stage.clustered:
        _add_cluster(target)
    _add_section(target, stage.name, "", view)
    if stage.name == "collect":
        _add_section(target, "environment", "environment.", view)
        about = "recordings, or a Minari data set, to convert to the episodes of a new run folder (sets collect.source)"
        target.add_argument(
            "--from", dest="collect.source", metavar="FOLDER|ID", type=parse_path, default=argparse.SUPPRESS, help=about
        )


def _add_play(target: argparse.ArgumentParser) -> None:
    _add_show(target)
    _add_cluster(target)
    variants = settings.choices(EnvSpec, "variant")
    target.add_argument(
        "--variant",
        type=OneOf(variants),
        metavar=braces(variants),
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
        type=parse_path,
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
    target.add_argument("--json", metavar="FILE", type=parse_path, help="JSON file of the results (*.json)")


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
    target.add_argument(
        "agent", nargs="?", type=parse_source, help="pretrained agent (takecover, carracing) or run folder"
    )


def _add_show(target: argparse.ArgumentParser) -> None:
    _add_agent(target)
    target.add_argument("--episodes", type=int, default=1, help="episodes to score")
    target.add_argument(
        "--gif",
        metavar="FILE",
        type=parse_path,
        help="write the first episode as a GIF (*.gif) of at most 4 MB; `play` records in Gymnasium, whose tracks "
        "differ from EnvPool's",
    )
    target.add_argument(
        "--video",
        metavar="FILE",
        type=parse_path,
        help="write the same recording as an MP4 (*.mp4); needs the extra `video`",
    )
    target.add_argument(
        "--seconds", type=float, default=20.0, help="longest duration of the GIF and the MP4, at the game's speed"
    )
    target.add_argument("--scale", type=int, default=4, help="scale factor of the GIF and the MP4")
    target.add_argument(
        "--window",
        action="store_true",
        help="play in a window at the game's speed: arrows play, m toggles the agent, r restarts, + and - change the "
        "temperature of a dream, space pauses, . makes a single step, Escape ends",
    )
    target.add_argument("--seed", type=int, default=0, help="seed of all random numbers")


def _add_common(target: argparse.ArgumentParser, presets: Sequence[str], default: str, out: str = "") -> None:
    out_help = f"run folder (default: {out})" if out else "run folder"
    target.add_argument(
        "--out", required=not out, type=parse_path, default=argparse.SUPPRESS, metavar="FOLDER", help=out_help
    )
    target.add_argument(
        "--preset",
        type=OneOf(presets),
        metavar=braces(presets),
        default=argparse.SUPPRESS,
        help=f"settings of a new run folder (default: {default})",
    )
    target.add_argument(
        "--import",
        dest="environment.imports",
        metavar="PACKAGE",
        default=argparse.SUPPRESS,
        help="package that registers the Gymnasium id when it is imported (--environment.imports)",
    )
    target.add_argument(
        "--world-model",
        metavar="NAME",
        type=parse_source,
        default=argparse.SUPPRESS,
        help="world model of a new run folder, instead of training one: a pretrained one (takecover, carracing), or a "
        "run folder",
    )
    target.add_argument("--seed", type=int, default=argparse.SUPPRESS, help="seed of all random numbers (default: 0)")
    target.add_argument(
        "--config",
        type=parse_path,
        metavar="FILE",
        help="TOML file of settings: sections and names like the flags, which override it",
    )
    target.add_argument(
        "--log",
        type=parse_sinks,
        default=(),
        metavar="SINKS",
        help=f"also log the metrics to {' or '.join(SINKS)}, or both with a comma (extras of these names)",
    )
    target.add_argument(
        "--force",
        action="store_true",
        help="continue although V or M failed its quality check"
        if out
        else "discard the outputs of this stage and of those that build on it, and rerun it; continue although V or M "
        "failed its quality check",
    )
    target.add_argument("--help-all", action="store_true", help="show all settings and exit")


def _add_section(target: argparse.ArgumentParser, section: str, prefix: str, view: View) -> None:
    """Add one flag per setting of a section. A missing flag keeps the setting of the preset or of the run folder."""
    values = getattr(view.config, section)
    kind = type(values)
    group = target.add_argument_group(f"{command(section)} ({(kind.__doc__ or '').rstrip('.')})")
    unused = any(stage.name == section and stage.is_taken(view.config) for stage in STAGES)
    for name, declared in settings.declared(kind).items():
        hint, choices = settings.kind(kind, name), settings.choices(kind, name)
        parse: Any = OneOf(choices) if choices else parse_source_or_empty if declared.location else hint
        shown = "not used" if unused else _shown(getattr(values, name))
        default = f"{view.config.preset}: {shown}"
        if (section, prefix, name) == ("rounds", "", "rounds"):  # of iterate, which runs at least one round
            default = "default: that of the preset, at least 1"
        group.add_argument(
            f"--{prefix}{command(name)}",
            dest=f"{section}.{name}",
            **({"action": argparse.BooleanOptionalAction} if hint is bool else {"type": parse}),
            metavar=None if hint is bool else braces(choices) if choices else hint.__name__.upper(),
            default=argparse.SUPPRESS,
            help=f"{declared.help} ({default})".replace("%", "%%")
            if view.full or declared.common
            else argparse.SUPPRESS,
        )


def _shown(value: Any) -> str:
    return "empty" if value == "" else str(value)


class _PrintCompletion(argparse.Action):
    """Print a completion script, and exit."""

    def __call__(self, chosen: argparse.ArgumentParser, options: Any, values: Any, option: str | None = None) -> None:
        from worldmodels.cli.completion import completion

        print(completion(parser(View(full=True)), values))
        chosen.exit()


def default_preset(task: tasks.Task, name: str, *, from_scratch: bool) -> str:
    """Return the preset of a new run folder.

    Args:
        task: Task of the run.
        name: Name of the command.
        from_scratch: Whether V and M are trained.
    """
    if name not in ALL_STAGES:
        return task.training_preset
    if name == "iterate":
        dreaming = task.dreaming_presets(trained=True)
        return task.training_preset if task.training_preset in dreaming or not dreaming else dreaming[0]
    given = task.presets[task.default_preset].world_model
    return task.training_preset if from_scratch and given else task.default_preset


def _print_help(name: str, arguments: Sequence[str], full: bool) -> None:
    """Print the help of a command that runs stages, with the values of the task and the preset in the arguments."""
    chosen = _commands(parser())[name]
    try:
        given = _given(arguments, "--task") or next((text for text in arguments if text in tasks.names()), "takecover")
        given = "takecover" if tasks.is_id(given) else given  # without a probe
        task = tasks.get(given)
        preset = _given(arguments, "--preset") or default_preset(task, name, from_scratch="--from-scratch" in arguments)
        config = tasks.preset(given, preset)
    except ValueError as error:
        chosen.error(str(error))
    chosen = _commands(parser(View(config, full, tuple(task.presets))))[name]
    chosen.description = f"{chosen.description} Values in parentheses are those of task {given}, preset {preset}."
    if not full:
        hidden = sum(action.help == argparse.SUPPRESS for action in chosen._actions)
        chosen.epilog = f"--help-all shows {hidden} more setting{'s' if hidden != 1 else ''}."
    chosen.print_help()


def _given(arguments: Sequence[str], flag: str) -> str:
    """Find the value of a flag; empty without one."""
    found = [value for text, value in itertools.pairwise([*arguments, ""]) if text == flag]
    found += [text.removeprefix(f"{flag}=") for text in arguments if text.startswith(f"{flag}=")]
    return found[-1] if found else ""


def _commands(top: Parser) -> dict[str, Parser]:
    """Return the parsers of all commands by name."""
    (found,) = (action.choices for action in top._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found)


def parse(arguments: Sequence[str]) -> argparse.Namespace | None:
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
    commands = _commands(top)
    first = arguments[0]
    if not first.startswith("-") and first not in commands:
        top.error(f"command: expected one of {', '.join(commands)}, got {first!r}{suggestion(first, commands)}")
    helps = [text for text in arguments if text in ("-h", "--help", "--help-all")]
    if helps and first in (*ALL_STAGES, *(stage.command for stage in STAGES)):
        _print_help(first, arguments[1:], "--help-all" in helps)
        raise SystemExit(0)
    options, unknown = top.parse_known_args(_without_own_prefix(first, arguments))
    if unknown and options.command in ALL_STAGES and options.task is None and not unknown[0].startswith("-"):
        # argparse matches an optional positional argument before the first flag only
        options.task = _checked(commands[options.command], "task", parse_task, unknown.pop(0))
    if unknown:
        chosen = commands[options.command]
        flags = [text.partition("=")[0] for text in unknown if text.startswith("-")]
        hint = suggestion(flags[0], [flag for flag in chosen.flags() if flag.startswith("--")]) if flags else ""
        chosen.error(f"unexpected {' '.join(unknown)}{hint}")
    if options.command in ALL_STAGES and options.task is None and options.config is None:
        known = ", ".join(tasks.names())
        commands[options.command].error(f"task: expected one of {known}, a Gymnasium id, or --config FILE with a task")
    if options.command in ("play", "dream", "web") and options.agent is None:
        runs = sorted(path.parent.parent for path in Path("runs").glob("*/evolve/controller.safetensors"))
        examples = ", ".join([*pretrained.names(), *map(str, runs)])
        commands[options.command].error(f"agent: expected a pretrained agent or a run folder, such as {examples}")
    return options


def _without_own_prefix(name: str, arguments: Sequence[str]) -> list[str]:
    """Drop the prefix of flags of a command's own section: ``evaluate --evaluate.episodes`` is ``--episodes``."""
    own = "rounds" if name == "iterate" else name
    if own not in map(command, section_names()):
        return list(arguments)
    return [re.sub(rf"^--(no-)?{own}\.", r"--\1", text) for text in arguments]


def _checked(chosen: Parser, name: str, kind: Callable[[str], str], text: str) -> str:
    """Apply an argument type outside of the parser, with the parser's error."""
    try:
        return kind(text)
    except argparse.ArgumentTypeError as error:
        chosen.error(f"{name}: {error}")
