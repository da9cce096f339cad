"""Settings of the training of V and of M. The defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from worldmodels.support.settings import setting

TorchPrecision = Literal["auto", "float32", "bfloat16"]
PRECISION_HELP = "bfloat16 (autocast), float32, or auto: bfloat16 where the device has native support for it"


@dataclass(frozen=True)
class TrainingConfig:
    """Settings shared by the training of V and of M."""

    init_from: str = setting("", "run folder or pretrained world model to initialize from", location=True)
    checkpoint_every: int = setting(250, "steps between checkpoints, each with a validation and an image grid")
    patience: int = setting(0, "early stopping: validations without improvement; 0 for never", zero=True)
    keep: Literal["best", "last"] = setting("best", "weights to export: best by validation loss, or last")
    precision: TorchPrecision = setting("auto", PRECISION_HELP)


@dataclass(frozen=True)
class TrainVAEConfig(TrainingConfig):
    """Train V, the ConvVAE."""

    latent_size: int = setting(64, "dimensions of z")
    steps: int = setting(30_000, "optimizer steps; 0 keeps the initial weights", zero=True, common=True)
    batch_size: int = setting(100, "frames per step, over all processes of torchrun")
    micro_batch_size: int = setting(
        0, "frames per forward pass (gradient accumulation); 0 for the whole batch", zero=True, machine=True
    )
    lr: float = setting(1e-4, "learning rate of Adam; peak with schedule cosine")
    schedule: Literal["constant", "cosine"] = setting(
        "constant", "learning rate schedule: constant, or cosine with warm-up, down to 2 % of lr"
    )
    kl_tolerance: float = setting(0.5, "free nats of KL divergence per latent dimension", zero=True)
    kl_weight: float = setting(1.0, "weight of the KL term")
    quartic_weight: float = setting(
        0.0, "weight of the fourth power of the pixel error, which emphasizes small bright objects", zero=True
    )
    mean_output: bool = setting(
        False, "initialize V's output to the mean colour of the frames, for small objects on a plain background"
    )
    validation_frames: int = setting(2_000, "held-out frames for validation")
    compile: bool = setting(False, "torch.compile V (worthwhile on a GPU)", machine=True)
    num_workers: int = setting(0, "processes that load frames; 0 for a background thread", zero=True, machine=True)


@dataclass(frozen=True)
class TrainRNNConfig(TrainingConfig):
    """Train M, the MDN-RNN."""

    hidden_size: int = setting(512, "LSTM units", common=True)
    num_mixtures: int = setting(5, "mixture components per latent dimension")
    restart_input: bool = setting(True, "feed a flag that marks the first frame of an episode")
    done_head: bool = setting(True, "predict termination")
    reward_head: bool = setting(False, "predict the reward")
    steps: int = setting(24_400, "optimizer steps; 0 keeps the initial weights", zero=True, common=True)
    batch_size: int = setting(100, "sequences per step, over all processes of torchrun")
    sequence_length: int = setting(500, "time steps per sequence; the LSTM state carries over to the next one")
    micro_batch_steps: int = setting(
        0,
        "time steps per forward pass (gradient accumulation), to bound memory; 0 for 50,000, or 5,000 on a GPU",
        zero=True,
        machine=True,
    )
    lr: float = setting(1e-3, "initial learning rate of Adam; peak with schedule cosine")
    lr_end: float = setting(1e-5, "final learning rate")
    lr_decay: float = setting(0.99999, "schedule exponential: lr = (lr - lr_end) * lr_decay^step + lr_end")
    schedule: Literal["exponential", "cosine"] = setting(
        "exponential", "learning rate schedule: exponential (paper), or cosine with warm-up, down to lr_end"
    )
    grad_clip: float = setting(1.0, "clip gradients to this absolute value")
    done_pos_weight: float = setting(10.0, "positive-class weight of the termination loss")
    done_lookahead: int = setting(
        0,
        "train the termination head to fire this many steps early; the last frames of each episode are dropped",
        zero=True,
    )
    reward_clip: float = setting(0.0, "clip rewards to this absolute value; 0 for no clipping", zero=True)
    validation_fraction: float = setting(0.05, "fraction of the episodes held out for validation", below=1)
