"""V: the convolutional variational autoencoder, 64x64 RGB frames to a latent vector and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodels.models.controller import check_size
from worldmodels.models.sharing import Shared
from worldmodels.models.weights import check_weights, load_model, save_model

_UNITS = 1024  # of the decoder's linear layer


class PointDeconvolution(nn.ConvTranspose2d):
    """Transposed convolution of a single pixel as one matrix product; torch's own takes a third of V's time."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map (B, C, 1, 1) to (B, D, K, K)."""
        height, width = self.kernel_size
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)  # (C, K K D), a view for channels-last weights
        out = x.flatten(1) @ weight
        out = out.reshape(-1, height, width, self.out_channels)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        return out.permute(0, 3, 1, 2)  # channels last


class Deconvolution(nn.ConvTranspose2d):
    """Transposed convolution of stride 2, optimized for CPUs; on a GPU it is torch's own.

    The bias is added afterwards, because oneDNN's bfloat16 kernels with a bias take up to four times as long. For few
    output channels, the forward pass is a convolution that computes the four pixels of every 2x2 block as channels.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map (B, C, H, H) to (B, D, 2 H - 2 + K, 2 H - 2 + K)."""
        if x.is_cuda or self.bias is None:
            return super().forward(x)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled("cpu"):
            x, weight, bias = (part.to(torch.get_autocast_dtype("cpu")) for part in (x, weight, bias))
        few = self.out_channels < 8 and self.kernel_size[0] % 2 == 0
        out: Tensor = _subpixel(x, weight) if few else F.conv_transpose2d(x, weight, stride=2)
        return out + bias[:, None, None]


class _Subpixel(torch.autograd.Function):
    """Transposed convolution of stride 2 and even kernel as a convolution and a pixel shuffle; torch's own backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Map (B, C, H, H) and (C, D, K, K) to (B, D, 2 H - 2 + K, 2 H - 2 + K)."""
        ctx.save_for_backward(x, weight)
        channels, out_channels, kernel = weight.shape[:3]
        taps = kernel // 2
        # out[2 r + a] adds weight[2 u + a] * x[r - u]: for each a, a convolution with flipped taps
        phases = weight.reshape(channels, out_channels, taps, 2, taps, 2).flip(2, 4).permute(3, 5, 1, 0, 2, 4)
        phases = phases.reshape(4 * out_channels, channels, taps, taps).contiguous(memory_format=torch.channels_last)
        out = F.conv2d(x, phases, padding=taps - 1).permute(0, 2, 3, 1)  # (B, R, R, 4 D)
        batch, side = out.shape[:2]
        out = out.reshape(batch, side, side, 2, 2, out_channels).permute(0, 1, 3, 2, 4, 5)
        return out.reshape(batch, 2 * side, 2 * side, out_channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Compute the gradients of x and of the weight."""
        x, weight = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad, False]
        found = torch.ops.aten.convolution_backward(
            gradients[0], x, weight, None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1, wanted
        )
        return found[0], found[1]


_subpixel: Callable[[Tensor, Tensor], Tensor] = _Subpixel.apply


class ConvVAE(Shared, nn.Module):
    """Variational autoencoder: four strided convolutions to mu and logvar, four transposed ones back to the frame.

    Args:
        latent_size: Length of z (32 for CarRacing, 64 for Doom).

    Raises:
        ValueError: ``latent_size`` is not a positive integer.

    Source: Ha & Schmidhuber (2018), appendix A.1.
    """

    _FILES = ("vae/vae.safetensors",)

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.latent_size = latent_size = check_size("latent_size", latent_size)
        self.encoder = nn.Sequential(  # (B, 3, 64, 64) -> (B, 1024)
            nn.Conv2d(3, 32, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 128, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(128, 256, 4, stride=2),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.mu = nn.Linear(1024, latent_size)
        self.logvar = nn.Linear(1024, latent_size)
        self.decoder = nn.Sequential(  # (B, Z) -> (B, 3, 64, 64), in (0, 1)
            nn.Linear(latent_size, _UNITS),
            nn.Unflatten(1, (_UNITS, 1, 1)),
            PointDeconvolution(_UNITS, 128, 5, stride=2),
            nn.ReLU(),
            Deconvolution(128, 64, 5, stride=2),
            nn.ReLU(),
            Deconvolution(64, 32, 6, stride=2),
            nn.ReLU(),
            Deconvolution(32, 3, 6, stride=2),
            nn.Sigmoid(),
        )
        if not self.mu.weight.is_meta:  # load_model fills the weights in; a normal draw there imports torch._dynamo
            self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Initialize by He's rule: with torch's default, transposed convolutions train slowly for hundreds of steps."""
        for layer in self.modules():
            if isinstance(layer, nn.ConvTranspose2d):
                taps = (
                    layer.in_channels * layer.kernel_size[0] ** 2 / 4
                )  # stride 2: an output has a quarter of the taps
                nn.init.normal_(layer.weight, std=math.sqrt(2 / taps))
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                continue
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        nn.init.xavier_normal_(self.mu.weight)
        nn.init.xavier_normal_(self.logvar.weight, gain=0.1)

    @property
    def config(self) -> dict[str, int]:
        """Constructor arguments, saved next to the weights."""
        return {"latent_size": self.latent_size}

    @staticmethod
    def complete(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Append the units of the decoder's linear layer that a file of weights leaves out because they are zero.

        Args:
            tensors: Weights by name; :func:`worldmodels.models.decoder.compact_weights` leaves units out.
        """
        missing = _UNITS - len(tensors["decoder.0.weight"])
        if missing <= 0:
            return tensors
        names = ("decoder.0.weight", "decoder.0.bias", "decoder.2.weight")  # one row per unit
        rows = {name: tensors[name] for name in names}
        return tensors | {
            name: torch.cat([values, values.new_zeros(missing, *values.shape[1:])]) for name, values in rows.items()
        }

    def _check_savable(self) -> None:
        check_weights(self)

    def _save(self, folder: Path) -> None:
        save_model(folder / self._FILES[0], self)

    @classmethod
    def _load(cls, folder: Path) -> Self:
        return load_model(folder / cls._FILES[0], cls)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode frames.

        Args:
            x: (B, 3, 64, 64) float32 frames in [0, 1].

        Returns:
            (mu, logvar), each (B, latent_size).

        Raises:
            ValueError: The shape is wrong, or the dtype is an integer.
        """
        if x.ndim != 4 or x.shape[1:] != (3, 64, 64) or not x.is_floating_point():
            raise ValueError(f"x: expected (B, 3, 64, 64) float32 in [0, 1], got {tuple(x.shape)} {x.dtype}")
        features = self.encoder(x)
        return self.mu(features), self.logvar(features)

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents z (B, latent_size) to frames (B, 3, 64, 64) in [0, 1]."""
        if z.ndim != 2 or z.shape[1] != self.latent_size:
            raise ValueError(f"z: expected (B, {self.latent_size}), got {tuple(z.shape)}")
        out: Tensor = self.decoder(z)
        return out

    def init_output(self, colour: npt.NDArray[np.floating]) -> None:
        """Set the bias of the last layer so that the reconstructions of an untrained decoder have about this colour.

        Without it, the first steps on frames with a plain bright background can saturate every output.

        Args:
            colour: (3,) red, green and blue, from 0 to 1; clipped to [0.05, 0.95].
        """
        share = np.clip(np.asarray(colour, np.float64), 0.05, 0.95)
        last = self.decoder[-2]
        assert isinstance(last, Deconvolution) and last.bias is not None
        with torch.no_grad():
            last.bias.copy_(torch.from_numpy(np.log(share / (1 - share))))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, sample z = mu + exp(logvar / 2) * eps and decode.

        Args:
            x: (B, 3, 64, 64) float32 frames in [0, 1].
            noise: (B, latent_size) standard normal eps; None for torch's global generator.

        Returns:
            recon (B, 3, 64, 64) in (0, 1); mu and logvar, each (B, latent_size).
        """
        mu, logvar = self.encode(x)
        return self.decode(sample_latent(mu, logvar, noise)), mu, logvar


def sample_latent(mu: Tensor, logvar: Tensor, noise: Tensor | None = None) -> Tensor:
    """Sample z ~ N(mu, exp(logvar)) of any shape; ``noise`` is standard normal, None for torch's global generator."""
    return mu + torch.exp(0.5 * logvar) * (torch.randn_like(mu) if noise is None else noise)


@torch.inference_mode()
def decode(model: ConvVAE, z: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Decode latents (N, Z) float32 to frames (N, 64, 64, 3) uint8."""
    where = next(model.parameters()).device
    pictures = [model.decode(part.to(where)).cpu() for part in torch.split(torch.from_numpy(z), 256)]
    return (torch.cat(pictures).permute(0, 2, 3, 1).numpy() * 255 + 0.5).astype(np.uint8)


def vae_loss(
    recon: Tensor,
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    kl_tolerance: float = 0.5,
    kl_weight: float = 1.0,
    quartic_weight: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the paper's loss, squared error + max(KL, tolerance), with an optional quartic error term.

    Args:
        recon: (B, 3, 64, 64) reconstruction.
        x: (B, 3, 64, 64) frames.
        mu: (B, Z) means.
        logvar: (B, Z) log variances.
        kl_tolerance: Free nats per latent dimension.
        kl_weight: Weight of the KL term; 1 in the paper.
        quartic_weight: Weight of the fourth power of the errors; 0 in the paper. It emphasizes large errors on few
            pixels (a missing fireball) over small errors on many (a blurred wall).

    Returns:
        (loss, squared_error, kl), each (). The squared error is summed over pixels and channels and averaged over the
        batch. The KL divergence is averaged over the batch; the loss takes max(KL, kl_tolerance * Z) per frame.
    """
    squares = (recon.float() - x.float()).square()
    squared_error = squares.sum() / x.shape[0]
    mu, logvar = mu.float(), logvar.float()
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(dim=1)  # (B,)
    free = kl_tolerance * mu.shape[1]
    loss = squared_error + kl_weight * kl.clamp(min=free).mean()
    if quartic_weight:
        loss = loss + quartic_weight * squares.square().sum() / x.shape[0]
    return loss, squared_error, kl.mean()
