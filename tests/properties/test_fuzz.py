"""The fuzzer runs: every target takes some inputs without a finding, and a finding is told with its input."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("atheris", reason="wants atheris: pip install -c constraints.txt atheris")


def load(name):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


FUZZ = load("fuzz")


def fuzz(*arguments):
    line = [sys.executable, ROOT / "scripts" / "fuzz.py", *arguments]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=280, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("target", FUZZ.TARGETS)
def test_a_target_takes_some_inputs(tmp_path, target):
    done = fuzz("--targets", target, "--runs", 100, "--seconds", 60, "--corpus", tmp_path)
    assert done.returncode == 0, done.stdout + (tmp_path / target / "log.txt").read_text()[-3000:]
    name, executions = done.stdout.splitlines()[-2].split()[:2]
    assert name == target and int(executions.replace(",", "")) > 0
    assert any((tmp_path / target / "inputs").iterdir())


FAULTY = """
import sys
import atheris
atheris.Setup([sys.argv[0], *sys.argv[3:]], lambda data: 1 / 0)
atheris.Fuzz()
"""


def test_a_finding_is_told_with_its_input(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text(FAULTY)
    monkeypatch.setattr(FUZZ, "_WORKER", worker)
    outcome = FUZZ.fuzz("faulty", tmp_path, 20, -1)
    error, path = outcome.finding.rsplit(": ", 1)
    assert error == "ZeroDivisionError: division by zero"
    assert Path(path).is_file() and Path(path).parent == tmp_path / "faulty" / "findings"


def test_arguments_are_named():
    done = fuzz("--targets", "nothing")
    assert done.returncode == 2 and "--targets: expected some of tensors, " in done.stderr
