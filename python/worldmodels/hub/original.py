"""V, M and C of the original code (Ha & Schmidhuber, 2018): its JSON files as models of this package.

Source: the formats of github.com/hardmaru/WorldModelsExperiments: ``vae.json`` and ``rnn.json`` are lists of nested
lists of integers, ``round(10000 p)``, in the order in which TensorFlow created the variables; ``initial_z.json`` is
``[mu, logvar]`` in the same integers; ``log/*.best.json`` is ``[parameters of C, score]`` in floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from worldmodels.models.controller import Controller, Features
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE
from worldmodels.support.files import read_json

Floats = npt.NDArray[np.float64]

_SCALE = 10_000  # integers per unit
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_LEVEL = 1 / 255  # a grey level of a frame in [0, 1]
_RESTART_FACTOR = 10.0  # positive-class weight of Doom's restart loss
_HIDDEN_UNITS = 40  # of CarRacing's C with a hidden layer
_CONVOLUTIONS = ((3, 32), (32, 64), (64, 128), (128, 256))  # channels; 4x4 pixels
_DECONVOLUTIONS = ((1024, 128, 5), (128, 64, 5), (64, 32, 6), (32, 3, 6))  # channels and pixels
#: Folders of each file in the order of the search: those that the original code plays with, then those it trains.
_PLACES = {
    "vae.json": ("vae", "tf_models", "tf_vae", "."),
    "rnn.json": ("rnn", "tf_models", "tf_rnn", "."),
    "initial_z.json": ("initial_z", "tf_models", "tf_initial_z", "."),
    "*.best.json": ("log", "."),
}
_OTHER_CHECKPOINTS = ("vae/best.tar", "mdrnn/best.tar", "ctrl/best.tar")


class Original(NamedTuple):
    """Models of the original code.

    Attributes:
        task: ``"carracing"`` or ``"takecover"``.
        vae: V. The grey level by which the original code's frames are darker is folded into its first bias.
        mdnrnn: M.
        controller: Architecture of C.
        params: (controller.size,) float32 parameters of C.
        score: Score that is stored with C; None if there is none.
        initial_mu: (K, Z) float32 means of the initial latents.
        initial_logvar: (K, Z) float32 log variances of the initial latents.
    """

    task: str
    vae: ConvVAE
    mdnrnn: MDNRNN
    controller: Controller
    params: npt.NDArray[np.float32]
    score: float | None
    initial_mu: npt.NDArray[np.float32]
    initial_logvar: npt.NDArray[np.float32]


def read_original(folder: str | Path) -> Original:
    """Read the JSON files of an experiment of the original code: ``carracing`` or ``doomrnn``.

    The task and all sizes follow from the shapes. Of C's feature sets with as many parameters, the released one is
    taken: [z, h] in CarRacing, [z, c, h] in TakeCover.

    Args:
        folder: Folder of the experiment, or a folder with the four files.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged or has other shapes, or the folder holds checkpoints of another implementation.
    """
    where = Path(folder)
    _check_implementation(where)
    paths = {name: _find(where, name) for name in _PLACES}
    vae = _vae(paths["vae.json"])
    mdnrnn = _mdnrnn(paths["rnn.json"], vae.latent_size)
    controller, params, score = _controller(paths["*.best.json"], mdnrnn)
    initial_mu, initial_logvar = _initial_latents(paths["initial_z.json"], vae.latent_size)
    task = "takecover" if mdnrnn.done_head else "carracing"
    return Original(task, vae, mdnrnn, controller, params, score, initial_mu, initial_logvar)


def _check_implementation(folder: Path) -> None:
    """Refuse other implementations and folders of several experiments."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found = [name for name in _OTHER_CHECKPOINTS if (folder / name).is_file()]
    if found:
        raise ValueError(
            f"{folder}: expected the JSON files of the original code, got {', '.join(found)}, PyTorch checkpoints of "
            "github.com/ctallec/world-models. That is another model: its decoder has one more ReLU, its M samples one "
            "mixture component for all latent dimensions, and its V predicts log sigma. Train the paper's models with "
            "`worldmodels run carracing --preset paper`, or a smaller preset"
        )
    parts = [name for name in ("carracing", "doomrnn") if (folder / name).is_dir()]
    if parts:
        raise ValueError(f"{folder}: expected the folder of one experiment, such as {folder / parts[0]}")


def _find(folder: Path, name: str) -> Path:
    """Find the file of a name in the first folder of ``_PLACES`` that has it."""
    for place in _PLACES[name]:
        found = sorted((folder / place).glob(name))
        if len(found) > 1:
            raise ValueError(f"{folder / place}: expected one {name}, got {', '.join(path.name for path in found)}")
        if found:
            return found[0]
    places = ", ".join(str(Path(place) / name) for place in _PLACES[name])
    raise FileNotFoundError(f"{folder}: expected {name} of the original code, in one of {places}")


def _arrays(path: Path, values: Any, scale: float = _SCALE) -> list[Floats]:
    """Convert nested lists of numbers to arrays."""
    if not isinstance(values, list):
        raise ValueError(f"{path}: expected a list of arrays, got {values!r:.100}")
    arrays = []
    for index, value in enumerate(values):
        try:
            array = np.array(value)
        except ValueError as error:
            raise ValueError(f"{path}: expected numbers in array {index}, got lists of different lengths") from error
        if array.dtype.kind not in "iuf" or not (np.abs(array / scale) <= _MAX_FLOAT32).all():
            raise ValueError(f"{path}: expected finite numbers of float32 in array {index}, got {array.dtype}")
        arrays.append(array / scale)
    return arrays


def _check_shapes(path: Path, arrays: Sequence[Floats], expected: Sequence[tuple[int, ...]]) -> None:
    found = [array.shape for array in arrays]
    if found != list(expected):
        raise ValueError(f"{path}: expected arrays of shapes {list(expected)}, got {found}")


def _vae(path: Path) -> ConvVAE:
    """Read V: kernels (height, width, in, out) of convolutions, (height, width, out, in) of transposed ones."""
    arrays = _arrays(path, read_json(path))
    latent_size = arrays[9].shape[0] if len(arrays) > 9 and arrays[9].ndim == 1 else 0
    if latent_size == 0:
        raise ValueError(f"{path}: expected the 22 arrays of a ConvVAE, got {[array.shape for array in arrays]}")
    shapes: list[tuple[int, ...]] = []
    for channels, out in _CONVOLUTIONS:
        shapes += [(4, 4, channels, out), (out,)]
    shapes += [(1024, latent_size), (latent_size,)] * 2 + [(latent_size, 1024), (1024,)]
    for channels, out, pixels in _DECONVOLUTIONS:
        shapes += [(pixels, pixels, out, channels), (out,)]
    _check_shapes(path, arrays, shapes)
    vae = ConvVAE(latent_size)
    kernels, biases = arrays[::2], list(arrays[1::2])
    # The original code stores a frame x in 0 to 255 as (1 - x) * 255 modulo 256. That is x - 1, not an inversion.
    biases[0] = biases[0] - kernels[0].sum(axis=(0, 1, 2)) * _LEVEL
    flat = [_channels_first(kernel).T for kernel in kernels[4:6]]
    weights = [
        *(kernel.transpose(3, 2, 0, 1) for kernel in kernels[:4]),
        *flat,
        kernels[6].T,
        *(kernel.transpose(3, 2, 0, 1) for kernel in kernels[7:]),
    ]
    layers = [layer for layer in vae.encoder if hasattr(layer, "weight")]
    layers += [vae.mu, vae.logvar, *(layer for layer in vae.decoder if hasattr(layer, "weight"))]
    with torch.no_grad():
        for layer, weight, bias in zip(layers, weights, biases, strict=True):
            layer.get_parameter("weight").copy_(torch.from_numpy(weight.copy()))
            layer.get_parameter("bias").copy_(torch.from_numpy(bias))
    return vae.eval()


def _channels_first(kernel: Floats) -> Floats:
    """Reorder the rows of a matrix from features (y, x, channel) to (channel, y, x)."""
    return kernel.reshape(2, 2, 256, -1).transpose(2, 0, 1, 3).reshape(1024, -1)


def _mdnrnn(path: Path, latent_size: int) -> MDNRNN:
    """Read M: an LSTM's matrix over [input, h] and its bias, and the head's; CarRacing's file has the head first."""
    arrays = _arrays(path, read_json(path))
    found = [array.shape for array in arrays]
    if len(arrays) != 4 or [array.ndim for array in arrays] != [2, 1, 2, 1]:
        raise ValueError(
            f"{path}: expected the matrix and the bias of an LSTM without layer normalization, and of its head, "
            f"got arrays of shapes {found}"
        )
    doom = found[0][1] == 4 * found[2][0]
    kernel, bias, head, head_bias = arrays if doom else (*arrays[2:], *arrays[:2])
    hidden_size = head.shape[0]
    inputs = kernel.shape[0] - hidden_size - latent_size  # action, and restart flag in Doom
    mixtures, odd = divmod(head.shape[1] - doom, 3 * latent_size)
    if inputs != (2 if doom else 3) or mixtures < 1 or odd:
        wanted = f"[z ({latent_size}), {'action, restart flag' if doom else 'three actions'}]"
        raise ValueError(f"{path}: expected an M with the input {wanted}, got arrays of shapes {found}")
    _check_shapes(
        path,
        [kernel, bias, head, head_bias],
        [
            (latent_size + inputs + hidden_size, 4 * hidden_size),
            (4 * hidden_size,),
            (hidden_size, head.shape[1]),
            (head.shape[1],),
        ],
    )
    model = MDNRNN(
        latent_size,
        1 if doom else 3,
        hidden_size,
        mixtures,
        restart_input=doom,
        done_head=doom,
        done_pos_weight=_RESTART_FACTOR if doom else 1.0,
    )
    rows = kernel.shape[0] - hidden_size
    with torch.no_grad():  # the forget gate's bias of 1 is the frozen second bias of MDNRNN
        model.lstm.get_parameter("weight_ih_l0").copy_(torch.from_numpy(_gates(kernel[:rows].T)))
        model.lstm.get_parameter("weight_hh_l0").copy_(torch.from_numpy(_gates(kernel[rows:].T)))
        model.lstm.get_parameter("bias_ih_l0").copy_(torch.from_numpy(_gates(bias)))
        model.head.weight.copy_(torch.from_numpy(head.T.copy()))
        model.head.bias.copy_(torch.from_numpy(head_bias))
    return model.eval()


def _gates(rows: Floats) -> Floats:
    """Reorder the rows of an LSTM from TensorFlow's gates i, j, f, o to PyTorch's i, f, g, o (g is j)."""
    i, j, f, o = np.split(rows, 4)
    return np.concatenate([i, f, j, o])


def _controller(path: Path, mdnrnn: MDNRNN) -> tuple[Controller, npt.NDArray[np.float32], float | None]:
    """Read C: per layer the bias, if there is one, and a matrix (in, out)."""
    data = read_json(path)
    if not isinstance(data, list) or not data:
        raise ValueError(f"{path}: expected [parameters of C, score], got {data!r:.100}")
    (params,) = _arrays(path, data[:1], scale=1)
    score = data[1] if len(data) > 1 else None
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    if score is not None and not (is_number and abs(score) <= _MAX_FLOAT32):
        raise ValueError(f"{path}: expected a finite number as the score of C, got {score!r:.100}")
    sizes = (mdnrnn.latent_size, mdnrnn.hidden_size, mdnrnn.action_size)
    doom = mdnrnn.done_head
    features: tuple[Features, ...] = ("zch", "zh", "z")
    candidates = [Controller(*sizes, f, bias=not doom, squash="tanh" if doom else "carracing") for f in features]
    if not doom:
        candidates.append(Controller(*sizes, "z", bias=True, hidden_units=_HIDDEN_UNITS, squash="carracing"))
    fitting = [controller for controller in candidates if params.shape == (controller.size,)]
    if not fitting:
        known = ", ".join(f"({controller.size},)" for controller in candidates)
        raise ValueError(f"{path}: expected parameters of one of the shapes {known}, got {params.shape}")
    controller = fitting[0]
    weights: list[npt.NDArray[np.floating]] = []
    start = 0
    for rows, columns in controller.layer_shapes:
        bias = params[start : start + rows * controller.bias]
        matrix = params[start + len(bias) : start + len(bias) + rows * columns].reshape(columns, rows)
        weights += [matrix.T, bias] if controller.bias else [matrix.T]
        start += len(bias) + rows * columns
    return controller, controller.flatten(weights).astype(np.float32), score


def _initial_latents(path: Path, latent_size: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Read the initial latents."""
    arrays = _arrays(path, read_json(path))
    rows = arrays[0].shape[0] if arrays and arrays[0].ndim == 2 else 0
    if rows < 1:
        raise ValueError(f"{path}: expected [mu, logvar], got arrays of shapes {[array.shape for array in arrays]}")
    _check_shapes(path, arrays, [(rows, latent_size)] * 2)
    mu, logvar = (array.astype(np.float32) for array in arrays)
    return mu, logvar
