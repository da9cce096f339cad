"""Specification of the real environment; does not import Gymnasium."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from worldmodels.support.settings import setting

Source = Literal["observation", "screen", "render"]
#: Fields of every metadata; the others are left out at their defaults.
_ALWAYS = ("id", "variant", "resolution", "backend")


@dataclass(frozen=True)
class EnvSpec:
    """Specification of the real environment."""

    id: str = setting("worldmodels/TakeCover-v0", "Gymnasium id")
    variant: Literal["", "paper", "modern"] = setting(
        "paper", "rules of TakeCover: paper or modern; empty for environments without variants"
    )
    resolution: str = setting(
        "160x120",
        "TakeCover's screen before it is resized to 64x64 (original code: 640x480); empty for other environments",
    )
    backend: Literal["", "gymnasium", "envpool"] = setting(
        "", "gymnasium, envpool, or empty for the fastest one that is installed"
    )
    imports: str = setting("", "packages that register the id when they are imported, separated by commas")
    source: Source = setting(
        "observation", "source of a frame: the observation, its entry 'screen', or the rendered image (rgb_array)"
    )
    action_repeat: int = setting(1, "steps of the environment per action; their rewards are added")
    crop_top: int = setting(0, "rows removed from the top of the image before it is resized to 64x64", zero=True)
    crop_bottom: int = setting(0, "rows removed from its bottom", zero=True)
    crop_left: int = setting(0, "columns removed from its left", zero=True)
    crop_right: int = setting(0, "columns removed from its right", zero=True)
    max_steps: int = setting(0, "longest episode, in actions; 0 for that of the task", zero=True)

    def limit(self, max_steps: int | None) -> int | None:
        """Return the smaller of ``max_steps`` and the specification's limit; None if there is neither."""
        return min(filter(None, (max_steps, self.max_steps)), default=None)

    def metadata(self) -> dict[str, Any]:
        """Return the fields for metadata of scores; those of frames and length only where they are not the default."""
        defaults = {item.name: item.default for item in fields(self)}
        return {name: value for name, value in asdict(self).items() if name in _ALWAYS or value != defaults[name]}
