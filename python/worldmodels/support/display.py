"""A window with a picture and captions: pygame's display, of which a process has one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_FONT_SIZE, _LINE, _MARGIN = 22, 22, 8  # pixels
_BACKGROUND, _TEXT = "#111318", "#e5e7eb"


def load_pygame() -> Any:
    """Import pygame without its greeting on stdout."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    import pygame

    return pygame


def check_display(name: str, instead: str) -> None:
    """Check that a window can be opened.

    Args:
        name: Argument that asks for the window, for the error message.
        instead: Argument that needs no window, for the error message.

    Raises:
        RuntimeError: There is no display.
    """
    chosen = ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "SDL_VIDEODRIVER")
    if sys.platform == "linux" and not any(os.environ.get(variable) for variable in chosen):
        raise RuntimeError(f"{name}: no display; use {instead}")  # SDL, if asked, complains on stderr too
    pygame = load_pygame()
    opened = pygame.display.get_init()
    try:
        pygame.display.init()
        driver = pygame.display.get_driver()
    except pygame.error as error:
        raise RuntimeError(f"{name}: no display ({error}); use {instead}") from error
    finally:
        if not opened:
            pygame.display.quit()
    if driver in ("dummy", "offscreen") and "SDL_VIDEODRIVER" not in os.environ:
        raise RuntimeError(f"{name}: no display; use {instead}")


class Window:
    """The window of the process. It opens with the first picture, and again where others have closed it.

    Args:
        title: Title of the window.
        scale: Integer zoom of the pictures.
        lines: Number of lines of captions below the picture.
    """

    def __init__(self, title: str, scale: int = 8, lines: int = 0) -> None:
        self._pygame = load_pygame()
        self._title, self._scale, self._lines = title, scale, lines
        self._due = 0.0

    def show(self, picture: npt.NDArray[np.uint8], captions: Sequence[str] = ()) -> None:
        """Show a picture (H, W, 3) and captions, one a line."""
        pygame, (height, width) = self._pygame, picture.shape[:2]
        zoomed = width * self._scale, height * self._scale
        size = zoomed[0], zoomed[1] + (self._lines * _LINE + 2 * _MARGIN if self._lines else 0)
        screen = pygame.display.get_surface()
        if screen is None or screen.get_size() != size:
            pygame.display.init()
            screen = pygame.display.set_mode(size)
            pygame.display.set_caption(self._title)
        screen.fill(_BACKGROUND)
        small = pygame.image.frombuffer(np.ascontiguousarray(picture).tobytes(), (width, height), "RGB")
        screen.blit(pygame.transform.scale(small, zoomed), (0, 0))
        if captions:
            pygame.font.init()
            font = pygame.font.Font(None, _FONT_SIZE)
            for number, text in enumerate(captions):
                screen.blit(font.render(text, True, _TEXT), (_MARGIN, zoomed[1] + _MARGIN + number * _LINE))
        pygame.display.flip()
        pygame.event.pump()

    def wait(self, frames_per_second: float) -> None:
        """Wait until the next picture is due, at a constant rate."""
        now = time.perf_counter()
        self._due = max(self._due + 1 / frames_per_second, now)
        time.sleep(self._due - now)

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()
