"""V's training step on a CPU: convolutions with their ReLUs and gradients in the native core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from worldmodels import _core
from worldmodels.models.vae import ConvVAE, sample_latent

Pixels = npt.NDArray[np.float32]  # (B, H, W, C)

_FRAME = 64  # side of a frame


class NativeVAE(nn.Module):
    """V with the parameters of a :class:`ConvVAE`, whose convolutions are computed by the native core.

    The results of the convolutions do not depend on the number of threads, which is ``torch.get_num_threads()``.

    Args:
        model: V on the CPU. Its parameters are shared, not copied; the channels-last format saves conversions.
        precision: Products of the convolutions, ``"float32"`` or ``"bfloat16"``; everything else is float32.
    """

    def __init__(self, model: ConvVAE, precision: str) -> None:
        super().__init__()
        self.model, self._precision = model, precision
        self._encoder: list[tuple[_core.ConvTraining, nn.Conv2d]] = []
        self._decoder: list[tuple[_core.ConvTraining, nn.ConvTranspose2d]] = []
        side = _FRAME
        for layer in model.encoder:
            if isinstance(layer, nn.Conv2d):
                self._encoder.append((_training(side, layer.in_channels, layer.out_channels, layer), layer))
                side = (side - layer.kernel_size[0]) // 2 + 1
        side = 1
        for transposed in model.decoder:
            if isinstance(transposed, nn.ConvTranspose2d):
                side = 2 * side - 2 + transposed.kernel_size[0]
                training = _training(side, transposed.out_channels, transposed.in_channels, transposed)
                self._decoder.append((training, transposed))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`worldmodels.models.vae.ConvVAE.forward`."""
        with torch.autocast("cpu", enabled=False):
            return self._forward(x, noise)

    def _forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for training, encoding in self._encoder:
            layer = _Layer(training, self._precision, relu=True)
            x = _Convolution.apply(layer, x, encoding.weight, encoding.bias)  # type: ignore[no-untyped-call]
        features = x.flatten(1)
        mu, logvar = self.model.mu(features), self.model.logvar(features)
        out = self.model.decoder[:2](sample_latent(mu, logvar, noise))
        for number, (training, decoding) in enumerate(self._decoder):
            layer = _Layer(training, self._precision, relu=number + 1 < len(self._decoder))
            out = _Deconvolution.apply(layer, out, decoding.weight, decoding.bias)  # type: ignore[no-untyped-call]
        return torch.sigmoid(out), mu, logvar


def _training(side: int, channels: int, filters: int, layer: nn.Conv2d | nn.ConvTranspose2d) -> _core.ConvTraining:
    return _core.ConvTraining(side=side, channels=channels, filters=filters, kernel=layer.kernel_size[0])


@dataclass(frozen=True)
class _Layer:
    """A layer's products in the native core."""

    training: _core.ConvTraining
    precision: str
    relu: bool

    def convolve(self, images: Pixels, weight: Tensor, bias: Tensor | None) -> Pixels:
        """Compute features (B, H, W, D); with the bias of a layer, and its ReLU."""
        return self.training.convolve(
            images,
            _pixels(weight),
            None if bias is None else bias.detach().numpy(),
            relu=self.relu and bias is not None,
            precision=self.precision,
            num_threads=torch.get_num_threads(),
        )

    def transpose(self, features: Pixels, weight: Tensor, bias: Tensor | None) -> Pixels:
        """Compute images (B, H, W, C); with the bias of a layer, and its ReLU."""
        return self.training.transpose(
            features,
            _pixels(weight),
            None if bias is None else bias.detach().numpy(),
            relu=self.relu and bias is not None,
            precision=self.precision,
            num_threads=torch.get_num_threads(),
        )

    def weight_gradient(self, images: Pixels, features: Pixels) -> Tensor:
        """Compute the gradient (D, C, K, K) of the weight."""
        single = features.shape[1] == 1  # no pairs of positions
        found = self.training.weight_gradient(
            images,
            features,
            precision="float32" if single else self.precision,
            num_threads=torch.get_num_threads(),
        )
        return _channels_last(found)

    def before_relu(self, out: Pixels, gradient: Tensor) -> tuple[Pixels, Tensor]:
        """Compute the gradients before the ReLU and of the bias, from that of the output ``out``."""
        if not self.relu:
            return _pixels(gradient), gradient.sum((0, 2, 3))
        before, bias = _core.relu_backward(out, _pixels(gradient), num_threads=torch.get_num_threads())
        return before, torch.from_numpy(bias)


class _Convolution(torch.autograd.Function):
    """Convolution of stride 2."""

    @staticmethod
    def forward(ctx: Any, layer: _Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Map (B, C, H, H) to (B, D, (H - K) // 2 + 1, (H - K) // 2 + 1)."""
        ctx.layer, ctx.out = layer, layer.convolve(_pixels(x), weight, bias)
        ctx.save_for_backward(x, weight)
        return _channels_last(ctx.out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of x, of the weight and of the bias."""
        x, weight = ctx.saved_tensors
        before, bias = ctx.layer.before_relu(ctx.out, gradients[0])
        x_gradient = ctx.layer.transpose(before, weight, None) if ctx.needs_input_grad[1] else None
        weight_gradient = ctx.layer.weight_gradient(_pixels(x), before)
        return None, None if x_gradient is None else _channels_last(x_gradient), weight_gradient, bias


class _Deconvolution(torch.autograd.Function):
    """Transposed convolution of stride 2."""

    @staticmethod
    def forward(ctx: Any, layer: _Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Map (B, C, H, H) to (B, D, 2 H - 2 + K, 2 H - 2 + K)."""
        ctx.layer, ctx.out = layer, layer.transpose(_pixels(x), weight, bias)
        ctx.save_for_backward(x, weight)
        return _channels_last(ctx.out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of x, of the weight and of the bias."""
        x, weight = ctx.saved_tensors
        before, bias = ctx.layer.before_relu(ctx.out, gradients[0])
        x_gradient = _channels_last(ctx.layer.convolve(before, weight, None))
        return None, x_gradient, ctx.layer.weight_gradient(before, _pixels(x)), bias


def _pixels(x: Tensor) -> Pixels:
    """(B, C, H, W) as a contiguous (B, H, W, C), without a copy where the memory format is channels last."""
    return x.detach().permute(0, 2, 3, 1).contiguous().numpy()


def _channels_last(x: Pixels) -> Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2)
