"""M's weights and initial states, copied into the native core."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worldmodels import _core
from worldmodels.models.mdnrnn import LOGSTD_RANGE, MDNRNN
from worldmodels.support.forks import check_threads_usable
from worldmodels.support.native import Native
from worldmodels.support.simd import Precision, check_precision
from worldmodels.support.validation import check_real, float_array

if LOGSTD_RANGE != _core.LOGSTD_RANGE:
    raise ImportError(f"the native core clamps log stds to {_core.LOGSTD_RANGE}, MDNRNN to {LOGSTD_RANGE}: rebuild it")


def native_model(
    mdnrnn: MDNRNN,
    initial_mu: npt.ArrayLike,
    initial_logvar: npt.ArrayLike,
    precision: Precision = "float32",
    initial_h: npt.ArrayLike | None = None,
    initial_c: npt.ArrayLike | None = None,
    *,
    done_weight: float | None = None,
    expected_returns: bool = False,
) -> Native[_core.WorldModel]:
    """Copies M's weights and starts into the native core; arguments and errors as for :class:`Dream`."""
    if not isinstance(mdnrnn, MDNRNN):
        raise TypeError(f"mdnrnn: expected an MDNRNN, got {type(mdnrnn).__name__}")
    if done_weight is not None and not mdnrnn.done_head:
        raise ValueError("done_weight: expected none without a done head")
    if done_weight is not None and not check_real("done_weight", done_weight) > 0:
        raise ValueError(f"done_weight: expected a finite number above 0, got {done_weight}")
    check_threads_usable()
    mu = float_array("initial_mu", initial_mu, ("K", mdnrnn.latent_size)).copy()
    logvar = float_array("initial_logvar", initial_logvar, (mu.shape[0], mdnrnn.latent_size)).copy()
    shape = (mu.shape[0], mdnrnn.hidden_size)
    h = None if initial_h is None else float_array("initial_h", initial_h, shape).copy()
    c = None if initial_c is None else float_array("initial_c", initial_c, shape).copy()
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
        initial_mu=mu,
        initial_logvar=logvar,
        initial_h=h,
        initial_c=c,
        termination="threshold" if done_weight is None else "expected" if expected_returns else "sample",
        done_pos_weight=1.0 if done_weight is None else float(done_weight),
        **weights,
    )


def _world_model(*, precision: Precision, **arguments: Any) -> _core.WorldModel:
    check_precision(precision)
    return _core.WorldModel(bfloat16=precision == "bfloat16", **arguments)
