"""What the build may do: instruction sets beyond the plainest are named for the kernels alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(CMAKE is None or shutil.which("c++") is None, reason="needs cmake and a C++ compiler")
def test_only_kernels_are_built_for_more_than_the_plainest_processor(tmp_path):
    options = ("WORLDMODELS_BUILD_PYTHON=OFF", "WORLDMODELS_BUILD_TESTS=ON", "CMAKE_EXPORT_COMPILE_COMMANDS=ON")
    subprocess.run(
        [CMAKE, "-S", ROOT, "-B", tmp_path, *(f"-D{option}" for option in options)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    assert len(commands) > 15
    flagged = set()
    for entry in commands:
        flags = entry["command"].split()
        assert not {"-march=native", "-mtune=native", "-ffast-math", "-Ofast"} & set(flags)
        if any(flag.startswith("-m") for flag in flags):
            flagged.add(Path(entry["file"]).relative_to(ROOT).as_posix())
    # baseline.cpp and dispatch.cpp are what a machine without any of these runs
    assert flagged <= {f"csrc/kernels/{level}.cpp" for level in ("avx2", "avx512", "avx512_bf16", "neon")}
