"""Settings of the dream environments, and the world model that they select."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy.typing as npt

from worldmodels import pretrained
from worldmodels.dream.world_model import WorldModel, load_world_model
from worldmodels.models.controller import Features
from worldmodels.models.decoder import Decoder
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model
from worldmodels.support.simd import Precision
from worldmodels.support.suggestions import suggestion

Termination = Literal["threshold", "sample"]

DEFAULT_WORLD = "takecover"
MAX_STEPS = 2100  # of an episode, by default


@dataclass(frozen=True, kw_only=True)
class DreamSettings:
    """Keyword arguments of :class:`DreamEnv` and :class:`DreamVectorEnv`.

    Attributes:
        world: World model: the name of a pretrained one, a run folder or a :class:`WorldModel`. It excludes ``mdnrnn``,
            ``initial_mu`` and ``initial_logvar``. None without these selects "takecover". A string keeps ``env.spec``
            serialisable.
        temperature: Temperature of the sampling, at least 0.
        max_steps: Maximum length of an episode, in steps. None selects that of the pretrained world model, and
            2,100 for all others.
        features: Members of the observation, "z", "zh", "zc" or "zch".
        action_low: Lower bounds of continuous actions, scalar or (A,); -inf for none.
        action_high: Upper bounds of continuous actions, scalar or (A,); inf for none.
        choices: Number of values of each discrete action, if M's actions are their one-hot vectors:
            ``Controller.choices``. One number makes the action space Discrete, several make it MultiDiscrete. Empty
            for continuous actions.
        precision: Precision of M, "float32" or "bfloat16", see :class:`worldmodels.dream.native.Dream`.
        termination: "threshold" or "sample", see :class:`worldmodels.dream.native.Dream`. None selects that of the
            pretrained world model ("sample" for one of "expected" termination), and "threshold" for all others.
        render_mode: "rgb_array" if ``render`` is to return V's reconstructions; "human", for one environment, if a
            window is to show them at ``metadata["render_fps"]`` steps a second; or None. Both need a pretrained world
            model or a run folder with vae/vae.safetensors.
    """

    world: str | Path | WorldModel | None = None
    temperature: float = 1.0
    max_steps: int | None = None
    features: Features = "zch"
    action_low: npt.ArrayLike = -1.0
    action_high: npt.ArrayLike = 1.0
    choices: Sequence[int] = ()
    precision: Precision = "float32"
    termination: Termination | None = None
    render_mode: Literal["human", "rgb_array"] | None = None


@dataclass(frozen=True)
class ResolvedWorld:
    """World model of an environment, its termination, the length of its episodes and its V.

    Attributes:
        model: M and its initial states.
        termination: Termination of its dreams.
        max_steps: Maximum length of an episode, if the settings have none.
        vae_path: File of V; None without V.
    """

    model: WorldModel
    termination: Termination
    max_steps: int
    vae_path: Path | None


def resolve_world(arrays: Mapping[str, Any], settings: DreamSettings) -> ResolvedWorld:
    """Resolve the world model of ``settings.world`` or of the arrays mdnrnn, initial_mu and initial_logvar."""
    world = settings.world
    given = [name for name, value in arrays.items() if value is not None]
    termination: str = "threshold"
    max_steps, vae_path = MAX_STEPS, None
    if given:
        if world is not None:
            raise ValueError(f"world: expected None, as {given[0]} is given, got {world!r:.100}")
        for name, value in arrays.items():
            if value is None:
                kind = "an MDNRNN" if name == "mdnrnn" else "an array"
                raise ValueError(f"{name}: expected {kind}, as {given[0]} is given, got None")
        model = WorldModel(**arrays)
    elif isinstance(world, WorldModel):
        model = world
    else:
        source = DEFAULT_WORLD if world is None else world
        if not isinstance(source, str | Path):
            raise TypeError(f"world: expected a name, a run folder or a WorldModel, got {source!r:.100}")
        if pretrained.is_name(source):
            own = pretrained.dream_settings(str(source))
            termination, max_steps = own["termination"], own.get("max_steps", max_steps)
        elif not Path(source).is_dir():
            known = ", ".join(pretrained.names())
            hint = suggestion(str(source), pretrained.names())
            raise ValueError(f"world: expected {known}, a run folder or a WorldModel, got {str(source)!r:.200}{hint}")
        model = load_world_model(source)
        vae_path = pretrained.resolve(source) / "vae" / "vae.safetensors"
    asked: str | None = settings.termination
    if asked is None:
        return ResolvedWorld(model, "threshold" if termination == "threshold" else "sample", max_steps, vae_path)
    if asked not in get_args(Termination):
        reason = " (an environment has no survival weights)" if asked == "expected" else ""
        raise ValueError(f"termination: expected threshold or sample{reason}, got {asked!r:.100}")
    return ResolvedWorld(model, "threshold" if asked == "threshold" else "sample", max_steps, vae_path)


def load_decoder(
    world: ResolvedWorld, render_mode: str | None, known: Sequence[str], num_threads: int | None
) -> Decoder | None:
    """Load V's decoder if frames are to be rendered in one of the known modes."""
    if render_mode is None:
        return None
    if render_mode not in known:
        modes = " or ".join(map(repr, known))
        raise ValueError(f"render_mode: expected None or {modes}, got {render_mode!r:.100}")
    if world.vae_path is None:
        needed = "frames need V: name a pretrained world model or a run folder in `world`"
        raise ValueError(f"render_mode: expected None, as {needed}, got {render_mode!r}")
    if not world.vae_path.is_file():
        raise ValueError(f"render_mode: expected None, as there is no {world.vae_path}, got {render_mode!r}")
    vae, latent_size = load_model(world.vae_path, ConvVAE), world.model.mdnrnn.latent_size
    if vae.latent_size != latent_size:
        raise ValueError(f"{world.vae_path}: expected V with {latent_size} latents, as M has, got {vae.latent_size}")
    return Decoder(vae, num_threads=num_threads)
