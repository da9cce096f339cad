"""The command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from worldmodels.cli.arguments import parse
from worldmodels.cli.bench import run_benchmarks
from worldmodels.cli.exchange import COMMANDS as EXCHANGE
from worldmodels.cli.exchange import exchange_models
from worldmodels.cli.info import print_info
from worldmodels.cli.show import show_agent
from worldmodels.cli.stages import run_stages
from worldmodels.cli.status import print_list, print_status
from worldmodels.cli.streams import protect_streams
from worldmodels.cli.web import make_web_page
from worldmodels.pipeline.stages import STAGES
from worldmodels.support.processes import Terminated

#: Extra of this package that installs a module; for other modules, the extra `takecover`.
_EXTRAS = {
    **dict.fromkeys(("PIL", "gymnasium", "h5py", "matplotlib", "pygame", "vizdoom"), "takecover"),
    "Box2D": "carracing",
    "ale_py": "atari",
    "envpool": "envpool",
    "shtab": "completion",
    "stable_baselines3": "examples",
}
#: What a command does with its options; the others run stages.
_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "play": show_agent,
    "dream": show_agent,
    "web": make_web_page,
    "bench": run_benchmarks,
    "info": print_info,
    "list": print_list,
    "status": print_status,
    **dict.fromkeys(EXCHANGE, exchange_models),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Arguments; None for those of the process.

    Returns:
        Exit status: 0, 1 after an error, 130 after Ctrl-C, 143 after SIGTERM.
    """
    if arguments is None:
        protect_streams()
        arguments = sys.argv[1:]
    try:
        try:
            options = parse(arguments)
        except SystemExit:
            sys.stdout.flush()  # prints --help and --version
            raise
        if options is not None:
            _COMMANDS.get(options.command, run_stages)(options)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        # After a Ctrl-C during exec() (used by dataclasses and namedtuples), Python exits by the signal instead of with
        # the status. Another exec() clears that flag.
        exec("")
        what, status = ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
        print(f"\n{what}{_resumes(arguments)}", file=sys.stderr)
        return status
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError, MemoryError) as error:
        print(f"worldmodels: {_explain(error)}{_resumes(arguments) * isinstance(error, MemoryError)}", file=sys.stderr)
        return 1
    return 0


def _resumes(arguments: Sequence[str]) -> str:
    """Say how to resume a command that runs stages; empty for others, which have no checkpoint."""
    if not arguments or arguments[0] in _COMMANDS:
        return ""
    discards = "--force" in arguments and arguments[0] in [stage.command for stage in STAGES]
    again = "without --force, which would discard it," if discards else "again"
    return f"; run the same command {again} to resume from the last checkpoint"


def _explain(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        text = str(error)
        known = extra is not None and "pip install" not in text
        return f"{text}; install it with `pip install 'worldmodels-rl[{extra}]'`" if known else text
    if isinstance(error, MemoryError):
        return f"out of memory ({error})" if str(error) else "out of memory"
    return str(error)
