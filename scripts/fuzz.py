"""Coverage-guided fuzzing of the loaders and of the bindings: any crash, hang or unexplained error is a finding.

    python scripts/fuzz.py --seconds 3600 --corpus runs/fuzz                  all targets, the time divided over them
    python scripts/fuzz.py --targets config,cmaes --seconds 60 --corpus runs/fuzz
    python scripts/fuzz.py --targets cmaes --input runs/fuzz/cmaes/findings/crash-...       one input again

Wants Atheris (`pip install -c constraints.txt atheris`; Linux and macOS, CPython 3.11 to 3.13). The targets are
functions of `scripts/fuzz_targets.py`. Each runs in a process of its own until its time is over or it finds something;
what covered new code stays in CORPUS/<target>/inputs and is where the next call starts from. Exits with 1 on a finding.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

#: Functions of fuzz_targets.py, which takes seconds to import.
TARGETS = (
    *("tensors", "world", "latents", "shard", "datasets", "config", "run_folder", "measured"),
    *("cmaes", "dream", "memory", "encoder", "agent"),
)
_WORKER = Path(__file__).with_name("fuzz_targets.py")
_STARTING = 300  # seconds that the imports may take, on a busy machine
_HANGS = 30  # seconds after which one input is a finding


@dataclass
class Outcome:
    """What came of a target."""

    target: str
    executions: int
    seconds: float
    features: str
    finding: str


def fuzz(target: str, corpus: Path, seconds: float, runs: int, single: Path | None = None) -> Outcome:
    """Runs a target for a time or a number of inputs (-1: any), or on a single input."""
    inputs, findings = corpus / target / "inputs", corpus / target / "findings"
    for folder in (inputs, findings):
        folder.mkdir(parents=True, exist_ok=True)
    began, log = time.monotonic(), corpus / target / "log.txt"
    before = set(findings.iterdir())
    with tempfile.TemporaryDirectory() as scratch, log.open("w") as output:
        line = [sys.executable, _WORKER, target, scratch, single or inputs, f"-timeout={_HANGS}", f"-runs={runs}"]
        line += [f"-max_total_time={seconds:.0f}", f"-artifact_prefix={findings}/", "-print_final_stats=1"]
        try:
            code = subprocess.run(
                list(map(str, line)), stdout=output, stderr=output, timeout=seconds + _STARTING + 4 * _HANGS
            ).returncode
        except subprocess.TimeoutExpired:
            code = "no end"
    text = log.read_text(errors="replace")
    counted = re.findall(r"stat::number_of_executed_units:\s*(\d+)", text) or re.findall(r"^#(\d+)\s", text, re.M)
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text)
    finding = ""
    if code != 0:
        said = re.findall(r"Uncaught Python exception: ===\n(.*)|(ERROR: libFuzzer: .*)", text)
        paths = [single] if single else sorted(set(findings.iterdir()) - before)
        inputs_found = ", ".join(map(str, paths)) or f"exit {code}, no input kept, see {log}"
        finding = f"{''.join(said[0]) if said else 'ended'}: {inputs_found}"
    features = "{} / {} / {}".format(*covered[-1]) if covered else "-"
    return Outcome(target, int(counted[-1]) if counted else 0, time.monotonic() - began, features, finding)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="all", help=f"of {', '.join(TARGETS)}; separated by commas")
    parser.add_argument("--seconds", type=float, default=3600, help="for all targets together")
    parser.add_argument("--runs", type=int, default=-1, help="inputs of a target, if fewer than its time allows")
    parser.add_argument("--corpus", type=Path, default=Path("runs/fuzz"), help="folder for inputs and findings")
    parser.add_argument("--input", type=Path, help="run this input alone")
    given = parser.parse_args()
    names = TARGETS if given.targets == "all" else given.targets.split(",")
    if unknown := sorted(set(names) - set(TARGETS)):
        parser.error(f"--targets: expected some of {', '.join(TARGETS)}, got {', '.join(unknown)}")
    if given.input and (len(names) != 1 or not given.input.is_file()):
        parser.error(f"--input: expected a file and one target, got {given.input} and {', '.join(names)}")
    outcomes, end = [], time.monotonic() + given.seconds
    print(f"{'target':<12}{'executions':>12}{'seconds':>9}  {'edges / features / inputs':<28}finding")
    for done, name in enumerate(names):
        share = max(1.0, (end - time.monotonic()) / (len(names) - done))
        found = fuzz(name, given.corpus, share, given.runs, given.input)
        print(
            f"{name:<12}{found.executions:>12,}{found.seconds:>9.0f}  {found.features:<28}{found.finding}", flush=True
        )
        outcomes.append(found)
    findings = sum(bool(found.finding) for found in outcomes)
    print(f"{sum(found.executions for found in outcomes):,} executions, {findings} findings")
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
