"""V's encoder on frames of the real world, in blocks of one size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from worldmodels.models.training import autocast
from worldmodels.models.vae import ConvVAE

Floats = npt.NDArray[np.float32]


class Encoder:
    """Encodes frames in blocks of a fixed size: how a row is rounded depends on how many are computed with it.

    The latents of a frame are the same bits whatever is encoded beside it; the last block is filled up with black
    frames.

    Args:
        vae: V; it is moved to the device.
        block: frames that are computed at once.
        where: the device.
        precision: of V's products, as :func:`worldmodels.models.training.autocast` takes it.
    """

    def __init__(self, vae: ConvVAE, block: int, where: torch.device, precision: str = "float32") -> None:
        self._device = where
        self._vae = vae.to(self._device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._block, self._precision = block, precision

    @torch.inference_mode()
    def __call__(self, frames: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """(n, 64, 64, 3) uint8 frames, n > 0, to mu and the standard deviation, each (n, Z) float32."""
        parts = []
        for start in range(0, len(frames), self._block):
            rows = frames[start : start + self._block]
            block = rows
            if len(rows) < self._block:
                block = np.zeros((self._block, *frames.shape[1:]), np.uint8)
                block[: len(rows)] = rows
            x = torch.from_numpy(block).to(self._device).permute(0, 3, 1, 2).float().div_(255)
            with autocast(self._device, self._precision):
                mu, logvar = self._vae.encode(x)
            parts.append(torch.stack([mu.float(), (0.5 * logvar.float()).exp()])[:, : len(rows)].cpu())
        mu, std = torch.cat(parts, dim=1).numpy()
        return mu, std
