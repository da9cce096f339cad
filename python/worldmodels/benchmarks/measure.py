"""Throughput of dreams, training and games next to other implementations; as a table and JSON."""

from __future__ import annotations

import importlib.util
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from worldmodels.benchmarks import engine, training, vae
from worldmodels.benchmarks.case import Case, Unit
from worldmodels.benchmarks.peers import JAXDream, NumPyDream, Peer, TorchDream
from worldmodels.benchmarks.worlds import (
    CANDIDATES,
    EPISODES,
    LONGEST,
    BenchmarkModel,
    carracing,
    doom,
    pretrained_world,
)
from worldmodels.dream.native import Dream, DreamResult
from worldmodels.support.cpu import available_cpus
from worldmodels.support.simd import Precision, multiply_add_rate, precisions, simd_level

_PEAK_SECONDS = 0.1
_CHECKED_STEPS = 4


@dataclass(frozen=True)
class Row:
    """Result of one benchmark: medians over the rounds.

    Attributes:
        name: Name of the benchmark.
        precision: Precision of the matrix products.
        threads: Number of threads.
        rate: Steps per second; frames per second where V is benchmarked.
        milliseconds: Duration of a step of the whole batch; None for benchmarks of throughput.
        fraction_of_peak: rate x operations of a step / peak rate of float32 multiply-adds on as many threads; 0 for
            games.
        idle_fraction: Fraction of the computed steps that no episode needed.
    """

    name: str
    precision: str
    threads: int
    rate: float
    milliseconds: float | None
    fraction_of_peak: float
    idle_fraction: float


def cases(peers: bool = True) -> Iterator[Callable[[], Case]]:
    """Yield factories of all benchmarks, in the order of the table. A factory raises RuntimeError if unsupported."""
    here = precisions()
    threads = sorted({1, available_cpus()})
    for world in (doom(), carracing()):
        for precision in here:
            for count in threads if world.name == "TakeCover" else threads[-1:]:
                yield partial(rollout_case, world, precision, count)
    for precision in here:
        yield partial(generation_case, doom(terminates=True), precision, available_cpus())
    for precision in here:
        yield partial(pretrained_case, precision, available_cpus())
    for precision in here:
        yield partial(vector_env_case, doom(), precision, available_cpus())
    for precision in here:
        yield partial(alone_case, doom(), precision)
    yield partial(env_case, doom())
    yield from training.cases(here, peers=peers)
    yield from vae.cases(here, peers=peers)
    yield from engine.cases(peers=peers)
    if peers:
        yield from peer_cases(doom())


def rollout_case(world: BenchmarkModel, precision: Precision, threads: int, steps: int = 48) -> Case:
    """Create the benchmark of a rollout of 64 controllers x 16 episodes of a fixed length."""
    dream, params = world.dream(precision), world.params(CANDIDATES)
    check_greedy(world, lambda greedy, steps: greedy.trace(params[0], max_steps=steps).z[-1:], precision)

    def play() -> tuple[int, int]:
        result, computed = dream.rollout_with_stats(params, EPISODES, max_steps=steps, num_threads=threads)
        return int(result.lengths.sum()), computed

    check_steps(play(), CANDIDATES * EPISODES * steps)
    return Case(f"{world.name}: rollout", precision, threads, world.flops, "steps/s", play)


def generation_case(world: BenchmarkModel, precision: Precision, threads: int) -> Case:
    """Create the benchmark of a rollout of 64 controllers x 16 episodes, 650 steps on average and 2100 at most."""
    case = _generation(f"{world.name}: rollout, uneven lengths", world, world.dream(precision), threads)
    check_lengths(world.dream(precision).rollout(world.params(CANDIDATES), EPISODES, num_threads=threads))
    return case


def pretrained_case(precision: Precision, threads: int) -> Case:
    """Create the benchmark of a generation: 64 controllers near the pretrained one x 16 episodes, temperature 1.15."""
    world = pretrained_world()
    return _generation(f"{world.name}: a generation", world, world.dream(precision, temperature=1.15), threads)


def _generation(name: str, world: BenchmarkModel, dream: Dream, threads: int) -> Case:
    params = world.params(CANDIDATES)

    def play() -> tuple[int, int]:
        result, computed = dream.rollout_with_stats(params, EPISODES, num_threads=threads)
        return int(result.lengths.sum()), computed

    return Case(name, dream.precision, threads, world.flops, "steps/s", play)


def vector_env_case(world: BenchmarkModel, precision: Precision, threads: int, steps: int = 32) -> Case:
    """Create the benchmark of ``DreamVectorEnv``: 1024 environments, with observations of z, c and h."""
    envs = CANDIDATES * EPISODES
    vector = _vector_env(world, precision, envs, threads)
    vector.reset(seed=0)
    actions = np.zeros((envs, world.mdnrnn.action_size), dtype=np.float32)

    def play() -> tuple[int, int]:
        for _ in range(steps):
            vector.step(actions)
        return steps * envs, steps * envs

    check_steps(play(), envs * steps)
    return Case(f"{world.name}: `DreamVectorEnv` of {envs:,}", precision, threads, world.flops, "steps/s", play)


def alone_case(world: BenchmarkModel, precision: Precision, steps: int = 1000) -> Case:
    """Create the benchmark of one controller in one episode."""
    dream, params = world.dream(precision), world.params(1)

    def play() -> tuple[int, int]:
        result, computed = dream.rollout_with_stats(params, 1, max_steps=steps, num_threads=1)
        return int(result.lengths.sum()), computed

    return Case(f"{world.name}: one dream", precision, 1, world.flops, "ms/step", play)


def env_case(world: BenchmarkModel, steps: int = 500) -> Case:
    """Create the benchmark of ``DreamEnv``, one Gymnasium environment."""
    from worldmodels.dream.env import DreamEnv

    env = DreamEnv(world.mdnrnn, world.initial_mu, world.initial_logvar)
    env.reset(seed=0)
    action = np.zeros(world.mdnrnn.action_size, dtype=np.float32)

    def play() -> tuple[int, int]:
        for _ in range(steps):
            env.step(action)
        return steps, steps

    return Case(f"{world.name}: one `DreamEnv`", "float32", 1, world.flops, "ms/step", play)


def peer_cases(world: BenchmarkModel) -> Iterator[Callable[[], Case]]:
    """Yield factories of the same world model in other libraries."""
    batch = np.repeat(world.params(CANDIDATES), EPISODES, axis=0)
    yield partial(peer_case, world, "NumPy, one dream", partial(NumPyDream, world, batch), "float32", 200)
    for compiled in (False, True):
        name = f"PyTorch, {'compiled' if compiled else 'eager'}"
        for precision in precisions():
            make = partial(TorchDream, world, batch, precision, compiled=compiled)
            yield partial(peer_case, world, name, make, precision, 24)
    if importlib.util.find_spec("jax"):
        yield partial(peer_case, world, "JAX, jit and scan", partial(JAXDream, world, batch), "float32", 24)
        alone = partial(JAXDream, world, batch[:1])
        yield partial(peer_case, world, "JAX, one dream", alone, "float32", 1000, unit="ms/step")


def peer_case(
    world: BenchmarkModel, name: str, make: Callable[[], Peer], precision: Precision, steps: int, unit: Unit = "steps/s"
) -> Case:
    """Create the benchmark of another implementation, after checking and compiling it."""
    peer = make()
    check_greedy(world, lambda greedy, count: peer.play(count, 0.0)[:1], precision)
    peer.play(steps, 1.0)

    def play() -> tuple[int, int]:
        peer.play(steps, 1.0)
        return steps * peer.lanes, steps * peer.lanes

    return Case(name, precision, available_cpus(), world.flops, unit, play)


def check_greedy(world: BenchmarkModel, last: Callable[[Any, int], Any], precision: Precision) -> None:
    """Check that a few steps at temperature 0 give the latents of the float32 dream.

    Raises:
        RuntimeError: They differ.
    """
    params = world.params(CANDIDATES)
    want = world.dream(temperature=0.0).trace(params[0], max_steps=_CHECKED_STEPS).z[-1]
    got = last(world.dream(precision, temperature=0.0), _CHECKED_STEPS)[0]
    error = float(np.abs(got - want).max())
    if not error < (1e-5 if precision == "float32" else 2e-3):
        raise RuntimeError(f"mismatch: the latents are off by {error:.2g}")


def check_steps(played: tuple[int, int], want: int) -> None:
    """Check that the requested number of steps was played and at least as many were computed.

    Raises:
        RuntimeError: A number is wrong.
    """
    steps, computed = played
    if steps != want or computed < steps:
        raise RuntimeError(f"mismatch: {steps} of {want} steps played, {computed} computed")


def check_lengths(result: DreamResult) -> None:
    """Check the lengths of a generation: mean 570 to 730, maximum 2,100.

    Raises:
        RuntimeError: They differ.
    """
    mean, longest = float(result.lengths.mean()), int(result.lengths.max())
    if not (570 < mean < 730 and longest == LONGEST):
        raise RuntimeError(f"mismatch: lengths of {mean:.0f} on average, {longest} at most")


def measure(makers: Iterable[Callable[[], Case]], rounds: int, report: Callable[[str], None]) -> list[Row]:
    """Time all benchmarks, interleaved in every round, each between two measurements of the peak.

    Args:
        makers: Factories of benchmarks, see :func:`cases`.
        rounds: Number of rounds; the table has medians.
        report: Callback for lines of progress and for the reasons of skipped benchmarks.
    """
    ready = []
    for make in makers:
        try:
            case = make()
        except (RuntimeError, ImportError) as error:
            report(f"skipped: {str(error).splitlines()[0]}")
            continue
        report(f"ready: {case.name}, {case.precision}, {case.threads} threads")
        ready.append(case)
    found: dict[int, list[tuple[float, float, float, float]]] = {index: [] for index in range(len(ready))}
    for number in range(rounds):
        for index, case in enumerate(ready):
            report(f"round {number + 1} of {rounds}: {case.name}, {case.precision}, {case.threads} threads")
            try:
                found[index].append(time_case(case))
            except (RuntimeError, OSError, MemoryError) as error:
                report(f"failed in round {number + 1}: {case.name}: {type(error).__name__}: {error}")
    rows = []
    for index, case in enumerate(ready):
        if not found[index]:
            continue
        rate, seconds, peak, idle = (statistics.median(values) for values in zip(*found[index], strict=True))
        milliseconds = 1e3 * seconds if case.unit == "ms/step" else None
        rows.append(Row(case.name, case.precision, case.threads, rate, milliseconds, peak, idle))
    return rows


def time_case(case: Case) -> tuple[float, float, float, float]:
    """Measure steps per second, seconds per step, fraction of the peak, and idle fraction."""
    before = multiply_add_rate("float32", case.threads, _PEAK_SECONDS)
    start = time.perf_counter()
    steps, computed = case.play()
    seconds = time.perf_counter() - start
    peak = (before + multiply_add_rate("float32", case.threads, _PEAK_SECONDS)) / 2
    return steps / seconds, seconds / steps, steps * case.flops / seconds / peak, 1 - steps / computed


def machine() -> dict[str, Any]:
    """Describe the machine."""
    from worldmodels.support.versions import versions

    peaks = {
        f"{precision}, {count} threads": multiply_add_rate(precision, count, 0.5) / 1e9
        for precision in precisions()
        for count in sorted({1, available_cpus()})
    }
    return {
        "cpu": _cpu(),
        "cores": available_cpus(),
        "simd": simd_level(),
        "peak_gflops": peaks,
        "versions": versions(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def as_json(rows: list[Row], info: dict[str, Any]) -> dict[str, Any]:
    """Collect all results as JSON."""
    return {"machine": info, "rows": [asdict(row) for row in rows]}


def as_table(rows: list[Row], info: dict[str, Any]) -> str:
    """Format all results as a Markdown table."""
    peaks = ", ".join(f"{name} {value:.0f}" for name, value in info["peak_gflops"].items())
    lines = [
        f"{info['cpu']}, {info['cores']} cores, SIMD level {info['simd']}; peak GFLOP/s of multiply-adds: {peaks}",
        "",
        "| | precision | threads | steps or frames/s | of the float32 peak | idle lanes |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        speed = f"{row.rate:,.0f}" if row.milliseconds is None else f"{row.rate:,.0f} ({row.milliseconds:.3f} ms)"
        idle = f"{100 * row.idle_fraction:.1f} %" if "rollout" in row.name else ""
        peak = f"{row.fraction_of_peak:.2f}" if row.fraction_of_peak else ""
        lines.append(f"| {row.name} | {row.precision} | {row.threads} | {speed} | {peak} | {idle} |")
    return "\n".join(lines)


def _vector_env(world: BenchmarkModel, precision: Precision, envs: int, threads: int) -> Any:
    from worldmodels.dream.env import DreamVectorEnv

    return DreamVectorEnv(
        world.mdnrnn,
        world.initial_mu,
        world.initial_logvar,
        num_envs=envs,
        max_steps=2**31 - 1,
        precision=precision,
        num_threads=threads,
    )
