"""Map from observations of an environment to frames."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from worldmodels.envs import ContractError
from worldmodels.envs.preprocessing import Frame, resize
from worldmodels.envs.spec import EnvSpec, Source
from worldmodels.support.validation import one_line

FRAME = (64, 64, 3)
#: Shapes of images.
_SHAPES = "(height, width, 3), (height, width, 1) or (height, width)"


def is_image(space: Any) -> bool:
    """Check whether a space is that of an image: RGB or grey, uint8."""
    if not isinstance(space, gymnasium.spaces.Box) or space.dtype != np.uint8:
        return False
    return len(space.shape) == 2 or (len(space.shape) == 3 and space.shape[2] in (1, 3))


def find_source(env: gymnasium.Env[Any, Any]) -> Source | None:
    """Find the source of frames; None if there is neither an image observation nor render mode rgb_array."""
    space = env.observation_space
    if is_image(space):
        return "observation"
    if isinstance(space, gymnasium.spaces.Dict) and is_image(space.spaces.get("screen")):
        return "screen"
    return "render" if "rgb_array" in (env.metadata.get("render_modes") or ()) else None


class FrameMap:
    """Map from observations, or from rendered images, to frames (64, 64, 3) uint8.

    Images are cropped, grey ones become RGB, and all are resized to 64x64.

    Args:
        env: Environment, with render mode ``"rgb_array"`` for source ``"render"``.
        env_id: Name of the environment in error messages.
        spec: Source and crop of the images.

    Raises:
        ContractError: The observation space has no image, or the crop leaves nothing of it.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], env_id: str, spec: EnvSpec) -> None:
        self._env, self._id, self._spec = env, env_id, spec
        self._shape: tuple[int, ...] | None = None
        self._crop = slice(None), slice(None)
        if spec.source == "render":
            return
        space = found = getattr(env, "observation_space", None)
        if spec.source == "screen":
            space = found.spaces.get("screen") if isinstance(found, gymnasium.spaces.Dict) else None
        if not is_image(space):
            what = "its observation space" if spec.source == "observation" else "'screen' in its observation space"
            raise ContractError(
                f"{env_id}: expected a Box of shape {_SHAPES} and dtype uint8 as {what}, got {one_line(found)}"
            )
        assert isinstance(space, gymnasium.spaces.Box)
        self._use(space.shape)

    def _use(self, shape: tuple[int, ...]) -> None:
        """Set the shape of the images, and check the crop against it."""
        spec = self._spec
        ends = []
        for size, names in zip(shape, (("top", "bottom"), ("left", "right")), strict=False):
            first, last = (getattr(spec, f"crop_{name}") for name in names)
            if first + last >= size:
                raise ContractError(
                    f"environment.crop_{names[0]}, environment.crop_{names[1]}: expected less than the {size} "
                    f"{'rows' if names[0] == 'top' else 'columns'} of an image of {self._id}, got {first} and {last}"
                )
            ends.append(slice(first, size - last))
        self._shape, self._crop = shape, (ends[0], ends[1])

    def __call__(self, observation: Any) -> Frame:
        """Convert an observation.

        Raises:
            ContractError: The observation or the rendered image is not an image of the right shape.
        """
        source = self._spec.source
        image = observation
        if source == "render":
            image = self._env.render()
            if self._shape is None and isinstance(image, np.ndarray) and image.shape[2:] == (3,):
                self._use(image.shape)
        elif source == "screen":
            image = observation.get("screen") if isinstance(observation, dict) else None
        if not isinstance(image, np.ndarray) or image.shape != self._shape or image.dtype != np.uint8:
            what = "a rendered image" if source == "render" else "an observation"
            shape = "(height, width, 3)" if self._shape is None else str(self._shape)
            raise ContractError(f"expected {what} of shape {shape} and dtype uint8, got {one_line(image)}")
        image = image[self._crop]
        if image.shape == FRAME:
            return image
        if image.ndim == 2:
            image = image[:, :, None]
        return resize(image if image.shape[2] == 3 else np.repeat(image, 3, axis=2))
