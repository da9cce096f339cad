"""Benchmarks of V's training and of encoding, next to plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import nn

from worldmodels.benchmarks.case import Case
from worldmodels.models.device import autocast, limit_threads
from worldmodels.models.encoder import Encoder
from worldmodels.models.vae import ConvVAE, vae_loss
from worldmodels.support.cpu import available_cpus
from worldmodels.support.simd import Precision
from worldmodels.training.optim import ChannelsLastAdam
from worldmodels.training.vae import training_network

Implementation = Literal["ours", "eager", "compiled"]

BATCHES = (32, 100, 256)
_CPU = torch.device("cpu")
_LATENT = 64
_TOLERANCE: dict[str, float] = {"float32": 1e-4, "bfloat16": 3e-2}  # relative, of a loss or of mu


def cases(precisions: list[Precision], *, peers: bool) -> Iterator[Callable[[], Case]]:
    """Yield factories of the benchmarks; with ``peers``, each is followed by PyTorch's."""
    implementations: tuple[Implementation, ...] = ("ours", "eager", "compiled") if peers else ("ours",)
    for make in (training_case, encoding_case):
        for batch in BATCHES:
            for precision in precisions:
                for implementation in implementations:
                    yield partial(make, batch, precision, implementation)


class PlainVAE(nn.Module):
    """V as PyTorch's own layers, without our optimizations: ``nn.Conv2d``, ``nn.ConvTranspose2d`` and ``nn.Linear``.

    Args:
        vae: V, whose weights are copied.
    """

    def __init__(self, vae: ConvVAE) -> None:
        super().__init__()
        self.encoder, self.mu, self.logvar = vae.encoder, vae.mu, vae.logvar
        self.decoder = nn.Sequential(*map(_plain, vae.decoder))

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode frames (B, 3, 64, 64); see :meth:`ConvVAE.encode`."""
        features = self.encoder(x)
        return self.mu(features), self.logvar(features)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstruct frames; see :meth:`ConvVAE.forward`."""
        mu, logvar = self.encode(x)
        return self.decoder(mu + torch.exp(0.5 * logvar) * noise), mu, logvar


def _plain(layer: nn.Module) -> nn.Module:
    """Replace a transposed convolution by PyTorch's own with the same weights."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return layer
    channels = layer.in_channels, layer.out_channels
    plain = nn.ConvTranspose2d(*channels, layer.kernel_size[0], layer.stride[0])
    plain.load_state_dict(layer.state_dict())
    return plain


def flops(*, training: bool) -> int:
    """Count the operations of a frame's encoding, or of its training step: forward and backward, which costs twice."""
    encoder = sum(side**2 * 16 * c * d for side, c, d in ((31, 3, 32), (14, 32, 64), (6, 64, 128), (2, 128, 256)))
    encoder += 2 * 1024 * _LATENT
    decoder = 1024 * _LATENT + 1024 * 128 * 25
    decoder += sum(side**2 * k**2 * c * d for side, k, c, d in ((5, 5, 128, 64), (13, 6, 64, 32), (30, 6, 32, 3)))
    return 2 * (3 * (encoder + decoder) if training else encoder)


def training_case(batch: int, precision: Precision, implementation: Implementation) -> Case:
    """Create the benchmark of training steps on random frames: losses, gradients and Adam.

    Raises:
        RuntimeError: The loss differs from plain PyTorch's in float32.
    """
    limit_threads()
    vae, x, noise = _vae(), _frames(batch), torch.randn(batch, _LATENT, generator=torch.Generator().manual_seed(1))

    def loss(network: nn.Module, precision: Precision) -> torch.Tensor:
        with autocast(_CPU, precision):
            recon, mu, logvar = network(x, noise)
        return vae_loss(recon, x, mu, logvar)[0]

    with torch.no_grad():
        wanted = loss(PlainVAE(_vae()), "float32").item()
        network = training_network(vae, precision) if implementation == "ours" else _plain_vae(vae, implementation)
        found = loss(network, precision).item()
    _check("loss", abs(found - wanted) / abs(wanted), precision)
    optimizer: torch.optim.Optimizer
    if implementation == "ours":
        optimizer = ChannelsLastAdam(network.parameters(), 1e-6)
    else:
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-6, fused=True)

    def play() -> tuple[int, int]:
        steps = max(1, 128 // batch)
        for _ in range(steps):
            network.zero_grad()
            loss(network, precision).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return steps * batch, steps * batch

    play()  # compiles
    name = _name("training", batch, implementation)
    return Case(name, precision, available_cpus(), flops(training=True), "frames/s", play)


def encoding_case(batch: int, precision: Precision, implementation: Implementation) -> Case:
    """Create the benchmark of encoding uint8 frames.

    Raises:
        RuntimeError: mu differs from plain PyTorch's in float32.
    """
    limit_threads()
    vae = _vae()
    frames = (_frames(batch).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()

    @torch.inference_mode()
    def encode(network: nn.Module, precision: Precision) -> tuple[np.ndarray, np.ndarray]:
        x = torch.from_numpy(frames).permute(0, 3, 1, 2).float().div_(255)
        with autocast(_CPU, precision):
            mu, logvar = network(x)
        return mu.float().numpy(), logvar.float().numpy()

    plain = _Encode(PlainVAE(_vae()))
    wanted = encode(plain, "float32")[0]
    if implementation == "ours":
        encoder = Encoder(vae, _CPU, precision, block=batch)
        run = partial(encoder, frames)
    else:
        run = partial(encode, _compiled(plain) if implementation == "compiled" else plain, precision)
    _check("mean", float(np.abs(run()[0] - wanted).max() / np.abs(wanted).max()), precision)

    def play() -> tuple[int, int]:
        calls = max(1, 512 // batch)
        for _ in range(calls):
            run()
        return calls * batch, calls * batch

    name = _name("encoding", batch, implementation)
    return Case(name, precision, available_cpus(), flops(training=False), "frames/s", play)


class _Encode(nn.Module):
    def __init__(self, network: PlainVAE) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.network.encode(x)


def _vae() -> ConvVAE:
    torch.manual_seed(0)
    return ConvVAE(_LATENT).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _frames(batch: int) -> torch.Tensor:
    x = torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


def _plain_vae(vae: ConvVAE, implementation: Implementation) -> nn.Module:
    plain = PlainVAE(vae).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _compiled(plain) if implementation == "compiled" else plain


def _compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network)  # type: ignore[return-value]


def _name(what: str, batch: int, implementation: Implementation) -> str:
    peer = "" if implementation == "ours" else f": PyTorch, {implementation}"
    return f"V, {what}, batch {batch}{peer}"


def _check(what: str, error: float, precision: Precision) -> None:
    if not error < _TOLERANCE[precision]:
        raise RuntimeError(f"mismatch: the {what} is off by {error:.2g}")
