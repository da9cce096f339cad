"""Clusters: results bit-identical to one process on any number of workers and nodes; lost work units are rerun."""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from test_evaluators import make_evaluator

from cluster_work import SHAPE, FailingJob, SleepingEvaluator, SquareJob, ThreadedSquareJob
from clusters import joined, make_dream, make_dreams, node, nodes
from worldmodels.rollout.evaluators.distributed import DistributedEvaluator, GuidedQueue, Part
from worldmodels.rollout.evaluators.dream import DreamEvaluator
from worldmodels.support import cluster_scheduling, ray_cluster, ray_session, ray_workers
from worldmodels.support.cluster import (
    ClusterAddress,
    Needs,
    StaticQueue,
    WorkUnit,
    cluster_address,
    common_level,
    use_cluster,
    validate_node,
)
from worldmodels.support.cluster_scheduling import Usage
from worldmodels.support.simd import simd_level
from worldmodels.support.versions import versions

PARAMS = np.random.default_rng(1).normal(0, 1, (12, SHAPE.size)).astype(np.float32)


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def three():
    """Three nodes of eight CPUs in all, and the cluster that the package sees."""
    with nodes(2, 3, 3) as cluster, joined(cluster) as ours:
        yield cluster, ours


@pytest.fixture
def no_speculation(monkeypatch):
    """Without speculative execution, which could complete the work unit of a dead worker before it is resubmitted."""
    monkeypatch.setattr(cluster_scheduling, "_MIN_STRAGGLER_SECONDS", 100.0)


def numbers(count=12):
    return StaticQueue([WorkUnit(1, number) for number in range(count)])


class OpenQueue:
    """Queue of numbers that ends when the test sets `enough`, or after minutes."""

    def __init__(self):
        self.taken, self.enough, self.began = 0, False, time.monotonic()

    def take(self, num_workers):
        if self.enough or time.monotonic() - self.began > 200:
            return None
        self.taken += 1
        return WorkUnit(1, self.taken - 1)

    def record(self, unit, seconds):
        pass


def squares(cluster, job, count=12):
    """Compute squares on a cluster and check them; return the ids of the processes."""
    found = list(cluster.run(cluster.prepare(job), numbers(count)))
    assert sorted(unit.data for unit, _ in found) == list(range(count))
    assert all(value[0] == unit.data**2 for unit, value in found)
    return {value[1] for _, value in found}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("local:8", (8, "")),
        ("local:auto", (0, "")),
        ("auto", (None, "auto")),
        ("10.0.0.1:6379", (None, "10.0.0.1:6379")),
        ("[::1]:6379", (None, "[::1]:6379")),
    ],
)
def test_addresses(text, expected):
    assert cluster_address(text) == ClusterAddress(*expected)


@pytest.mark.parametrize(
    "text", ["", "local", "local:0", "local:x", "local:99999", "host", "host:", ":6379", "a b:1", "ray://h:1"]
)
def test_other_addresses_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"^expected local:N, local:auto, auto or HOST:PORT.*, got"):
        cluster_address(text)


@pytest.mark.parametrize("shape", [(1, 1024), (64, 16), (7, 5), (1, 1), (3, 1)])
@pytest.mark.parametrize("seconds", [None, 1e-6, 0.01, 3.0])
@pytest.mark.parametrize("batch", [1, 20])
def test_guided_scheduling_covers_an_evaluation_once(shape, batch, seconds):
    candidates, episodes = shape
    params = np.arange(candidates, dtype=np.float32)[:, None]
    queue = GuidedQueue(Part(params, episodes, 5, 7, 0, False), batch, seconds)
    seen, sizes = np.zeros(shape, int), []
    while (unit := queue.take(8)) is not None:
        part = unit.data
        row, column = part.first_candidate - 5, part.first_episode - 7
        np.testing.assert_array_equal(part.params[:, 0], np.arange(row, row + len(part.params)))
        seen[row : row + len(part.params), column : column + part.episodes] += 1
        assert unit.size == len(part.params) * part.episodes
        sizes.append(unit.size)
    assert (seen == 1).all()
    if seconds is None and candidates == 1:
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] == -(-episodes // 8) and sizes[-1] < 1.5 * min(batch, sizes[0])
    if seconds is None and shape == (64, 16) and batch == 20:
        assert min(sizes) >= 16  # whole candidates


@pytest.mark.parametrize("threaded", [False, True])
def test_results_on_three_nodes_are_bit_identical_to_one_process(three, threaded):
    _, cluster = three
    evaluator = DistributedEvaluator(cluster, make_dreams(), Needs(), threaded=threaded)
    alone = DreamEvaluator(make_dream(), 1)
    assert (evaluator.metadata, evaluator.unit, evaluator.controller) == (alone.metadata, alone.unit, alone.controller)
    for params, episodes, common in ((PARAMS, 9, False), (PARAMS, 4, True), (PARAMS[:1], 100, False)):
        told = []
        options = {"seed": 5, "common_random_numbers": common, "first_candidate": 2, "first_episode": 3}
        played = evaluator.play(params, episodes, on_progress=lambda *now, told=told: told.append(now), **options)
        expected = alone.play(params, episodes, on_progress=quiet, **options)
        np.testing.assert_array_equal(played.returns, expected.returns)
        np.testing.assert_array_equal(played.lengths, expected.lengths)
        assert told == sorted(told) and told[-1] == (
            expected.lengths.size,
            expected.lengths.size,
            expected.lengths.sum(),
        )
    evaluator.close()


def test_real_episodes_are_bit_identical_to_one_process(three):
    _, cluster = three
    alone = make_evaluator()
    params = np.random.default_rng(0).normal(0, 1, (5, 32)).astype(np.float32)
    evaluator = DistributedEvaluator(cluster, partial(toy_evaluator), Needs(modules=("toy_env",)))
    for common in (False, True):
        options = {"seed": 1, "common_random_numbers": common, "on_progress": quiet}
        played, expected = evaluator.play(params, 6, **options), alone.play(params, 6, **options)
        np.testing.assert_array_equal(played.returns, expected.returns)
        np.testing.assert_array_equal(played.lengths, expected.lengths)
    alone.close()


def toy_evaluator(num_threads):
    return make_evaluator(workers=num_threads)


@pytest.mark.slow
def test_eight_workers_are_busy_until_the_end(three):
    """Episodes of 5 to 95 ms: at least nine tenths of the workers' time is spent on them, the tail included."""
    _, cluster = three
    evaluator = DistributedEvaluator(cluster, SleepingEvaluator, Needs())
    evaluator.play(PARAMS, 4, seed=0, common_random_numbers=False, on_progress=quiet)  # the workers open it
    assert cluster.num_workers == 8
    cluster.usage = Usage()
    played = evaluator.play(np.tile(PARAMS, (6, 1)), 16, seed=0, common_random_numbers=False, on_progress=quiet)
    assert (played.lengths == SleepingEvaluator(1).play(np.tile(PARAMS, (6, 1)), 16).lengths).all()
    assert cluster.usage.utilization >= 0.9, cluster.usage
    assert cluster.usage.busy > played.lengths.sum() / 1000


def test_a_threaded_job_runs_in_one_process_of_each_node(three, tmp_path, no_speculation):
    """Also after that process has died."""
    _, cluster = three
    pool = cluster._pool
    until = time.monotonic() + 100
    while not all(worker.ready and worker not in pool.superseded.values() for worker in pool.workers):
        assert time.monotonic() < until
        squares(cluster, SquareJob(tmp_path, seconds=0.1))
    expected = {node["NodeID"]: node["Resources"]["CPU"] for node in pool.nodes().values()}

    def processes(folder, fault=""):
        """Node and threads of each process, when at least ten work units are done and every node has done one."""
        job = cluster.prepare(ThreadedSquareJob(folder, fault, 0.05), threaded=True)
        queue, by_pid, found = OpenQueue(), {}, []
        for _, (square, pid, *rest) in cluster.run(job, queue):
            found.append(square)
            by_pid[pid] = tuple(rest)
            queue.enough = len(found) >= 10 and {node for node, _ in by_pid.values()} == expected.keys()
        assert queue.enough and sorted(found) == [number**2 for number in range(queue.taken)]
        return by_pid

    by_pid = processes(tmp_path)
    assert sorted(by_pid.values()) == sorted(expected.items())
    assert processes(tmp_path).keys() == by_pid.keys()
    (tmp_path / "other").mkdir()
    assert set(processes(tmp_path / "other", "kill").values()) == set(expected.items())
    assert cluster.threads_per_worker(True) == 3 and cluster.threads_per_worker(False) == 1


def test_a_worker_that_dies_is_replaced_and_its_work_unit_resubmitted(three, tmp_path, capfd, no_speculation):
    _, cluster = three
    squares(cluster, SquareJob(tmp_path, "kill", 0.05))
    assert (tmp_path / "done").exists()
    assert "a worker died" in capfd.readouterr().err


def test_a_worker_whose_game_is_lost_is_replaced(three, tmp_path, capfd):
    _, cluster = three
    squares(cluster, SquareJob(tmp_path, "lose"))
    assert "a worker died (the engine is gone); it is replaced" in capfd.readouterr().err


def test_speculative_execution_of_a_straggler(three, tmp_path, monkeypatch):
    _, cluster = three
    began = time.monotonic()
    squares(cluster, SquareJob(tmp_path, "hang", 0.05))
    assert time.monotonic() - began < 60  # of 600 s
    assert len(cluster._pool.superseded) == 1
    squares(cluster, SquareJob(tmp_path), 4)
    monkeypatch.setattr(ray_workers, "_SUPERSEDED_TIMEOUT", 0.0)
    time.sleep(1.5)  # the nodes are refreshed every second
    squares(cluster, SquareJob(tmp_path), 4)
    assert not cluster._pool.superseded  # the straggler was killed


def test_another_job_does_not_wait_for_a_straggler(three, tmp_path, monkeypatch):
    """Neither for its description of the node, nor as the one process of the node that runs a threaded job."""
    _, cluster = three
    squares(cluster, SquareJob(tmp_path, "hang", 0.05))
    straggler = next(iter(cluster._pool.superseded.values()))
    cluster._pool.workers.sort(key=lambda worker: worker is not straggler)
    began = time.monotonic()
    squares(cluster, SquareJob(tmp_path, needs=Needs(modules=("json",))), 4)
    job = cluster.prepare(ThreadedSquareJob(tmp_path), threaded=True)
    assert len(list(cluster.run(job, numbers(6)))) == 6
    assert time.monotonic() - began < 30  # of 600 s
    monkeypatch.setattr(ray_workers, "_SUPERSEDED_TIMEOUT", 0.0)
    time.sleep(1.5)  # the nodes are refreshed every second
    squares(cluster, SquareJob(tmp_path), 4)


def test_a_worker_that_died_before_the_job(three, tmp_path):
    import ray

    _, cluster = three
    for needs in (Needs(modules=("csv",)), Needs()):
        ray.kill(cluster._pool.workers[0].actor)
        squares(cluster, SquareJob(tmp_path, needs=needs), 4)


def test_a_job_that_fails_to_open_raises_its_error_every_time(three):
    _, cluster = three
    job = cluster.prepare(FailingJob())
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^folder: expected one, got none$"):
            list(cluster.run(job, numbers(20)))


def test_an_error_is_that_of_the_work_unit(three, tmp_path):
    _, cluster = three
    with pytest.raises(ValueError, match=r"^number: expected another one, got 3$"):
        squares(cluster, SquareJob(tmp_path, "fail"))
    squares(cluster, SquareJob(tmp_path), 4)


def test_workers_that_die_again_and_again_end_the_run(three, tmp_path, monkeypatch, no_speculation):
    _, cluster = three
    monkeypatch.setattr(ray_cluster, "_MAX_RESTARTS", -100)
    with pytest.raises(RuntimeError, match=r"^cluster: 1 workers died, the last one: "):
        squares(cluster, SquareJob(tmp_path, "kill"))


def test_a_node_leaves_and_another_one_joins(three, tmp_path):
    simulated, cluster = three
    leaving, joins = min(simulated.worker_nodes, key=lambda one: one.node_id), None
    queue, found = OpenQueue(), {}
    for unit, (square, _) in cluster.run(cluster.prepare(SquareJob(tmp_path, seconds=0.1)), queue):
        assert unit.data not in found
        found[unit.data] = square
        if len(found) == 10:
            simulated.remove_node(leaving, allow_graceful=False)
            joins = simulated.add_node(**node(3))
        if joins and any(worker.node == joins.node_id and worker.assigned for worker in cluster._pool.workers):
            queue.enough = True
    assert queue.enough and found == {number: number**2 for number in range(queue.taken)}


def test_a_node_without_the_module_or_the_weights_is_refused_by_name(three, tmp_path):
    _, cluster = three
    missing = tmp_path / "weights"
    needs = Needs(modules=("no_such_game",), files=((str(missing), 7),))
    with pytest.raises(RuntimeError) as refused:
        squares(cluster, SquareJob(tmp_path, needs=needs))
    text = str(refused.value)
    assert text.count("expected to import no_such_game, got ModuleNotFoundError") == 3
    assert text.count(f"expected {missing} of 7 bytes (on a file system of all nodes), got none") == 3
    assert re.search(r"\([\d.]+, node [0-9a-f]+\)", text)
    squares(cluster, SquareJob(tmp_path), 4)


def test_a_refused_node_is_validated_again_by_the_next_run(three, tmp_path):
    _, cluster = three
    late = tmp_path / "late"
    job = cluster.prepare(SquareJob(tmp_path, needs=Needs(files=((str(late), 3),))))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=rf"expected {late} of 3 bytes .*, got none"):
            list(cluster.run(job, numbers(4)))
    late.write_text("abc")
    assert len(list(cluster.run(job, numbers(4)))) == 4


def test_an_excluded_node_is_validated_again_for_another_job(three, tmp_path):
    _, cluster = three
    pool = cluster._pool
    node = pool.workers[0].node
    pool.refuse(node, "n: expected a file, got none")
    assert not [worker for worker in pool.workers if worker.node == node]
    queue = OpenQueue()
    for _ in cluster.run(cluster.prepare(SquareJob(tmp_path, seconds=0.1, needs=Needs(modules=("wave",)))), queue):
        queue.enough = any(worker.node == node and worker.ready for worker in pool.workers)
    assert queue.enough


@pytest.mark.slow
def test_a_node_with_another_version_is_refused_and_one_with_another_level_pinned(three, tmp_path, capfd):
    """A node with another version that joins later is excluded; one that is there at the start is an error."""
    simulated, cluster = three
    (tmp_path / "other" / "worldmodels").mkdir(parents=True)
    (tmp_path / "other" / "worldmodels" / "__init__.py").write_text('__version__ = "0.0.1"\n')
    stranger, queue = None, OpenQueue()
    for _ in cluster.run(cluster.prepare(SquareJob(tmp_path, seconds=0.1)), queue):
        queue.enough = bool(cluster._pool.refused)
        if stranger is None:
            stranger = simulated.add_node(**node(1, PYTHONPATH=os.pathsep.join([str(tmp_path / "other"), *sys.path])))
    cluster._pool.refused.clear()
    time.sleep(1.5)  # the nodes are refreshed every second
    with pytest.raises(RuntimeError, match=r"cluster: .*: expected worldmodels .*, as the driver has, got 0\.0\.1"):
        squares(cluster, SquareJob(tmp_path), 4)
    simulated.remove_node(stranger)
    slow = simulated.add_node(**node(1, WORLDMODELS_SIMD="baseline"))
    time.sleep(1.5)
    squares(cluster, SquareJob(tmp_path), 4)
    said = capfd.readouterr().err
    assert f"SIMD level {simd_level()} instead of baseline, bit-identical to the driver's" in said
    simulated.remove_node(slow)


@pytest.fixture
def apart(monkeypatch):
    """Ray as it is before it starts: it notes how it is started, and fails."""
    started = []
    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_cluster.ray, "init", lambda **options: started.append(options) or 1 / 0)
    monkeypatch.setattr(ray_cluster.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    return started


def test_a_local_cluster_is_not_that_of_the_environment(apart):
    with pytest.raises(RuntimeError, match=r"^--cluster: Ray does not start on this machine: division by zero$"):
        ray_cluster.RayCluster(ClusterAddress(1))
    assert [options["address"] for options in apart] == ["local"]


def test_a_local_cluster_that_others_could_reach_does_not_start(apart, monkeypatch):
    monkeypatch.setattr(ray_cluster.ray.util, "get_node_ip_address", lambda: "192.0.2.2")
    with pytest.raises(RuntimeError, match=r"^--cluster: expected Ray to listen on the loopback .*, got 192\.0\.2\.2"):
        ray_cluster.RayCluster(ClusterAddress(1))
    assert not apart


def test_a_service_that_is_not_ray_is_not_joined(apart, monkeypatch):
    monkeypatch.setattr(ray_session, "_REPLY_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as service:
        address = f"127.0.0.1:{service.getsockname()[1]}"
        with pytest.raises(
            RuntimeError, match=f"^--cluster: expected the head of a Ray cluster at {address}, got none"
        ):
            ray_cluster.RayCluster(ClusterAddress(None, address))
    assert not apart


def test_the_callers_own_session_of_ray_is_left_alone(apart, monkeypatch):
    ended = []
    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray_cluster.ray, "shutdown", lambda: ended.append(True))
    with pytest.raises(RuntimeError, match=r"^--cluster: expected a process without a session of Ray, got one"):
        ray_cluster.RayCluster(ClusterAddress(1))
    assert not apart and not ended


def test_missing_ray_is_named(monkeypatch):
    for module in ("ray_cluster", "ray_workers", "ray_actor", "ray_session"):
        monkeypatch.delitem(sys.modules, f"worldmodels.support.{module}")
    monkeypatch.setitem(sys.modules, "ray", None)
    message = re.escape("--cluster: ray is not installed: pip install 'worldmodels-rl[ray]'")
    with pytest.raises(ModuleNotFoundError, match=message), use_cluster(ClusterAddress(None, "head:6379")):
        pass


DRIVER = {"versions": {**versions(), "machine": "x86_64", "vizdoom": "1.3.0"}, "simd_level": "avx512"}
DESCRIPTION = {"versions": DRIVER["versions"], "simd_levels": ["baseline", "avx2"], "missing": {}, "files": {}}


@pytest.mark.parametrize(
    ("changes", "needs", "message"),
    [
        ({}, Needs(), None),
        ({"versions": {"worldmodels": "0.0.1"}}, Needs(), "n: expected worldmodels .*, as the driver has, got 0.0.1"),
        (
            {"versions": {**DRIVER["versions"], "machine": "aarch64"}},
            Needs(),
            "n: expected machine x86_64, .* got aarch64",
        ),
        ({"versions": {**DRIVER["versions"], "vizdoom": "1.2"}}, Needs(), None),
        (
            {"versions": {**DRIVER["versions"], "vizdoom": "1.2"}},
            Needs(packages=("vizdoom",)),
            "n: expected vizdoom 1.3.0, .*",
        ),
        (
            {"simd_levels": ["baseline"]},
            Needs(),
            "n: expected a SIMD level bit-identical to the driver's avx512, got baseline",
        ),
        ({}, Needs(bfloat16=True), "n: expected a CPU with AVX-512 BF16, .*"),
        ({"files": {"/f": 3}}, Needs(files=(("/f", 4),)), "n: expected /f of 4 bytes .*, got one of 3 bytes"),
    ],
)
def test_validation_of_a_node(changes, needs, message):
    found = validate_node("n", {**DESCRIPTION, **changes}, DRIVER, needs)
    assert found == [] if message is None else len(found) == 1
    if message:
        assert re.fullmatch(message, found[0]), found


def test_the_common_level_is_bit_identical_to_the_drivers():
    assert common_level(["baseline", "avx2", "avx512"], "avx2") == "avx512"
    assert common_level(["baseline", "avx2", "avx512"], "baseline") == "baseline"
    assert common_level(["baseline"], "avx2") is None
    assert common_level(["baseline", "neon"], "avx2") == "neon"


def test_without_the_flag_nothing_of_ray_is_imported():
    code = """
import sys
import worldmodels.cli, worldmodels.pipeline.evolution, worldmodels.pipeline.collection, worldmodels.pipeline.encoding
import worldmodels.pipeline.evaluation, worldmodels.analysis.playback, worldmodels.rollout.evaluators.distributed
assert not [name for name in sys.modules if name.split(".")[0] == "ray"]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
