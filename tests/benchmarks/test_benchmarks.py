import json
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodels import MDNRNN, Controller, ConvVAE
from worldmodels.benchmarks import engine, measure, peers, training, vae, worlds
from worldmodels.benchmarks.case import Case
from worldmodels.cli import main
from worldmodels.models.vae import Deconvolution, PointDeconvolution
from worldmodels.support.simd import multiply_add_rate, precisions, set_simd_level, simd_level, simd_levels


def small_world():
    model = MDNRNN(4, 1, 8, restart_input=True, done_head=True)
    with torch.no_grad():
        model.head.weight[0] = 0
        model.head.bias[0] = -100.0
    mu = np.zeros((1, 4), np.float32)
    return worlds.BenchmarkModel("small", model, Controller(4, 8, 1), mu, np.full_like(mu, -100))


def test_operations_of_a_step_are_the_papers():
    assert worlds.doom().flops == 2 * (4 * 512 * (66 + 512) + 961 * 512 + 1088)
    assert worlds.carracing().flops == 2 * (4 * 256 * (35 + 256) + 480 * 256 + 867)


def test_uneven_lengths_are_the_papers_and_few_lanes_are_idle():
    world = worlds.doom(terminates=True)
    result, computed = world.dream().rollout_with_stats(world.params(16), 16, max_steps=120)
    ended = result.lengths < 120
    expected = 1 - (1 - 1 / 682) ** 119
    assert abs(ended.mean() - expected) < 4 * (expected * (1 - expected) / 256) ** 0.5
    assert result.lengths.sum() <= computed <= 1.2 * result.lengths.sum()


def test_counted_steps_are_exact_where_every_lane_is_used():
    world = small_world()
    result, computed = world.dream().rollout_with_stats(world.params(64), 4, max_steps=5, num_threads=1)
    assert computed == result.lengths.sum() == 64 * 4 * 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("make", [peers.NumPyDream, lambda w, p: peers.TorchDream(w, p, "float32", compiled=False)])
def test_peers_play_the_same_dream(make, temperature):
    world = small_world()
    params = world.params(3)
    peer = make(world, params)
    last = peer.play(6, temperature)
    assert last.shape == (peer.lanes, 4)
    if temperature == 0:
        want = world.dream(temperature=0.0).trace(params[0], max_steps=6).z[-1]
        np.testing.assert_allclose(last[0], want, atol=1e-5)
    else:  # one standard deviation of a latent is about 1
        assert 0.1 < np.abs(last).mean() < 10


def test_a_mismatch_is_reported():
    world = small_world()
    with pytest.raises(RuntimeError, match=r"^mismatch: the latents are off by"):
        measure.check_greedy(world, lambda dream, steps: np.ones((1, 4)), "float32")
    with pytest.raises(RuntimeError, match=r"^mismatch: 3 of 4 steps"):
        measure.check_steps((3, 4), 4)


def test_table_and_json():
    def impossible():
        raise RuntimeError("no compiler\nand more")

    lines = []
    makers = [
        lambda: measure.rollout_case(small_world(), "float32", 1, steps=4),
        impossible,
        lambda: measure.alone_case(small_world(), "float32", steps=7),
        lambda: measure.vector_env_case(small_world(), "float32", 1, steps=3),
        lambda: measure.env_case(small_world(), steps=5),
    ]
    rows = measure.measure(makers, 1, lines.append)
    assert [row.name.partition(": ")[2] for row in rows] == [
        "rollout",
        "one dream",
        "`DreamVectorEnv` of 1,024",
        "one `DreamEnv`",
    ]
    assert "skipped: no compiler" in lines
    about = {"cpu": "a CPU", "cores": 2, "simd": "avx2", "peak_gflops": {"float32, 1 threads": 100.0}}
    table = measure.as_table(rows, about)
    assert "| small: rollout | float32 | 1 |" in table and "ms)" in table
    (first, *_) = json.loads(json.dumps(measure.as_json(rows, about)))["rows"]
    assert first["rate"] > 0 and first["fraction_of_peak"] > 0 and 0 <= first["idle_fraction"] < 1


def test_an_error_in_a_later_round_keeps_the_results():
    played, lines = [], []

    def play():
        played.append(1)
        if len(played) > 2:
            raise RuntimeError("a worker failed")
        return 10, 10

    (row,) = measure.measure([lambda: Case("one", "float32", 1, 0, "steps/s", play)], 3, lines.append)
    assert row.rate > 0 and lines[-1] == "failed in round 3: one: RuntimeError: a worker failed"


def halves_256_bits():
    """Whether this is a first EPYC or Ryzen, whose multiply-adds of 256 bits take two turns."""
    about = Path("/proc/cpuinfo")
    found = dict(re.findall(r"(?m)^(cpu family|model)\s*: (\d+)$", about.read_text() if about.exists() else ""))
    return found.get("cpu family") == "23" and int(found["model"]) < 0x30


def test_peak_grows_with_the_level():
    before = simd_level()
    try:
        rates = dict.fromkeys(simd_levels(), 0.0)
        if "avx2" not in rates:
            return
        for _ in range(60):  # in turns and until it holds: another process may have the core for a while
            for level in rates:
                set_simd_level(level)
                rates[level] = max(rates[level], multiply_add_rate("float32", 1, 0.02))
            if rates["avx2"] > (0.9 if halves_256_bits() else 1.2) * rates["baseline"]:
                return
        pytest.fail(f"expected a higher rate with AVX2, got {rates}")
    finally:
        set_simd_level(before)


def test_command_line_errors(capsys, tmp_path):
    assert main(["bench", "--rounds", "0"]) == 1
    assert "--rounds: expected an integer from 1 to 10000, got 0" in capsys.readouterr().err
    assert main(["bench", "--json", str(tmp_path / "missing" / "file.json")]) == 1
    assert "--json: no such folder" in capsys.readouterr().err


def test_every_level_has_the_precisions_that_it_names():
    before = simd_level()
    try:
        for level in simd_levels():
            set_simd_level(level)
            assert precisions()[0] == "float32"
            assert all(multiply_add_rate(precision, 1, 0.01) > 0 for precision in precisions())
    finally:
        set_simd_level(before)


@pytest.mark.parametrize("native", [True, False])
def test_training_counts_the_papers_operations(native):
    case = training.training_case(training.Shape(32, 3, 256, 2, 3), "float32", native=native)
    assert case.flops == 6 * 422_368
    assert case.play() == (6, 6)


@pytest.mark.slow
def test_games_count_the_frames_of_the_same_episodes(monkeypatch):
    monkeypatch.setattr(engine, "_EPISODES", 1)
    monkeypatch.setattr(engine, "_NUM_ENVS", 2)
    monkeypatch.setattr(engine, "_MAX_STEPS", 20)
    collecting, bare, evaluating = (make() for make in engine.cases(peers=True))
    frames, computed = collecting.play()
    assert frames == computed > 100
    assert collecting.play() == bare.play() == (frames, frames)
    assert evaluating.play() == (80, 80)  # two episodes of the agent and two of the policy
    row = measure.measure([lambda case=collecting: case], 1, lambda _: None)[0]
    assert row.fraction_of_peak == 0
    assert "| 0.00 |" not in measure.as_table([row], measure.machine())
    del collecting, bare, evaluating
    assert multiprocessing.active_children() == []


def test_no_benchmark_asks_for_a_precision_that_the_cpu_lacks():
    """PyTorch's rows included: the check of an answer runs the native dream in their precision."""
    before = simd_level()
    set_simd_level("baseline")
    try:
        asked = [word for make in measure.cases() for word in make.args if word in ("float32", "bfloat16")]
    finally:
        set_simd_level(before)
    assert len(asked) > 10
    assert set(asked) == {"float32"}


def test_operations_of_v():
    """39 million multiply-adds a frame, 15 of them in the encoder."""
    assert vae.flops(training=False) == pytest.approx(2 * 14.8e6, rel=0.01)
    assert vae.flops(training=True) == pytest.approx(6 * 38.9e6, rel=0.01)


@pytest.mark.parametrize("implementation", ["ours", "eager"])
@pytest.mark.parametrize("make", [vae.training_case, vae.encoding_case])
def test_benchmarks_of_v_agree_with_plain_pytorch(make, implementation):
    case = make(100, "float32", implementation)
    assert case.unit == "frames/s"
    frames, computed = case.play()
    assert frames == computed
    assert frames % 100 == 0


def test_plain_v_has_no_layer_of_ours():
    plain = vae.PlainVAE(ConvVAE(4))
    assert not any(isinstance(layer, PointDeconvolution | Deconvolution) for layer in plain.modules())
    x, noise = torch.rand(2, 3, 64, 64), torch.randn(2, 4)
    torch.manual_seed(0)
    ours = ConvVAE(4)
    for found, wanted in zip(vae.PlainVAE(ours)(x, noise), ours(x, noise), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
