"""V's training step on a CPU: convolutions with their ReLUs and gradients in the native core, in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from worldmodels import _core
from worldmodels.models.vae import ConvVAE, sample_latent

_FRAME = 64  # side of a frame


class NativeVAE(nn.Module):
    """V with the parameters of a :class:`ConvVAE`, whose convolutions are computed by the native core.

    The results do not depend on the number of threads
    of the convolutions, which is ``torch.get_num_threads()``.

    Args:
        model: V on the CPU. Its weights are used where they are; channels last saves copies.
    """

    def __init__(self, model: ConvVAE) -> None:
        super().__init__()
        self.model = model
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
        for training, convolution in self._encoder:
            x = _Convolution.apply(training, x, convolution.weight, convolution.bias)  # type: ignore[no-untyped-call]
        features = x.flatten(1)
        mu, logvar = self.model.mu(features), self.model.logvar(features)
        out = self.model.decoder[:2](sample_latent(mu, logvar, noise))
        for number, (training, layer) in enumerate(self._decoder):
            transposed = _Deconvolution if number > 0 else _PointDeconvolution
            relu = number + 1 < len(self._decoder)
            out = transposed.apply(training, out, layer.weight, layer.bias, relu)  # type: ignore[no-untyped-call]
        return torch.sigmoid(out), mu, logvar


def _training(side: int, channels: int, filters: int, layer: nn.Conv2d | nn.ConvTranspose2d) -> _core.ConvTraining:
    return _core.ConvTraining(side=side, channels=channels, filters=filters, kernel=layer.kernel_size[0])


class _Convolution(torch.autograd.Function):
    """Convolution of stride 2 and ReLU."""

    @staticmethod
    def forward(ctx: Any, training: _core.ConvTraining, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Map (B, C, H, H) to (B, D, (H - K) // 2 + 1, (H - K) // 2 + 1)."""
        threads = torch.get_num_threads()
        out = training.convolve(_pixels(x), _pixels(weight), bias.detach().numpy(), relu=True, num_threads=threads)
        ctx.training, ctx.out = training, out
        ctx.save_for_backward(x, weight)
        return _channels_last(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of x, of the weight and of the bias."""
        x, weight = ctx.saved_tensors
        threads = torch.get_num_threads()
        before, bias = _core.relu_backward(ctx.out, _pixels(gradients[0]), num_threads=threads)
        x_gradient = None
        if ctx.needs_input_grad[1]:
            x_gradient = _channels_last(
                ctx.training.transpose(before, _pixels(weight), None, relu=False, num_threads=threads)
            )
        weight_gradient = ctx.training.weight_gradient(_pixels(x), before, num_threads=threads)
        return None, x_gradient, _channels_last(weight_gradient), torch.from_numpy(bias)


class _PointDeconvolution(torch.autograd.Function):
    """Transposed convolution of a single pixel, and ReLU: PyTorch's matrix products, native weight gradients."""

    @staticmethod
    def forward(ctx: Any, training: _core.ConvTraining, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        """Map (B, C, 1, 1) to (B, D, K, K)."""
        kernel = weight.shape[2]
        out = (x.detach().flatten(1) @ _rows(weight)).view(len(x), kernel, kernel, -1)
        ctx.training, ctx.out = training, out.add_(bias.detach()).relu_().numpy()
        ctx.save_for_backward(x, weight)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of x, of the weight and of the bias."""
        x, weight = ctx.saved_tensors
        threads = torch.get_num_threads()
        before, bias = _core.relu_backward(ctx.out, _pixels(gradients[0]), num_threads=threads)
        x_gradient = torch.from_numpy(before).flatten(1) @ _rows(weight).T
        weight_gradient = ctx.training.weight_gradient(before, _pixels(x), num_threads=threads)
        return None, x_gradient[:, :, None, None], _channels_last(weight_gradient), torch.from_numpy(bias), None


class _Deconvolution(torch.autograd.Function):
    """Transposed convolution of stride 2, and ReLU if ``relu``."""

    @staticmethod
    def forward(ctx: Any, training: _core.ConvTraining, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        """Map (B, C, H, H) to (B, D, 2 H - 2 + K, 2 H - 2 + K)."""
        threads = torch.get_num_threads()
        out = training.transpose(_pixels(x), _pixels(weight), bias.detach().numpy(), relu=relu, num_threads=threads)
        ctx.training, ctx.out = training, out if relu else None
        ctx.save_for_backward(x, weight)
        return _channels_last(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of x, of the weight and of the bias."""
        x, weight = ctx.saved_tensors
        threads = torch.get_num_threads()
        if ctx.out is None:
            before = _pixels(gradients[0])
            bias = gradients[0].sum((0, 2, 3))
        else:
            before, sums = _core.relu_backward(ctx.out, _pixels(gradients[0]), num_threads=threads)
            bias = torch.from_numpy(sums)
        x_gradient = ctx.training.convolve(before, _pixels(weight), None, relu=False, num_threads=threads)
        weight_gradient = ctx.training.weight_gradient(before, _pixels(x), num_threads=threads)
        return None, _channels_last(x_gradient), _channels_last(weight_gradient), bias, None


def _rows(weight: Tensor) -> Tensor:
    """(C, D, K, K) as (C, K * K * D)."""
    return weight.detach().permute(0, 2, 3, 1).flatten(1)


def _pixels(x: Tensor) -> npt.NDArray[np.float32]:
    """(B, C, H, W) as a contiguous (B, H, W, C), without a copy where the memory format is channels last."""
    return x.detach().permute(0, 2, 3, 1).contiguous().numpy()


def _channels_last(x: npt.NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2)
