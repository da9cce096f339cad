"""Importing: quick, alone, in either order, and with one OpenMP runtime."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import worldmodels

HEAVY = ("torch", "scipy", "vizdoom", "h5py", "matplotlib", "safetensors", "PIL", "pygame")


def run(code, *, env=None):
    """What a fresh interpreter prints last, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_loads_nothing_heavy_and_few_modules():
    """What an import costs is what it loads: Gymnasium, where the environments are registered, and little of ours."""
    code = f"""
import json, sys
before = set(sys.modules)
import worldmodels
dir(worldmodels)
loaded = sorted(set(sys.modules) - before)
print(json.dumps([loaded, [name for name in {HEAVY} if name in sys.modules]]))
"""
    loaded, heavy = run(code)
    assert heavy == []
    own = {name.removeprefix("worldmodels.") for name in loaded if name.startswith("worldmodels.")}
    assert own <= {"envs", "envs.registration", "support", "support.forks", "support.openmp"}


def loaded_by(line, *prefixes):
    """Modules of some packages that a fresh interpreter loads for a line of code."""
    code = f"""
import json, sys
{line}
print(json.dumps(sorted(n for n in sys.modules if any(n == p or n.startswith(p + ".") for p in {prefixes}))))
"""
    return run(code)


@pytest.mark.parametrize(
    "line", ["import worldmodels.cmaes", "from worldmodels import CMAES", "import worldmodels.cli"]
)
def test_cmaes_and_the_command_load_neither_torch_nor_scipy(line):
    assert loaded_by(line, "torch", "scipy") == []


def test_pretrained_models_load_without_the_compiler_of_torch():
    """It takes as long to import as torch itself."""
    lines = "import worldmodels; worldmodels.Dream.pretrained('takecover'); worldmodels.Agent.pretrained('takecover')"
    assert loaded_by(lines, "torch._dynamo", "sympy") == []


@pytest.mark.parametrize("packages", ["cmaes", "dream", "data envs models rollout training analysis"])
def test_the_library_loads_nothing_of_the_pipeline(packages):
    """Every module of these packages."""
    lines = "; ".join(f"import {name}" for package in packages.split() for name in modules_of(package))
    assert loaded_by(lines, "worldmodels.pipeline", "worldmodels.cli") == []


def modules_of(package):
    """Names of a package of worldmodels and of all its modules."""
    folder = Path(worldmodels.__file__).parent / package
    paths = [path.relative_to(folder.parent.parent).with_suffix("") for path in sorted(folder.rglob("*.py"))]
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


@pytest.mark.parametrize("name", ["CMAES", "Controller", "__version__"])
def test_what_needs_no_torch_loads_none(name):
    code = (
        f"import json, sys, worldmodels as wm; wm.{name}; print(json.dumps([n for n in {HEAVY} if n in sys.modules]))"
    )
    assert run(code) == []


@pytest.mark.parametrize("module", ["worldmodels.__main__", "worldmodels.pipeline.worker"])
def test_a_process_that_only_plays_loads_no_torch(module):
    """A spawned worker imports the command that started it, and what it works with."""
    assert run(f"import json, sys, {module}; print(json.dumps([n for n in sys.modules if n == 'torch']))") == []


def test_names_are_all_there_for_people_and_for_type_checkers():
    assert set(worldmodels.__all__) <= set(dir(worldmodels))
    for name in worldmodels.__all__:
        assert getattr(worldmodels, name).__class__ is not None
    checked = next(
        node
        for node in ast.parse(inspect.getsource(worldmodels)).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {alias.name: line.module for line in checked.body for alias in line.names}
    assert seen == worldmodels._HOME
    assert set(seen) | {"__version__"} == set(worldmodels.__all__)
    with pytest.raises(AttributeError, match="'worldmodels' has no attribute 'Dreams'"):
        worldmodels.Dreams  # noqa: B018


@pytest.mark.parametrize(
    "imports",
    [
        "import worldmodels, gymnasium",
        "import gymnasium, worldmodels",
        "import worldmodels.envs.policies, gymnasium",
    ],
)
def test_environments_are_registered_in_either_order(imports):
    code = f"""
import json, sys
{imports}
ids = sorted(name for name in gymnasium.registry if name.startswith("worldmodels/"))
print(json.dumps([ids, [type(finder).__module__ for finder in sys.meta_path]]))
"""
    ids, finders = run(code)
    assert ids == [f"worldmodels/{name}-v0" for name in ("CarRacing", "Dream", "Pendulum", "TakeCover")]
    assert not [name for name in finders if name.startswith("worldmodels")]


def test_gymnasium_imports_the_package_that_an_id_names():
    code = """
import json, sys, gymnasium
assert "worldmodels" not in sys.modules
print(json.dumps(gymnasium.make("worldmodels:worldmodels/Dream-v0").spec.id))
"""
    assert run(code) == "worldmodels/Dream-v0"


def test_a_missing_gymnasium_is_missed_only_when_it_is_asked_for():
    code = """
import json, sys
sys.modules["gymnasium"] = None
import worldmodels
try:
    import gymnasium
except ModuleNotFoundError as error:
    print(json.dumps(error.name))
"""
    assert run(code) == "gymnasium"


RUNTIMES = """
import pathlib
maps = pathlib.Path("/proc/self/maps").read_text().split()
runtimes = sorted({path for path in maps if path.startswith("/") and "omp" in path.rsplit("/", 1)[1].split(".")[0]
                   and path.rsplit("/", 1)[1].startswith(("libgomp", "libomp", "libiomp"))})
"""
ROUNDS = """
import time, numpy as np
dream = worldmodels.Dream.pretrained("takecover", max_steps=20)
params = np.zeros((16, dream.controller.size))
a = torch.ones(256, 256)
def fastest(work, rounds=60):
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
timed = [fastest(lambda: dream.rollout(params, 4)), fastest(lambda: [a @ a for _ in range(10)])]
"""
ORDERS = {
    "core first": "import json, worldmodels, worldmodels._core, torch",
    "torch first": "import json, torch, worldmodels, worldmodels._core",
    "by name": "import json, worldmodels, torch",
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("order", ORDERS)
def test_one_openmp_runtime_serves_torch_and_the_core(order):
    code = f"""
{ORDERS[order]}
import numpy as np
es = worldmodels.CMAES(np.zeros(64), 1.0, seed=1, num_threads=2)
es.ask()
torch.set_num_threads(2)
torch.ones(512, 512) @ torch.ones(512, 512)
{RUNTIMES}
print(json.dumps(runtimes))
"""
    assert len(run(code)) == 1, run(code)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_neither_is_slower_for_being_imported_second():
    """The fastest of many short rounds of both, in processes that take turns; more of them beside a busy process."""
    found = {order: [] for order in ("core first", "torch first")}

    def ratios():
        for what in ("rollout", "matmul"):
            fastest = [min(times[what == "matmul"] for times in found[order]) for order in found]
            print(f"{what}: {', '.join(f'{order} {time:.4f} s' for order, time in zip(found, fastest, strict=True))}")
            yield max(fastest) / min(fastest)

    for attempt in range(16):
        for order, times in found.items():
            times.append(run(f"{ORDERS[order]}\n{ROUNDS}\nprint(json.dumps(timed))"))
        if attempt >= 3 and max(ratios()) < 1.5:
            return
    pytest.fail(f"ratios: {list(ratios())}")
