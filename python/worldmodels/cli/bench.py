"""`worldmodels bench`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from worldmodels.cli.outputs import check_output
from worldmodels.support.validation import check_integer


def run_benchmarks(options: argparse.Namespace) -> None:
    """Run the benchmarks and print a table."""
    check_integer("--rounds", options.rounds, 1, 10_000)
    if options.json:
        check_output("--json", options.json, ".json")

    from worldmodels.benchmarks import measure
    from worldmodels.support.files import write_json

    rows = measure.measure(measure.cases(options.peers), options.rounds, lambda line: print(line, file=sys.stderr))
    machine = measure.machine()
    print(measure.as_table(rows, machine))
    if options.json:
        write_json(Path(options.json), measure.as_json(rows, machine))
