"""The native training step of M against PyTorch's LSTM: losses, states and every gradient."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from refusals import little_memory
from worldmodels import _core
from worldmodels.data.sequences import Chunk
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.support.simd import set_simd_level, simd_level, simd_levels
from worldmodels.training import rnn_loss
from worldmodels.training.rnn_loss import LossCounts, chunk_losses, native_losses, torch_losses
from worldmodels.training.settings import TrainRNNConfig

CONFIG = TrainRNNConfig(precision="float32", done_pos_weight=7.0, reward_clip=1.0)
NAMES = ("weight_ih", "weight_hh", "bias", "head.weight", "head.bias")


@pytest.fixture
def one_thread():
    """Small steps of PyTorch on two threads take long where another process is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=simd_levels())
def level(request):
    before = simd_level()
    set_simd_level(request.param)
    yield request.param
    set_simd_level(before)


def make_model(rng, latent, action, hidden, mixtures, *flags):
    torch.manual_seed(int(rng.integers(1 << 30)))
    model = MDNRNN(
        latent,
        action,
        hidden,
        mixtures,
        **dict(zip(("restart_input", "done_head", "reward_head"), map(bool, flags), strict=True)),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * hidden**-0.5 * torch.randn(parameter.shape)
        model.head.bias[-1] = 9.0  # a clamped log std
    return model


def make_chunk(rng, model, batch, steps):
    def normal(*shape):
        return rng.normal(size=(batch, *shape)).astype(np.float32)

    def flags(p):
        return (rng.random((batch, steps)) < p).astype(np.float32)

    return Chunk(
        mu=normal(steps + 1, model.latent_size),
        logvar=normal(steps + 1, model.latent_size) - 1,
        action=normal(steps, model.action_size),
        restart=flags(0.15),
        reward=2 * normal(steps),
        done=flags(0.1),
        has_next=flags(0.9),
        termination_known=flags(0.9),
        valid=flags(0.8),
    )


def make_case(rng, batch, steps, *sizes):
    model = make_model(rng, *sizes)
    noise = torch.from_numpy(rng.normal(size=(batch, steps + 1, model.latent_size)).astype(np.float32))
    state = tuple(
        torch.from_numpy(rng.normal(size=(1, batch, model.hidden_size)).astype(np.float32) / 2) for _ in range(2)
    )
    return model, make_chunk(rng, model, batch, steps), state, noise


def evaluate(losses, model, chunk, state, noise, config=CONFIG):
    """Losses, h, c, done logits and gradients as arrays."""
    model.zero_grad()
    terms, after, logit = losses(model, chunk, state, config, noise, LossCounts.of(chunk))
    terms.total.backward()
    gradients = [p.grad.numpy().copy() for p in model.parameters() if p.requires_grad]
    logits = np.zeros(0, np.float32) if logit is None else logit.detach().numpy()
    return [torch.stack(terms).detach().numpy(), *(part.detach().numpy() for part in after), logits, *gradients]


def largest_error(found, wanted):
    """Largest difference relative to the largest element, over all arrays."""
    return max(
        float(np.abs(a - b).max() / (np.abs(b).max() + 1e-6)) for a, b in zip(found, wanted, strict=True) if b.size
    )


RANDOM_SHAPES = np.random.default_rng(1)
SHAPES = [
    (32, 5, 64, 1, 512, 5, 1, 1, 0),  # TakeCover
    (9, 12, 32, 3, 256, 5, 0, 0, 0),  # CarRacing
    (1, 1, 1, 1, 1, 1, 0, 0, 0),
    *(
        tuple(int(n) for n in (*RANDOM_SHAPES.integers(1, (20, 40, 40, 4, 90, 9)), *RANDOM_SHAPES.integers(0, 2, 3)))
        for _ in range(8)
    ),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_losses_and_gradients_agree_with_pytorch(level, shape):
    """Restarts, masks, a carried state, clamped log stds and clipped rewards are among them."""
    case = make_case(np.random.default_rng(shape), *shape)
    assert largest_error(evaluate(native_losses, *case), evaluate(torch_losses, *case)) < 2e-5


@pytest.mark.parametrize("shape", SHAPES[:6], ids=lambda shape: "-".join(map(str, shape)))
def test_gradients_with_bfloat16_products(shape, monkeypatch):
    """By emulation on every CPU; the instruction itself where the CPU has it."""
    case = make_case(np.random.default_rng(shape), *shape)
    run = _core.RNNTraining.run
    kinds = ["emulated_bfloat16"] + (["bfloat16"] if "avx512_bf16" in simd_levels() else [])
    wanted = evaluate(torch_losses, *case)
    for kind in kinds:
        monkeypatch.setattr(
            _core.RNNTraining, "run", lambda self, precision, kind=kind, **rest: run(self, precision=kind, **rest)
        )
        found = evaluate(native_losses, *case)
        assert 1e-6 < largest_error(found, wanted) < 5e-2
        for a, b in zip(found, wanted, strict=True):
            if b.size:
                assert np.linalg.norm(a - b) < 2e-2 * np.linalg.norm(b) + 1e-5


def test_any_number_of_threads_gives_the_same_bits():
    case = make_case(np.random.default_rng(0), 19, 33, 20, 2, 70, 5, 1, 1, 1)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 30):
            torch.set_num_threads(threads)
            found.append(evaluate(native_losses, *case))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_carried_state_continues_the_sequence():
    """Two chunks with the state carried give the losses and logits of one long chunk."""
    model, chunk, state, noise = make_case(np.random.default_rng(2), 4, 20, 6, 1, 12, 3, 1, 1, 1)
    with torch.no_grad():
        whole, end, logits = chunk_losses(model, chunk, state, CONFIG, noise)
        counts, found, carried = LossCounts.of(chunk), [], state
        for part, latents in ((slice(0, 13), slice(0, 14)), (slice(13, 20), slice(13, 21))):
            columns = {
                name: value[:, latents if name in ("mu", "logvar") else part] for name, value in vars(chunk).items()
            }
            terms, carried, some = chunk_losses(model, Chunk(**columns), carried, CONFIG, noise[:, latents], counts)
            found.append((torch.stack(terms), some))
    torch.testing.assert_close(found[0][0] + found[1][0], torch.stack(whole))
    torch.testing.assert_close(torch.cat([found[0][1], found[1][1]], dim=1), logits)
    for a, b in zip(carried, end, strict=True):
        torch.testing.assert_close(a, b)


def test_threads_of_python_take_turns_with_one_model():
    case = make_case(np.random.default_rng(3), 8, 10, 8, 1, 40, 3, 1, 1, 0)
    model, chunk, state, noise = case
    with torch.no_grad():
        wanted = chunk_losses(model, chunk, state, CONFIG, noise)[0].total
        found = []

        def work():
            with torch.no_grad():
                found.extend(chunk_losses(model, chunk, state, CONFIG, noise)[0].total for _ in range(20))

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(found) == 60
    assert all(value == wanted for value in found)


@pytest.mark.usefixtures("one_thread")
def test_training_follows_pytorch():
    """The same 60 steps of Adam, native and by PyTorch, reach the same loss."""
    ends = []
    for losses in (native_losses, torch_losses):
        model, chunk, state, noise = make_case(np.random.default_rng(4), 8, 20, 6, 1, 24, 3, 1, 1, 0)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        values = []
        for _ in range(60):
            optimizer.zero_grad()
            total = losses(model, chunk, state, CONFIG, noise, LossCounts.of(chunk))[0].total
            total.backward()
            torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)
            optimizer.step()
            values.append(total.item())
        ends.append(values)
    assert ends[0][-1] < 0.8 * ends[0][0]
    np.testing.assert_allclose(ends[0], ends[1], rtol=2e-3)


def test_the_frozen_forget_bias_has_no_gradient():
    case = make_case(np.random.default_rng(5), 2, 3, 2, 1, 4, 2, 0, 0, 0)
    evaluate(native_losses, *case)
    assert case[0].lstm.bias_hh_l0.grad is None


def test_losses_alone_cost_no_gradient(monkeypatch):
    """Validation takes a forward pass only, with the same losses."""
    model, chunk, state, noise = make_case(np.random.default_rng(5), 2, 3, 2, 1, 4, 2, 0, 1, 0)
    wanted = chunk_losses(model, chunk, state, CONFIG, noise)[0]
    training, asked = rnn_loss._training(model), []

    class Spy:
        def run(self, **arguments):
            asked.append(arguments["gradient"])
            return training.run(**arguments)

    monkeypatch.setattr(rnn_loss, "_training", lambda _: Spy())
    with torch.no_grad():
        losses = chunk_losses(model, chunk, state, CONFIG, noise)[0]
    assert asked == [False]
    assert not losses.total.requires_grad
    assert [term.item() for term in losses] == [term.item() for term in wanted]


def test_a_smaller_batch_works_after_memory_ran_out():
    """Micro-batches are halved after a MemoryError, with the buffers of the failed call."""
    rng = np.random.default_rng(7)
    model, chunk, state, noise = make_case(rng, 2, 300, 8, 1, 64, 5, 0, 1, 0)
    wanted = evaluate(native_losses, model, chunk, state, noise)
    large = (
        chunk.rows(np.tile([0, 1], 1500)),
        tuple(part.repeat(1, 1500, 1) for part in state),
        noise.repeat(1500, 1, 1),
    )
    with little_memory(), pytest.raises(MemoryError):  # 1.6 GB
        evaluate(native_losses, model, *large)
    for found, want in zip(evaluate(native_losses, model, chunk, state, noise), wanted, strict=True):
        np.testing.assert_array_equal(found, want)


def test_nan_of_one_batch_does_not_reach_the_next():
    """The hidden size is not a multiple of the padding, which held NaN too."""
    case = make_case(np.random.default_rng(8), 4, 6, 3, 1, 20, 2, 1, 1, 0)
    model, chunk, state, noise = case
    wanted = evaluate(native_losses, *case)
    one = tuple(torch.full_like(part[:, :1], float("nan")) for part in state)
    assert np.isnan(evaluate(native_losses, model, chunk.rows(slice(0, 1)), one, noise[:1])[0][0])
    for found, want in zip(evaluate(native_losses, *case), wanted, strict=True):
        np.testing.assert_array_equal(found, want)


def test_ctrl_c_stops_a_training_step():
    """In less than half of the step's CPU time, when it comes early. The next step is correct."""
    model, chunk, state, noise = make_case(np.random.default_rng(9), 2, 100, 32, 3, 256, 5, 0, 0, 0)
    wanted = evaluate(native_losses, model, chunk, state, noise)
    rows = np.tile([0, 1], 300)
    long = (chunk.rows(rows), tuple(part[:, rows] for part in state), noise[rows])
    evaluate(native_losses, model, *long)  # allocates the buffers
    begun = time.process_time()
    evaluate(native_losses, model, *long)
    whole = time.process_time() - begun

    def interrupt():
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        begun = time.process_time()
        with pytest.raises(KeyboardInterrupt):
            evaluate(native_losses, model, *long)
        stopped = time.process_time() - begun
    finally:
        signal.signal(signal.SIGINT, before)
        thread.join()
    assert stopped < 0.5 * whole
    for found, want in zip(evaluate(native_losses, model, chunk, state, noise), wanted, strict=True):
        np.testing.assert_array_equal(found, want)


def test_bad_arguments_are_named():
    rng = np.random.default_rng(6)
    model, chunk, state, noise = make_case(rng, 2, 3, 2, 1, 4, 2, 0, 0, 0)
    with pytest.raises(ValueError, match=r"h: expected \(2, 4\) float32, got \(1, 4\) float32"):
        chunk_losses(model, chunk, (state[0][:, :1], state[1]), CONFIG, noise)
    with pytest.raises(ValueError, match=r"hidden_size: expected an integer from 1 to 1048576, got 0"):
        _core.RNNTraining(1, 1, 0, 1, restart_input=False, done_head=False, reward_head=False)
