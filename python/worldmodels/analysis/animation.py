"""Recordings written as a GIF of bounded size or as an MP4."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from worldmodels.analysis.film import Film
from worldmodels.analysis.recording import Pictures, Recording
from worldmodels.support.files import atomic_path

#: Length of a GIF in seconds, and its largest size in bytes.
MAX_SECONDS, MAX_BYTES = 20.0, 4_000_000
#: Frames of a GIF per second: browsers slow down what is faster.
_GIF_FPS = 25
#: How a GIF is made smaller, in this order: number of colours, change of a colour (0 to 255) from one frame to the next
#: that is left out, and how many times fewer frames. Then the zoom goes down, and at last frames go by halves.
_LADDER = ((128, 6, 1), (96, 10, 1), (64, 14, 1), (64, 14, 2), (32, 20, 2))
_SAMPLE = 24  # frames from which the size of a GIF is estimated
_HOLD = 1.0  # seconds for which a film that ends early shows its last frame


def save_gif(
    path: Path,
    *recordings: Recording,
    seconds: float = MAX_SECONDS,
    scale: int = 4,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Write the first seconds of recordings as a GIF at the environment's speed, no larger than ``max_bytes``.

    A GIF that is too large is encoded again with fewer colours, fewer frames and a smaller zoom until it fits.

    Args:
        path: File to write.
        recordings: Drawn side by side.
        seconds: Longest duration.
        scale: Integer zoom.
        max_bytes: Largest size of the file.

    Raises:
        ValueError: A single frame is larger than ``max_bytes``.
    """
    data = _fit(recordings, seconds, scale, max_bytes)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _fit(recordings: Sequence[Recording], seconds: float, scale: int, max_bytes: int) -> bytes:
    attempts = [(scale, *step) for step in _LADDER] + [(zoom, *_LADDER[-1]) for zoom in range(scale - 1, 0, -1)]
    colours, tolerance, fewer = _LADDER[-1]
    halves = ((1, colours, tolerance, fewer * 2**power) for power in itertools.count(1))
    for zoom, colours, tolerance, fewer in itertools.chain(attempts, halves):
        film = Film(recordings, zoom)
        steps, delays = schedule(film, seconds, fewer)
        if len(steps) > 2 * _SAMPLE:  # a part of it tells whether the whole is far too large
            one, some = (_encode(film, steps[:n], delays[:n], colours, tolerance) for n in (1, _SAMPLE))
            if (len(some) - len(one)) / (_SAMPLE - 1) * len(steps) > 1.5 * max_bytes:
                continue
        data = _encode(film, steps, delays, colours, tolerance)
        if len(data) <= max_bytes:
            return data
        if len(steps) == 1:
            break
    raise ValueError(f"max_bytes: expected at least {len(data)} for one frame, got {max_bytes}")


def schedule(film: Film, seconds: float, fewer: int = 1) -> tuple[list[int], list[int]]:
    """Choose the steps that a GIF shows, and for how long.

    Delays of a GIF are hundredths of a second: they vary by one, so that the film keeps the environment's speed.

    Args:
        film: The film.
        seconds: Longest duration.
        fewer: How many times fewer frames than usual.

    Returns:
        Steps, and the delay of each in milliseconds, multiples of 10. Their sum is at most ``seconds``.
    """
    rate = film.frames_per_second
    total = max(1, min(film.steps, int(seconds * rate)))
    stride = math.ceil(rate / _GIF_FPS) * fewer
    steps = list(range(0, total, stride))
    if total == film.steps and steps[-1] != total - 1 and stride < total:
        steps.append(total - 1)  # how the episode ends
    limit = max(2, int(seconds * 100))
    ends = [min(limit, round(100 * step / rate)) for step in (*steps[1:], total)]
    if total == film.steps:
        ends[-1] = min(limit, ends[-1] + int(_HOLD * 100))
    delays = np.diff([0, *ends])
    kept = [number for number, delay in enumerate(delays) if delay > 0]
    return [steps[number] for number in kept], [10 * int(delays[number]) for number in kept]


def _encode(film: Film, steps: Sequence[int], delays: Sequence[int], colours: int, tolerance: int) -> bytes:
    palette, pages = film.indexed(steps, colours, tolerance)
    images = (_indexed_image(page, palette) for page in pages)
    first, buffer = next(images), io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=images, duration=list(delays), loop=0, optimize=True)
    return buffer.getvalue()


def _indexed_image(page: Pictures, palette: bytes) -> Image.Image:
    image = Image.fromarray(page, "P")
    image.putpalette(palette)
    return image


def check_video() -> None:
    """Import the video encoder.

    Raises:
        ModuleNotFoundError: It is not installed; the message names the extra of this package that brings it.
    """
    try:
        import av  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--video: no module named 'av' (PyAV); `pip install 'worldmodels-rl[video]'` installs it", name="av"
        ) from error


def save_video(path: Path, *recordings: Recording, seconds: float = MAX_SECONDS, scale: int = 4) -> None:
    """Write the first seconds of recordings as an MP4 (H.264), every step of them.

    Args:
        path: File to write.
        recordings: Drawn side by side.
        seconds: Longest duration.
        scale: Integer zoom.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
    """
    check_video()
    import av

    film = Film(recordings, scale)
    total = max(1, min(film.steps, int(seconds * film.frames_per_second)))
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=film.frames_per_second)
        stream.width, stream.height = film.size
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "20", "preset": "medium"}
        for step in range(total):
            frame = av.VideoFrame.from_ndarray(film.frame(step), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
