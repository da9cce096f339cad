"""Benchmarks of M's training: the native step next to PyTorch's ``nn.LSTM``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from worldmodels.benchmarks.case import Case
from worldmodels.data.sequences import Chunk
from worldmodels.models.device import limit_threads
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.support.cpu import available_cpus
from worldmodels.support.simd import Precision
from worldmodels.training.rnn_loss import LossCounts, Losses, chunk_losses, torch_losses
from worldmodels.training.settings import TrainRNNConfig


class Shape(NamedTuple):
    """Sizes of M and of a batch: B sequences of T steps."""

    latent: int
    action: int
    hidden: int
    batch: int
    steps: int


SHAPES = (Shape(32, 3, 256, 32, 64), Shape(64, 1, 512, 64, 64), Shape(64, 1, 512, 100, 500))


def cases(precisions: list[Precision], *, peers: bool) -> Iterator[Callable[[], Case]]:
    """Yield factories of the benchmarks; with ``peers``, each is followed by PyTorch's."""
    for shape in SHAPES:
        for precision in precisions:
            for native in (True, False) if peers else (True,):
                yield partial(training_case, shape, precision, native=native)


def training_case(shape: Shape, precision: Precision, *, native: bool) -> Case:
    """Create the benchmark of the losses of a batch and their gradient.

    Raises:
        RuntimeError: The loss differs from PyTorch's in float32.
    """
    limit_threads()
    torch.manual_seed(0)
    doom = shape.action == 1
    model = MDNRNN(shape.latent, shape.action, shape.hidden, restart_input=doom, done_head=doom)
    rng = np.random.default_rng(0)
    rows = (shape.batch, shape.steps)
    ones, zeros = np.ones(rows, np.float32), np.zeros(rows, np.float32)
    latents = (shape.batch, shape.steps + 1, shape.latent)
    restart = zeros.copy()
    restart[:, 0] = 1
    chunk = Chunk(
        mu=rng.normal(size=latents).astype(np.float32),
        logvar=np.full(latents, -2, np.float32),
        action=rng.uniform(-1, 1, (*rows, shape.action)).astype(np.float32),
        restart=restart,
        reward=ones,
        done=zeros,
        has_next=ones,
        termination_known=ones,
        valid=ones,
    )
    noise, state, counts = torch.randn(latents), model.initial_state(shape.batch), LossCounts.of(chunk)

    def losses(precision: Precision, native: bool) -> Losses:
        config = TrainRNNConfig(precision=precision)
        return (chunk_losses if native else torch_losses)(model, chunk, state, config, noise, counts)[0]

    with torch.no_grad():
        found, wanted = losses(precision, native).total.item(), losses("float32", False).total.item()
    if not abs(found - wanted) < (1e-4 if precision == "float32" else 1e-2) * abs(wanted):
        raise RuntimeError(f"mismatch: the loss is {found:.5g} instead of {wanted:.5g}")
    steps = shape.batch * shape.steps

    def play() -> tuple[int, int]:
        model.zero_grad()
        losses(precision, native).total.backward()  # type: ignore[no-untyped-call]
        return steps, steps

    flops = 6 * sum(p.numel() for p in model.parameters() if p.requires_grad)  # forward 2, backward 4 per weight
    peer = "" if native else ": `nn.LSTM`"
    name = f"M of {shape.hidden} units, training, {shape.batch} x {shape.steps}{peer}"
    return Case(name, precision, available_cpus(), flops, "steps/s", play)
