"""World models for benchmarks: the paper's sizes with random weights, and the pretrained one."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch

from worldmodels import pretrained
from worldmodels.dream.native import Dream
from worldmodels.dream.world_model import load_world_model
from worldmodels.models.agent import load_controller
from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.support.simd import Precision

CANDIDATES, EPISODES = 64, 16
LONGEST = 2100
_P_DONE = 1 / 682  # probability of termination per step; with the limit of 2100 steps, the mean length is 650


@dataclass(frozen=True)
class BenchmarkModel:
    """M, initial states and architecture of C.

    Attributes:
        name: Name of the model in the labels of the rows.
        mdnrnn: M.
        controller: Architecture of C.
        initial_mu: (I, Z) float32 means of the initial latents.
        initial_logvar: (I, Z) float32 log variances of the initial latents.
        mean: (N,) float32 mean of the random controllers; None for zeros.
    """

    name: str
    mdnrnn: MDNRNN
    controller: Controller
    initial_mu: npt.NDArray[np.float32]
    initial_logvar: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float32] | None = None

    @property
    def flops(self) -> int:
        """Floating-point operations of one step with all outputs; a multiply-add counts as two."""
        m = self.mdnrnn
        head, hidden = m.head.weight.shape
        inputs = m.lstm.input_size
        return 2 * (4 * hidden * (inputs + hidden) + head * hidden + self.controller.size)

    def dream(self, precision: Precision = "float32", temperature: float = 1.0) -> Dream:
        """Create the native dream of this world model."""
        return Dream(
            self.mdnrnn,
            self.initial_mu,
            self.initial_logvar,
            self.controller,
            temperature=temperature,
            max_steps=LONGEST,
            precision=precision,
        )

    def params(self, count: int) -> npt.NDArray[np.float32]:
        """Sample (count, N) float32 random controllers."""
        rng = np.random.Generator(np.random.Philox(key=1))
        around = 0.0 if self.mean is None else self.mean
        return (around + rng.normal(0.0, 0.1, (count, self.controller.size))).astype(np.float32)


def doom(*, terminates: bool = False) -> BenchmarkModel:
    """Create a world model of the paper's VizDoom sizes (3.353 MFLOP per step).

    Args:
        terminates: Whether episodes terminate at random, after 650 steps on average and at most 2100, as in the paper;
            False for no termination.
    """
    model = _random(MDNRNN(64, 1, 512, restart_input=True, done_head=True, reward_head=False))
    with torch.no_grad():
        model.head.weight[0] = 0
        model.head.bias[0] = -1e6
        if terminates:
            _terminate_at_random(model)
    return _world("TakeCover", model, Controller(64, 512, 1))


def carracing() -> BenchmarkModel:
    """Create a world model of the paper's CarRacing sizes (1.4 MFLOP per step)."""
    model = _random(MDNRNN(32, 3, 256, restart_input=False, done_head=False, reward_head=False))
    return _world("CarRacing", model, Controller(32, 256, 3, features="zh", bias=True, squash="carracing"))


def pretrained_world(name: str = "takecover") -> BenchmarkModel:
    """Load a pretrained world model, with random controllers around its own."""
    folder = pretrained.folder(name)
    controller, params, _ = load_controller(folder / "evolve" / "controller.safetensors")
    world = load_world_model(folder)
    return BenchmarkModel(
        "TakeCover, pretrained", world.mdnrnn, controller, world.initial_mu, world.initial_logvar, params
    )


def _random(model: MDNRNN) -> MDNRNN:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.05, 0.05, generator=generator)
    return model


def _world(name: str, model: MDNRNN, controller: Controller) -> BenchmarkModel:
    mu = np.random.Generator(np.random.Philox(key=2)).normal(size=(1, model.latent_size)).astype(np.float32)
    return BenchmarkModel(name, model, controller, mu, np.full_like(mu, -100.0))


def _terminate_at_random(model: MDNRNN) -> None:
    """Make latent 0 N(0, 1), hidden unit 0 a monotone function of it, and the done logit a threshold on that."""
    unit, scale, hidden = 0, 0.2, model.hidden_size
    weight_ih, weight_hh = model.lstm.get_parameter("weight_ih_l0"), model.lstm.get_parameter("weight_hh_l0")
    for gate, bias in enumerate((20.0, -20.0, 0.0, 20.0)):  # i open, f closed, g, o open
        row = gate * hidden + unit
        weight_ih[row] = weight_hh[row] = 0
        model.lstm.get_parameter("bias_ih_l0")[row] = bias
        model.lstm.get_parameter("bias_hh_l0")[row] = 0
    weight_ih[2 * hidden + unit, 0] = scale
    moments = slice(1 + model.mixtures, 1 + 3 * model.mixtures)  # means and log stds of latent 0
    model.head.weight[moments] = 0
    model.head.bias[moments] = 0
    threshold = np.tanh(np.tanh(scale * NormalDist().inv_cdf(1 - _P_DONE)))
    model.head.weight[0, unit] = 100.0
    model.head.bias[0] = -100.0 * float(threshold)
