"""V's encoder for inference: a frame's latents do not depend on the other frames of the batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from worldmodels import _core
from worldmodels.models.device import autocast, uses_bfloat16
from worldmodels.models.vae import ConvVAE
from worldmodels.support.forks import check_threads_usable
from worldmodels.support.native import Native
from worldmodels.support.validation import any_array, check_integer, check_threads

Floats = npt.NDArray[np.float32]


def encodes_in_bfloat16(where: torch.device, precision: str) -> bool:
    """Resolve the precision of an encoder.

    ``"auto"`` is float32 on a CPU: the native core's Winograd convolutions are faster than PyTorch's in bfloat16. On
    two cores of an AMD EPYC (Zen 5): 21,885 and 16,101 frames/s in batches of 256 (``worldmodels bench``).

    Raises:
        ValueError: ``precision`` is ``"bfloat16"``, which this CPU does not have.
    """
    return uses_bfloat16(where, "float32" if precision == "auto" and where.type == "cpu" else precision)


class Encoder:
    """Encode frames, bit-identical for any batch composition.

    The native core encodes in float32 on a CPU. PyTorch encodes on a GPU, in bfloat16, and for subclasses of
    ``ConvVAE``. It uses blocks of a fixed size, padded with black frames, because rounding depends on the batch size.

    Args:
        vae: V; its weights are copied, or it is moved to the device.
        where: Device.
        precision: Precision of V's products, see :func:`encodes_in_bfloat16`.
        block: Frames per forward pass in PyTorch.
        num_threads: Number of threads of the native core; None for all available CPUs, at most ``OMP_NUM_THREADS``.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of range, a weight is not finite, or the precision is not supported.
    """

    def __init__(
        self,
        vae: ConvVAE,
        where: torch.device,
        precision: str = "float32",
        *,
        block: int = 64,
        num_threads: int | None = None,
    ) -> None:
        for name, value, kind in (("vae", vae, ConvVAE), ("where", where, torch.device), ("precision", precision, str)):
            if not isinstance(value, kind):
                raise TypeError(f"{name}: expected a {kind.__name__}, got {value!r:.100}")
        if precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision: expected auto, float32 or bfloat16, got {precision!r:.100}")
        bfloat16 = encodes_in_bfloat16(where, precision)
        check_threads_usable()
        self._copied: Native[_core.Encoder] | None = None
        self._threads = check_threads(num_threads)
        self._block = check_integer("block", block, 1, 2**24)
        if where.type == "cpu" and not bfloat16 and type(vae) is ConvVAE:
            self._copied = _native(vae)
        else:
            self._vae = vae.to(where, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            self._where, self._precision = where, "bfloat16" if bfloat16 else "float32"

    @property
    def _native(self) -> _core.Encoder | None:
        return None if self._copied is None else self._copied.core

    def __call__(self, frames: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Encode (n, 64, 64, 3) uint8 frames, n > 0, to (mu, logvar), each (n, Z) float32."""
        frames = any_array("frames", frames)
        if frames.shape[1:] != (64, 64, 3) or len(frames) == 0 or frames.dtype != np.uint8:
            raise ValueError(f"frames: expected (B, 64, 64, 3) uint8, got {frames.shape} {frames.dtype}")
        if self._native is not None:
            return self._native.encode(np.ascontiguousarray(frames), self._threads)
        check_threads_usable()
        blocks = np.split(frames, range(self._block, len(frames), self._block))
        mu, logvar = zip(*map(self._encode_block, blocks), strict=True)
        return np.concatenate(mu), np.concatenate(logvar)

    @torch.inference_mode()
    def _encode_block(self, frames: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        block = np.zeros((self._block, *frames.shape[1:]), np.uint8)
        block[: len(frames)] = frames
        x = torch.from_numpy(block).to(self._where).permute(0, 3, 1, 2).float().div_(255)
        with autocast(self._where, self._precision):
            mu, logvar = self._vae.encode(x)
        return mu[: len(frames)].float().cpu().numpy(), logvar[: len(frames)].float().cpu().numpy()


def _native(vae: ConvVAE) -> Native[_core.Encoder]:
    def copied(tensor: torch.Tensor) -> Floats:
        return np.array(tensor.detach().to(device="cpu", dtype=torch.float32).numpy(), order="C")

    layers = [layer for layer in vae.encoder if isinstance(layer, nn.Conv2d)]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return Native(
        _core.Encoder,
        weights=[copied(layer.weight) for layer in layers],
        biases=[copied(bias) for bias in biases],
        mu=copied(vae.mu.weight),
        mu_bias=copied(vae.mu.bias),
        logvar=copied(vae.logvar.weight),
        logvar_bias=copied(vae.logvar.bias),
    )
