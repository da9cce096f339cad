"""Recordings: an episode as panels of pictures, with its actions and M's termination probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worldmodels.dream.native import Dream, DreamTrace
from worldmodels.models.agent import Recorder
from worldmodels.models.decoder import Decoder
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE

Pictures = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """An episode, or its first steps (T of them).

    Attributes:
        panels: Name of each panel -> (T, H, W, 3) uint8, one picture per step; drawn side by side.
        actions: (T, A) float32 in [-1, 1], the action taken at each picture.
        termination: (T,) float32, M's predicted probability that the episode terminates with each step; None for an M
            without a termination head.
        names: Names of the A actions. One of the form "left / right" is captioned by its direction.
        threshold: An action moves the player where its absolute value is above this.
        choices: Number of values of each discrete action; empty for continuous ones. ``names`` are those of the values.
        frames_per_second: Steps per second of the real environment.
        complete: Whether the last step is the last of the episode.
        first: Number of the first step.

    Raises:
        ValueError: There are no steps, or the arrays do not have T of them.
    """

    panels: Mapping[str, Pictures]
    actions: Floats
    termination: Floats | None = None
    names: Sequence[str] = field(default=("action",))
    threshold: float = 0.0
    choices: tuple[int, ...] = ()
    frames_per_second: int = 35
    complete: bool = True
    first: int = 0

    def __post_init__(self) -> None:
        steps = len(self.actions)
        lengths = {name: len(pictures) for name, pictures in self.panels.items()}
        if self.termination is not None:
            lengths["termination"] = len(self.termination)
        if steps == 0 or not self.panels or set(lengths.values()) != {steps}:
            raise ValueError(f"recording: expected {steps} > 0 steps in every panel, got {lengths}")
        if len(self.names) != self.actions.shape[1]:
            raise ValueError(f"names: expected {self.actions.shape[1]} of them, got {list(self.names)}")

    def __len__(self) -> int:
        return len(self.actions)

    def cut(self, first: int, steps: int) -> Recording:
        """Return at most ``steps`` steps from step ``first`` of the recording on."""
        chosen = slice(first, first + steps)
        return replace(
            self,
            panels={name: pictures[chosen] for name, pictures in self.panels.items()},
            actions=self.actions[chosen],
            termination=None if self.termination is None else self.termination[chosen],
            complete=self.complete and first + steps >= len(self),
            first=self.first + first,
        )

    def select(self, **titles: str) -> Recording:
        """Return the named panels only, with new titles."""
        return replace(self, panels={title: self.panels[name] for name, title in titles.items()})


def termination_probability(mdnrnn: MDNRNN, z: Floats, actions: Floats) -> Floats | None:
    """Predict the termination probability of every step of one episode from its latents and actions.

    The positive-class weight of M's termination loss is removed: a calibrated M gives the frequency of termination.

    Args:
        mdnrnn: M.
        z: (T, Z) latents of the episode.
        actions: (T, A) actions taken at them.

    Returns:
        (T,) float32; None where M has no termination head.
    """
    if not mdnrnn.done_head:
        return None
    where = mdnrnn.head.weight.device
    latents, taken = (torch.from_numpy(np.ascontiguousarray(array)).to(where)[None] for array in (z, actions))
    restart = torch.zeros(1, len(z), device=where)
    restart[:, 0] = 1
    with torch.inference_mode():
        out, _ = mdnrnn(latents, taken, restart)
    assert out.done_logit is not None
    return unweighted_probability(out.done_logit[0].cpu().numpy(), mdnrnn.done_pos_weight)


def unweighted_probability(logit: Floats, pos_weight: float) -> Floats:
    """Turn logits of a termination head into probabilities, without the positive-class weight of its loss."""
    shifted = logit.astype(np.float64) - math.log(pos_weight)
    probability: Floats = (0.5 * (1 + np.tanh(0.5 * shifted))).astype(np.float32)
    return probability


def from_recorder(recorder: Recorder, steps: int | None = None, **look: Any) -> Recording:
    """Make a recording of an agent's episode in the real environment: "game" and "V's reconstruction".

    Args:
        recorder: The agent, after its episode.
        steps: Number of steps to keep; None for all.
        look: Fields of :class:`Recording`.
    """
    total = len(recorder.actions)
    steps = total if steps is None else min(steps, total)
    actions = np.stack(recorder.actions[:steps])
    agent, z = recorder.agent, np.stack(recorder.latents[:steps])
    return Recording(
        {"game": np.stack(recorder.frames[:steps]), "V's reconstruction": recorder.reconstructions(steps)},
        actions,
        termination_probability(agent.mdnrnn, z, actions),
        complete=steps == total,
        **look,
    )


def from_dream(
    dream: Dream, trace: DreamTrace, vae: ConvVAE, done_pos_weight: float, steps: int | None = None, **look: Any
) -> Recording:
    """Make a recording of an episode in a dream: V's pictures of M's latents.

    Args:
        dream: The dream.
        trace: The episode, as :meth:`Dream.trace` gives it.
        vae: V.
        done_pos_weight: Positive-class weight of M's termination loss.
        steps: Number of steps to keep; None for all.
        look: Fields of :class:`Recording`.
    """
    total = len(trace.action)
    steps = total if steps is None else min(steps, total)
    termination = None
    if trace.done_logit is not None:
        termination = unweighted_probability(trace.done_logit[:steps], done_pos_weight)
    panels = {f"dream, temperature {dream.temperature:g}": Decoder(vae)(trace.z[:steps])}
    return Recording(panels, trace.action[:steps], termination, complete=steps == total, **look)
