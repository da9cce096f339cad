"""Checks of the settings of V's and M's training."""

from __future__ import annotations

from worldmodels.data.latents import are_held_out
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import Config
from worldmodels.pipeline.preflight.files import header
from worldmodels.pipeline.preflight.limits import (
    INT32,
    MAX_FLOAT32,
    MAX_LOSS_WEIGHT,
    MAX_PARALLEL,
    MAX_ROWS,
    at_most,
    check_memory,
    check_processes,
)
from worldmodels.pipeline.stage import M, V

_MAX_LATENT_SIZE = 2**14  # of the native encoder
_BYTES_PER_PARAMETER = 16  # in training: weight, gradient and Adam's two moments, in float32


def check_precision(name: str, precision: str) -> None:
    """Check that the device supports a precision.

    Args:
        name: Name of the setting.
        precision: ``"auto"``, ``"float32"`` or ``"bfloat16"``.

    Raises:
        ValueError: The precision is bfloat16, and the device does not support it.
    """
    if precision != "bfloat16":
        return
    import torch

    from worldmodels.models.device import autocast, device

    where = device()
    try:
        autocast(where, precision)
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).partition(': ')[2]}") from error
    if where.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"{name}: expected float32 or auto, as this GPU has no bfloat16, got bfloat16")


def check_sizes(config: Config) -> None:
    """Check the sizes of V and M against the limits of the native core and the memory of training."""
    vae, rnn = config.train_vae, config.train_rnn
    at_most("train_vae.latent_size", vae.latent_size, _MAX_LATENT_SIZE)
    at_most("train_rnn.hidden_size", rnn.hidden_size, MAX_ROWS)
    at_most("train_rnn.num_mixtures", rnn.num_mixtures, (MAX_ROWS - 2) // (3 * vae.latent_size))
    size, head = rnn.hidden_size, 3 * vae.latent_size * rnn.num_mixtures
    parameters = 4 * size * (vae.latent_size + size + 2) + head * size
    check_memory("train_rnn.hidden_size", size, parameters * _BYTES_PER_PARAMETER)


def check_train_vae(config: Config) -> None:
    """Check the settings of V's training, and the V of ``train_vae.init_from``."""
    vae = config.train_vae
    check_precision("train_vae.precision", vae.precision)
    for name in ("batch_size", "micro_batch_size", "validation_frames", "steps"):
        at_most(f"train_vae.{name}", getattr(vae, name), INT32)
    at_most("train_vae.num_workers", vae.num_workers, MAX_PARALLEL)
    at_most("train_vae.lr", vae.lr, MAX_FLOAT32)
    for name in ("kl_tolerance", "kl_weight", "quartic_weight"):
        at_most(f"train_vae.{name}", getattr(vae, name), MAX_LOSS_WEIGHT)
    check_processes("train_vae.batch_size", vae.batch_size, "frames")
    check_memory("train_vae.batch_size", vae.batch_size, vae.batch_size * (64 * 64 * 3 + 4 * vae.latent_size))
    if vae.init_from:
        found = header("train_vae.init_from", vae.init_from, V).get("config")
        expected = {"latent_size": vae.latent_size}
        if found != expected:
            raise ValueError(
                f"train_vae.init_from: expected {expected} as in the settings, got {found} in {vae.init_from}"
            )


def check_train_rnn(config: Config, task: tasks.Task) -> None:
    """Check the settings of M's training, and the M of ``train_rnn.init_from``."""
    rnn = config.train_rnn
    check_precision("train_rnn.precision", rnn.precision)
    for name in ("batch_size", "sequence_length", "micro_batch_steps", "steps"):
        at_most(f"train_rnn.{name}", getattr(rnn, name), INT32)
    at_most("train_rnn.lr_decay", rnn.lr_decay, 1)
    for name in ("lr", "lr_end"):
        at_most(f"train_rnn.{name}", getattr(rnn, name), MAX_FLOAT32)
    for name in ("done_pos_weight", "grad_clip"):
        at_most(f"train_rnn.{name}", getattr(rnn, name), MAX_LOSS_WEIGHT)
    episodes = config.collect.episodes
    training = episodes - int(are_held_out(episodes, rnn.validation_fraction).sum())
    sequences = rnn.batch_size if config.collect.include else min(rnn.batch_size, config.collect.episodes)
    check_processes("train_rnn.batch_size", rnn.batch_size, "sequences")
    if not config.collect.include:
        check_processes("collect.episodes", training, "training episodes")
    values = 2 * config.train_vae.latent_size + len(task.actions)
    check_memory("train_rnn.sequence_length", rnn.sequence_length, 4 * sequences * rnn.sequence_length * values)
    if rnn.done_lookahead >= task.max_steps:
        raise ValueError(
            f"train_rnn.done_lookahead: expected less than {task.max_steps}, the longest episode of {task.name}, "
            f"got {rnn.done_lookahead}"
        )
    if rnn.init_from:
        found = header("train_rnn.init_from", rnn.init_from, M).get("config")
        if isinstance(found, dict):
            found.pop("done_pos_weight", None)
        expected = {
            "latent_size": config.train_vae.latent_size,
            "action_size": len(task.actions),
            "hidden_size": rnn.hidden_size,
            "mixtures": rnn.num_mixtures,
            "restart_input": rnn.restart_input,
            "done_head": rnn.done_head,
            "reward_head": rnn.reward_head,
        }
        if found != expected:
            raise ValueError(
                f"train_rnn.init_from: expected {expected} as in the settings, got {found} in {rnn.init_from}"
            )
