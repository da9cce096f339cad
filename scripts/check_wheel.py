"""What an installed wheel must do, with nothing but its dependencies: import, dream and evolve."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

began = time.perf_counter()
import worldmodels as wm

seconds = time.perf_counter() - began
heavy = [name for name in ("torch", "gymnasium", "vizdoom") if name in sys.modules]
assert not heavy, f"expected an import that loads nothing heavy, got {heavy}"

import numpy as np

from worldmodels.support.simd import simd_level


def main() -> None:
    home = Path(wm.__file__).parent
    assert "site-packages" in home.parts, f"expected the installed package, got {home}"
    print(f"worldmodels {wm.__version__}, imported in {seconds:.2f} s, SIMD level {simd_level()} of {wm.simd_levels()}")

    starter = home / "envs" / "engine" / "vizdoom"
    assert os.access(starter, os.X_OK), f"expected a script that can be executed, got {starter}"

    wasm = home / "web" / "assets" / "dream.wasm"
    assert wasm.read_bytes()[:4] == b"\0asm", f"expected WebAssembly, got {wasm}"

    dream = wm.Dream.pretrained("takecover", temperature=1.15, max_steps=200)
    size = dream.controller.size
    es = wm.CMAES(np.zeros(size), 0.1, popsize=8, seed=1)
    for generation in range(3):
        candidates = es.ask()
        result = dream.rollout(candidates, episodes=4, seed=generation)
        again = dream.rollout(candidates, episodes=4, seed=generation, num_threads=1)
        assert np.array_equal(result.returns, again.returns), "expected the same bits for any number of threads"
        es.tell(candidates, -result.returns.mean(axis=1))
        print(f"generation {generation}: {result.lengths.mean():.0f} steps survived in the dream")
    assert es.result.iterations == 3 and np.isfinite(es.mean).all() and es.mean.any()

    import torch

    torch.ones(256, 256) @ torch.ones(256, 256)
    if sys.platform == "linux":
        mapped = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
        runtimes = sorted(str(path) for path in mapped if path.name.startswith(("libgomp", "libomp", "libiomp")))
        print("OpenMP runtimes:", *runtimes)
        # PyTorch's own, under its own name: nothing to share where its wheels rename it.
        shared = (Path(torch.__file__).parent / "lib" / "libgomp.so.1").is_file()
        assert not shared or len(runtimes) == 1, "expected the runtime to be shared with PyTorch"


if __name__ == "__main__":
    main()
