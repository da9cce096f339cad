"""M's weights and initial states in the native core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from worldmodels import _core
from worldmodels.models.mdnrnn import LOGSTD_RANGE, MDNRNN
from worldmodels.support.forks import check_threads_usable
from worldmodels.support.native import Native
from worldmodels.support.simd import Precision, check_precision
from worldmodels.support.validation import float_array

if LOGSTD_RANGE != _core.LOGSTD_RANGE:
    raise ImportError(f"the native core clamps log stds to {_core.LOGSTD_RANGE}, MDNRNN to {LOGSTD_RANGE}: rebuild it")

_MAX_LOGVAR = 80.0  # exp(logvar / 2) is finite; the same in the native core

#: Termination of a dream: termination logit above 0, sampled with M's probability, or none, with rewards weighted by
#: the probability of surviving to their step.
Termination = Literal["threshold", "sample", "expected"]


def check_termination(termination: str, mdnrnn: MDNRNN) -> str:
    """Validate a ``Termination``; all but ``"threshold"`` need a termination head."""
    if termination not in get_args(Termination):
        raise ValueError(f"termination: expected one of {', '.join(get_args(Termination))}, got {termination!r}")
    if termination != "threshold" and not mdnrnn.done_head:
        raise ValueError(f"termination: expected threshold, as mdnrnn has no termination head, got {termination}")
    return termination


def finite_array(name: str, value: npt.ArrayLike, shape: Sequence[int | str]) -> npt.NDArray[np.float32]:
    """Convert floats to contiguous float32 of a given shape, all finite, and copy them; errors of ``float_array``."""
    array = float_array(name, value, shape).copy()
    if not (finite := np.isfinite(array)).all():
        index = int(np.argmin(finite))
        raise ValueError(f"{name}: expected finite numbers, got {array.flat[index]} at flat index {index}")
    return array


def check_initial_latents(
    mdnrnn: MDNRNN, initial_mu: npt.ArrayLike, initial_logvar: npt.ArrayLike
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Validate and copy the distributions of the initial latents; arguments and errors as for :class:`Dream`."""
    mu = finite_array("initial_mu", initial_mu, ("K", mdnrnn.latent_size))
    logvar = finite_array("initial_logvar", initial_logvar, mu.shape)
    if (above := logvar > _MAX_LOGVAR).any():
        index = int(np.argmax(above))
        raise ValueError(
            f"initial_logvar: expected numbers of at most {_MAX_LOGVAR}, got {logvar.flat[index]} at flat index {index}"
        )
    return mu, logvar


def check_initial_states(
    mdnrnn: MDNRNN,
    initial_mu: npt.ArrayLike,
    initial_logvar: npt.ArrayLike,
    initial_h: npt.ArrayLike | None,
    initial_c: npt.ArrayLike | None,
) -> dict[str, npt.NDArray[np.float32] | None]:
    """Validate M and copy its initial states; arguments and errors as for :class:`Dream`."""
    if not isinstance(mdnrnn, MDNRNN):
        raise TypeError(f"mdnrnn: expected an MDNRNN, got {type(mdnrnn).__name__}")
    check_threads_usable()
    mu, logvar = check_initial_latents(mdnrnn, initial_mu, initial_logvar)
    if (initial_h is None) != (initial_c is None):
        raise ValueError("initial_h, initial_c: expected both or neither, got one")
    shape = (len(mu), mdnrnn.hidden_size)
    h = None if initial_h is None else finite_array("initial_h", initial_h, shape)
    c = None if initial_c is None else finite_array("initial_c", initial_c, shape)
    return {"initial_mu": mu, "initial_logvar": logvar, "initial_h": h, "initial_c": c}


def native_model(
    mdnrnn: MDNRNN,
    initial_mu: npt.ArrayLike,
    initial_logvar: npt.ArrayLike,
    precision: Precision = "float32",
    initial_h: npt.ArrayLike | None = None,
    initial_c: npt.ArrayLike | None = None,
    *,
    termination: Termination = "threshold",
) -> Native[_core.WorldModel]:
    """Copy M's weights and initial states into the native core; arguments and errors as for :class:`Dream`."""
    states = check_initial_states(mdnrnn, initial_mu, initial_logvar, initial_h, initial_c)
    weights = {
        name: np.array(tensor.detach().to(device="cpu", dtype=torch.float32).numpy(), order="C")
        for name, tensor in {
            "weight_ih": mdnrnn.lstm.get_parameter("weight_ih_l0"),
            "weight_hh": mdnrnn.lstm.get_parameter("weight_hh_l0"),
            "bias": mdnrnn.lstm.get_parameter("bias_ih_l0") + mdnrnn.lstm.get_parameter("bias_hh_l0"),
            "head_weight": mdnrnn.head.weight,
            "head_bias": mdnrnn.head.bias,
        }.items()
    }
    return Native(
        _world_model,
        latent_size=mdnrnn.latent_size,
        action_size=mdnrnn.action_size,
        hidden_size=mdnrnn.hidden_size,
        mixtures=mdnrnn.mixtures,
        restart_input=bool(mdnrnn.restart_input),
        done_head=bool(mdnrnn.done_head),
        reward_head=bool(mdnrnn.reward_head),
        precision=precision,
        termination=check_termination(termination, mdnrnn),
        done_pos_weight=mdnrnn.done_pos_weight,
        **states,
        **weights,
    )


def _world_model(*, precision: Precision, **arguments: Any) -> _core.WorldModel:
    check_precision(precision)
    return _core.WorldModel(bfloat16=precision == "bfloat16", **arguments)
