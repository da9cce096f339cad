"""Quality of V and M on held-out episodes: reconstruction of moving pixels, calibration, open-loop predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worldmodels.data.episodes import EpisodeStore
from worldmodels.data.latents import Latents
from worldmodels.data.records import CalibrationBin, PixelQuality, RNNQuality, RolloutQuality, VAEQuality
from worldmodels.data.sequences import PackedSequences
from worldmodels.models.device import on_device, seed_step
from worldmodels.models.mdnrnn import MDNRNN, MDNOutput, State, mdn_nll
from worldmodels.models.vae import ConvVAE, decode, sample_latent

#: Classes of pixels by their change: minimum and maximum difference to the previous frame, of any channel, in 0-255.
PIXELS = {"all": (0, 255), "still": (0, 0), "moving": (1, 255), "moving much": (32, 255)}
#: Edges of the bins of predicted probabilities, denser at the lower end because terminations are rare.
BINS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: Prediction horizons, in steps.
HORIZONS = (1, 10, 50, 100)

_FRAMES = 1000  # maximum number of frames of :func:`reconstruction`
_AT_ONCE = 100  # context steps per forward pass, to bound memory
_MIN_CONTEXT = 20  # minimum number of context frames


def reconstruction(model: ConvVAE, store: EpisodeStore, frames: npt.NDArray[np.int64]) -> VAEQuality:
    """Measure V's squared error per pixel by how much the pixel changed; channels in [0, 1] are summed.

    Args:
        model: V; frames are decoded from mu.
        store: Episode store.
        frames: (N,) indices of frames, of which at most 1000 are used. First frames of episodes have no previous frame
            and are dropped.

    Returns:
        Number of frames, and the reconstruction of every class of :data:`PIXELS`.
    """
    starts = np.cumsum([0, *store.lengths[:-1]])
    frames = frames[~np.isin(frames, starts)]
    if len(frames) == 0:
        return VAEQuality(frames=0, pixels={})
    if len(frames) > _FRAMES:
        frames = frames[np.linspace(0, len(frames) - 1, _FRAMES).astype(int)]
    real, previous = store.read(frames), store.read(frames - 1)
    mean = real.mean(axis=0, dtype=np.float64) / 255
    sums = {name: np.zeros(3) for name in PIXELS}  # number of pixels, error of V, error of the mean frame
    where = next(model.parameters()).device
    for start in range(0, len(frames), 250):
        now, before = real[start : start + 250], previous[start : start + 250]
        with torch.inference_mode():
            x = on_device(now, where).permute(0, 3, 1, 2).float() / 255
            drawn = model.decode(model.encode(x)[0])
            errors = (drawn - x).square().sum(dim=1).cpu().numpy()  # (B, 64, 64)
        others = np.square(now / 255 - mean).sum(axis=3)
        change = np.abs(now.astype(np.int16) - before).max(axis=3)
        for name, (low, high) in PIXELS.items():
            chosen = (low <= change) & (change <= high)
            sums[name] += chosen.sum(), errors[chosen].sum(), others[chosen].sum()
    total = sums["all"][0]
    table = {}
    for name, (count, error, other) in sums.items():
        table[name] = PixelQuality(
            share=float(count / total),
            error=_ratio(error, count),
            mean_picture=_ratio(other, count),
            explained=None if other == 0 else float(1 - error / other),
        )
    return VAEQuality(frames=len(frames), pixels=table)


def vae_failure(found: VAEQuality) -> str | None:
    """Check that V reconstructs frames better than their mean frame.

    Args:
        found: Result of :func:`reconstruction`.

    Returns:
        What failed and what to try; None if V explains variance of all pixels and of the moving ones.
    """
    explained = {name: found.pixels[name].explained for name in ("moving", "all") if name in found.pixels}
    worst = min(((value, name) for name, value in explained.items() if value is not None), default=None)
    if worst is None or worst[0] >= 0:
        return None
    pixels = f"{worst[1]} pixels" if worst[1] == "moving" else "pixels"
    return (
        f"V explains {100 * worst[0]:.0f} % of the variance of {pixels}: below 0 %, its reconstructions are worse "
        "than the mean frame, and its latents are useless to M and C. Look at vae/sheets; try more steps, another "
        "learning rate, a smaller kl_weight, or frames with larger or brighter moving objects"
    )


def rnn_failure(found: RNNQuality) -> str | None:
    """Check that M predicts latents one step ahead better than their mean.

    Args:
        found: Result of :func:`predictions`, with ``rollouts``.

    Returns:
        What failed and what to try; None if M is better than the mean, or if no episode is long enough.
    """
    first = next((row for row in found.rollouts if row.steps == 1), None)
    if first is None or first.mean <= first.average:
        return None
    return (
        f"M's prediction one step ahead has a mean squared error of {first.mean:.3g} per latent dimension, above "
        f"the {first.average:.3g} of the mean latent: its dreams are noise. Try more steps, "
        "another learning rate, or precision float32"
    )


def _ratio(value: float, count: float) -> float | None:
    return float(value / count) if count else None


def calibration(
    probability: npt.NDArray[np.float32], done: npt.NDArray[np.bool_], weight: float = 1.0
) -> list[CalibrationBin]:
    """Compare predicted probabilities of termination with observed frequencies.

    Args:
        probability: (N,) predicted probabilities.
        done: (N,) termination flags.
        weight: Positive-class weight w of the termination loss. A calibrated model then predicts w p / (w p + 1 - p);
            ``expected`` inverts this.

    Returns:
        Nonempty bins of :data:`BINS`.
    """
    expected = probability / (probability + weight * (1 - probability))
    number = np.clip(np.searchsorted(BINS, probability, side="right") - 1, 0, len(BINS) - 2)
    rows = []
    for bin_number in np.unique(number):
        chosen = number == bin_number
        rows.append(
            CalibrationBin(
                low=BINS[bin_number],
                high=BINS[bin_number + 1],
                count=int(chosen.sum()),
                predicted=float(probability[chosen].mean()),
                expected=float(expected[chosen].mean()),
                observed=float(done[chosen].mean()),
            )
        )
    return rows


@torch.no_grad()
def predictions(model: MDNRNN, streams: PackedSequences) -> RNNQuality:
    """Evaluate M's predictions one step ahead, teacher-forced.

    Args:
        model: M.
        streams: Held-out packed sequences.

    Returns:
        Quality without rollouts.
    """
    where = next(model.parameters()).device
    seed_step(0, "quality", 0)
    state = model.initial_state(streams.batch)
    nll, noise, count = torch.zeros(2, model.latent_size, device=where), 0.0, 0.0
    logits, ends = [], []
    for chunk in streams.epoch(0):
        mu, logvar = on_device(chunk.mu, where), on_device(chunk.logvar, where)
        z = sample_latent(mu, logvar)
        out, state = model(z[:, :-1], on_device(chunk.action, where), on_device(chunk.restart, where), state)
        has_next = on_device(chunk.has_next, where).unsqueeze(-1)
        nll[0] += (mdn_nll(out, z[:, 1:]) * has_next).sum(dim=(0, 1))
        nll[1] += (logvar[:, 1:] * has_next).sum(dim=(0, 1))
        count += float(chunk.has_next.sum())
        if out.done_logit is not None:
            known = chunk.termination_known > 0
            logits.append(out.done_logit.cpu().numpy()[known])
            ends.append(chunk.done[known] > 0)
    per_dimension = (nll[0] / max(count, 1)).tolist()
    noise = 0.5 * math.log(2 * math.pi * math.e) + 0.5 * float(nll[1].mean()) / max(count, 1)
    done = None
    if logits:
        probability = 1 / (1 + np.exp(-np.concatenate(logits).astype(np.float64)))
        done = calibration(probability.astype(np.float32), np.concatenate(ends), model.done_pos_weight)
    return RNNQuality(
        z=float(np.mean(per_dimension)), z_noise=noise, z_dimensions=per_dimension, done=done, rollouts=[]
    )


@dataclass(frozen=True)
class RolloutStarts:
    """Frames at which open-loop predictions start.

    Attributes:
        first: (N,) first frame of the episode.
        last: (N,) last context frame.
        end: (N,) last frame of the episode.
    """

    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]


def choose_starts(latents: Latents, episodes: npt.NDArray[np.int64], count: int) -> RolloutStarts:
    """Sample at most ``count`` starts, one per episode, with the longest horizon inside the episode if possible."""
    lengths = latents.lengths[episodes]
    chosen = episodes[lengths > 1]
    if len(chosen) > count:
        chosen = chosen[np.linspace(0, len(chosen) - 1, count).astype(int)]
    rng = np.random.default_rng(0)
    lengths, first = latents.lengths[chosen], latents.starts[chosen]
    low = np.minimum(_MIN_CONTEXT, lengths - 1) - 1
    high = np.maximum(low, lengths - 1 - HORIZONS[-1])
    last = first + rng.integers(low, high, endpoint=True)
    return RolloutStarts(first, last, first + lengths - 1)


@torch.no_grad()
def run_free(
    model: MDNRNN, latents: Latents, starts: RolloutStarts, steps: int, *, sample: bool
) -> npt.NDArray[np.float32]:
    """Predict open-loop: M takes the episodes up to the starts, then its own latents and the recorded actions.

    Args:
        model: M.
        latents: Encoded episodes.
        starts: N starts.
        steps: Number of steps.
        sample: Whether to use samples of the mixture; False for its mean.

    Returns:
        (N, steps, Z) latents; after an episode's end its last action is repeated.
    """
    where = next(model.parameters()).device
    seed_step(0, "rollouts", 0)
    # Contexts are right-aligned: an episode starts, and the state is zeroed, inside its row.
    context = int((starts.last - starts.first).max()) + 1
    index = starts.last[:, None] - np.arange(context)[::-1]
    restart = (index == starts.first[:, None]).astype(np.float32)
    index = np.maximum(index, starts.first[:, None])
    state: State | None = None
    for begin in range(0, context, _AT_ONCE):
        part = index[:, begin : begin + _AT_ONCE]
        z, action = latents.mu[part].astype(np.float32), latents.actions[part]
        flags = restart[:, begin : begin + _AT_ONCE]
        out, state = model(on_device(z, where), on_device(action, where), on_device(flags, where), state)
    last = MDNOutput(out.logmix[:, -1:], out.mean[:, -1:], out.logstd[:, -1:], None, None)
    found = [next_latent(last, sample)]
    for step in range(1, steps):
        action = latents.actions[np.minimum(starts.last + step, starts.end)][:, None]
        out, state = model(found[-1], on_device(action, where), None, state)
        found.append(next_latent(out, sample))
    return torch.cat(found, dim=1).cpu().numpy()


def next_latent(out: MDNOutput, sample: bool) -> Tensor:
    """Return the mean of the mixture, or a sample of it: (B, 1, Z)."""
    weights = out.logmix.exp()
    if not sample:
        return (weights * out.mean).sum(dim=-1)
    chosen = torch.multinomial(weights.flatten(0, -2), 1).reshape(*weights.shape[:-1], 1)
    mean, logstd = (part.gather(-1, chosen).squeeze(-1) for part in (out.mean, out.logstd))
    return mean + logstd.exp() * torch.randn_like(mean)


def rollouts(
    model: MDNRNN,
    latents: Latents,
    episodes: npt.NDArray[np.int64],
    count: int = 64,
    *,
    vae: ConvVAE | None = None,
    store: EpisodeStore | None = None,
    horizons: Sequence[int] = HORIZONS,
) -> list[RolloutQuality]:
    """Compare open-loop predictions with recorded episodes at several horizons.

    Args:
        model: M.
        latents: Encoded episodes.
        episodes: (E,) indices of the episodes.
        count: Maximum number of predictions.
        vae: V; with ``store``, frames are compared too.
        store: Episode store of the same episodes.
        horizons: Prediction horizons, in steps.

    Returns:
        Errors at every horizon inside some episode, empty if there is none. Targets in z are mu.
    """
    starts = choose_starts(latents, episodes, count)
    reach = int((starts.end - starts.last).max(initial=0))
    reached = [steps for steps in horizons if steps <= reach]
    if not reached:
        return []
    free = {name: run_free(model, latents, starts, reached[-1], sample=name == "sample") for name in ("mean", "sample")}
    mean_latent = latents.mu[
        np.concatenate([np.arange(a, b + 1) for a, b in zip(starts.first, starts.end, strict=True)])
    ]
    mean_latent = mean_latent.mean(axis=0, dtype=np.float64).astype(np.float32)
    table = []
    for steps in reached:
        there = starts.last + steps <= starts.end
        at, now = starts.last[there], starts.last[there] + steps
        truth = latents.mu[now].astype(np.float32)
        drawn = {name: z[there, steps - 1] for name, z in free.items()}
        guesses = {**drawn, "stays": latents.mu[at].astype(np.float32), "average": mean_latent}
        errors = {name: float(np.square(guess - truth).mean()) for name, guess in guesses.items()}
        if vae is not None and store is not None:
            frames, before = store.read(now), store.read(at)
            pictures = {**{name: decode(vae, z) for name, z in drawn.items()}, "stays": before, "v": decode(vae, truth)}
            errors |= {f"picture_{name}": _picture_error(picture, frames) for name, picture in pictures.items()}
        table.append(RolloutQuality(steps=steps, count=int(there.sum()), **errors))
    return table


def _picture_error(drawn: npt.NDArray[np.uint8], real: npt.NDArray[np.uint8]) -> float:
    difference = (drawn.astype(np.float64) - real) / 255
    return float(np.square(difference).sum(axis=(1, 2, 3)).mean())
