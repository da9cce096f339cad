"""V's decoder for inference, folded: its linear layer and its first transposed convolution are one matrix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from worldmodels import _core
from worldmodels.models.vae import ConvVAE, decode
from worldmodels.support.native import Native
from worldmodels.support.validation import check_threads, float_array

Floats = npt.NDArray[np.float32]


class Decoder:
    """Decode latents to frames.

    The native core decodes in float32 on a CPU; the bits of a frame do not depend on the other frames. PyTorch decodes
    on a GPU and for subclasses of ``ConvVAE``; its rounding may depend on the number of frames.

    Args:
        vae: V; its weights are copied if the native core decodes.
        num_threads: Number of threads of the native core; None for all available CPUs, at most ``OMP_NUM_THREADS``.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of range, or a weight is not finite.
    """

    def __init__(self, vae: ConvVAE, *, num_threads: int | None = None) -> None:
        if not isinstance(vae, ConvVAE):
            raise TypeError(f"vae: expected a ConvVAE, got {vae!r:.100}")
        self._latent_size, self._threads = vae.latent_size, check_threads(num_threads)
        self._native: Native[_core.Decoder] | None = None
        if type(vae) is ConvVAE and next(vae.parameters()).device.type == "cpu":
            (point, point_bias), *others = folded_decoder(vae)
            weights, biases = [weight for weight, _ in others], [bias for _, bias in others]
            self._native = Native(_core.Decoder, point=point, point_bias=point_bias, weights=weights, biases=biases)
        else:
            self._vae = vae.eval()

    def __call__(self, z: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Decode (n, Z) float32 latents, n > 0, to (n, 64, 64, 3) uint8 frames."""
        latents = float_array("z", z, ("B", self._latent_size))
        if self._native is not None:
            return self._native.core.decode(latents, self._threads)
        return decode(self._vae, latents)


def compact_weights(vae: ConvVAE) -> dict[str, torch.Tensor]:
    """Return weights of the same function as V's, in 2.6 instead of 8.9 MB of float16 at 64 latents.

    As no activation follows the decoder's linear layer, ``latent_size + 1`` of its units suffice: one per latent, and a
    constant one for the folded bias. The others are zero and left out; :meth:`ConvVAE.complete` appends them.

    Args:
        vae: V.

    Returns:
        float32 tensors by the names of ``vae.state_dict()``, for a file of weights.
    """
    size = vae.latent_size
    (point, offset), *_ = folded_decoder(vae)  # (3200, Z), (3200,)
    weights = {name: tensor.detach().float().cpu() for name, tensor in vae.state_dict().items()}
    if size >= len(weights["decoder.0.weight"]):
        return weights
    bias = weights["decoder.2.bias"].numpy()
    rows = np.concatenate([point.T, (offset - np.tile(bias, len(offset) // len(bias)))[None]])  # ((y, x, channel))
    kernel = rows.reshape(size + 1, 5, 5, len(bias)).transpose(0, 3, 1, 2)
    return weights | {
        "decoder.0.weight": torch.eye(size + 1, size),
        "decoder.0.bias": torch.eye(size + 1)[size],
        "decoder.2.weight": torch.from_numpy(np.ascontiguousarray(kernel)),
    }


def folded_decoder(vae: ConvVAE) -> list[tuple[Floats, Floats]]:
    """Fold the decoder's linear layer into its first transposed convolution, between which there is no activation.

    The folded decoder has 490,083 parameters at 64 latents instead of 3,625,571 and is the same function. Products are
    summed in float64.

    Args:
        vae: V.

    Returns:
        Weights and biases of the four layers: a matrix (3200, Z) with its bias (3200,), whose rows are the 5x5 pixels
        of 128 channels in the order (y, x, channel), then the transposed convolutions (C, D, K, K) and (D,).
    """
    linear, *_ = (layer for layer in vae.decoder if isinstance(layer, nn.Linear))
    point, *others = (layer for layer in vae.decoder if isinstance(layer, nn.ConvTranspose2d))

    def values(tensor: torch.Tensor | None) -> npt.NDArray[np.float64]:
        assert tensor is not None
        return tensor.detach().to(device="cpu", dtype=torch.float64).numpy()

    kernel = values(point.weight)  # (1024, 128, 5, 5)
    rows = kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])  # ((y, x, channel), 1024)
    bias = rows @ values(linear.bias) + np.tile(values(point.bias), kernel.shape[2] * kernel.shape[3])
    layers = [(rows @ values(linear.weight), bias)] + [(values(layer.weight), values(layer.bias)) for layer in others]
    return [(np.array(weight, np.float32), np.array(offset, np.float32)) for weight, offset in layers]
