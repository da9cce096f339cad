"""Recordings: episodes as panels of pictures with a caption strip, written as a GIF of bounded size or as an MP4."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from worldmodels.dream.native import Dream, DreamTrace
from worldmodels.models.agent import Recorder
from worldmodels.models.decoder import Decoder
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE
from worldmodels.support.files import atomic_path

Pictures = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

#: Length of a GIF in seconds, and its largest size in bytes.
MAX_SECONDS, MAX_BYTES = 20.0, 4_000_000
#: Frames of a GIF per second: browsers slow down what is faster.
_GIF_FPS = 25
#: How a GIF is made smaller, in this order: number of colours, change of a colour (0 to 255) from one frame to the next
#: that is left out, and how many times fewer frames. Then the zoom goes down, and at last frames go by halves.
_LADDER = ((128, 6, 1), (96, 10, 1), (64, 14, 1), (64, 14, 2), (32, 20, 2))
_BACKGROUND, _TEXT, _DIM, _BRIGHT, _RED = "#111318", "#e5e7eb", "#4b5563", "#fbbf24", "#ef4444"
_SAMPLE = 24  # frames from which the size of a GIF is estimated
_HOLD = 1.0  # seconds for which a film that ends early shows its last frame


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


class Film:
    """Recordings side by side as pictures with captions; a recording that is over shows its last step.

    Args:
        recordings: At least one, all of the same frame rate.
        scale: Integer zoom of the pictures.

    Raises:
        ValueError: The recordings have different frame rates or heights.
    """

    def __init__(self, recordings: Sequence[Recording], scale: int = 4) -> None:
        self.recordings, self.scale = list(recordings), scale
        rates = {recording.frames_per_second for recording in recordings}
        heights = {picture.shape[1] for recording in recordings for picture in recording.panels.values()}
        if len(rates) != 1 or len(heights) != 1:
            raise ValueError(f"recordings: expected one frame rate and one height, got {rates} and {heights}")
        (self.frames_per_second,), (self._height,) = rates, heights
        self._font = ImageFont.load_default(max(9.0, 3.25 * scale))
        self._line = math.ceil(sum(self._font.getmetrics()) if hasattr(self._font, "getmetrics") else 11) + 2
        self._gap, self._margin = max(2, scale), max(2, scale)
        self._blocks = [_Block(self, recording) for recording in recordings]
        self._header = max(block.header for block in self._blocks)
        self._caption = max(block.caption for block in self._blocks)
        self.steps = max(len(recording) for recording in recordings)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; both are even, as video codecs want them."""
        width = sum(block.width for block in self._blocks) + self._gap * (len(self._blocks) - 1)
        height = self._header + self._height * self.scale + self._caption
        return width + width % 2, height + height % 2

    def frame(self, step: int) -> Pictures:
        """Draw one step: (height, width, 3) uint8."""
        page = np.array(self._strips(step))
        for x, picture in self._pictures(step):
            enlarged = picture.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
            page[self._header : self._header + enlarged.shape[0], x : x + enlarged.shape[1]] = enlarged
        return page

    def _pictures(self, step: int) -> Iterator[tuple[int, Pictures]]:
        """Where each panel's picture lies, and the picture."""
        left = 0
        for block in self._blocks:
            for x, pictures in zip(block.offsets, block.recording.panels.values(), strict=True):
                yield left + x, pictures[min(step, len(pictures) - 1)]
            left += block.width + self._gap

    def _strips(self, step: int) -> Image.Image:
        """The page without its pictures: titles above, captions below."""
        page = Image.new("RGB", self.size, _BACKGROUND)
        draw = ImageDraw.Draw(page)
        left = 0
        for block in self._blocks:
            block.draw(draw, left, self._header + self._height * self.scale, step)
            left += block.width + self._gap
        return page

    def indexed(self, steps: Sequence[int], colours: int, tolerance: int) -> tuple[bytes, Iterator[Pictures]]:
        """Draw steps with a palette of their own.

        Args:
            steps: Steps to draw.
            colours: Size of the palette.
            tolerance: A pixel keeps its colour from frame to frame while no channel differs by more than this.

        Returns:
            The palette (3 bytes a colour), and an iterator of (height, width) uint8 pages.
        """
        own = _caption_palette()
        rows = [[picture for _, picture in self._pictures(step)] for step in steps]
        flat = np.stack([np.concatenate(row, axis=1) for row in rows])  # (N, 64, all panels' width, 3)
        for before, now in itertools.pairwise(flat):
            still = (np.abs(now.astype(np.int16) - before) <= tolerance).all(axis=2)
            now[still] = before[still]
        palette = _palette(flat, colours - len(own) // 3)
        shown = _quantize(flat.reshape(-1, *flat.shape[2:]), palette).reshape(flat.shape[:3]) + len(own) // 3
        offsets = [x for x, _ in self._pictures(0)]
        edges = np.cumsum([0, *(picture.shape[1] for picture in rows[0])])

        def pages() -> Iterator[Pictures]:
            for step, row in zip(steps, shown, strict=True):
                page = _quantize(np.array(self._strips(step)), own)
                enlarged = row.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
                for x, start, stop in zip(offsets, edges, edges[1:], strict=False):
                    part = enlarged[:, start * self.scale : stop * self.scale]
                    page[self._header : self._header + part.shape[0], x : x + part.shape[1]] = part
                yield page

        return own + palette, pages()


class _Block:
    """One recording's part of a film: where its titles, pictures, captions and bars lie."""

    def __init__(self, film: Film, recording: Recording) -> None:
        self.recording, self._font, self._line = recording, film._font, film._line
        self._margin, self._bar = film._margin, 3 * film.scale
        widths = [pictures.shape[2] * film.scale for pictures in recording.panels.values()]
        self.offsets = [sum(widths[:number]) + film._gap * number for number in range(len(widths))]
        self.width = sum(widths) + film._gap * (len(widths) - 1)
        self._titles = [
            self._wrap(title.split(" "), width, " ") for title, width in zip(recording.panels, widths, strict=True)
        ]
        self.header = self._line * max(map(len, self._titles)) + self._margin
        # Captions are laid out by their widest texts, so that they do not move.
        self._places, x, y = [], self._margin, 0
        for text in self._texts(10 ** max(4, len(str(recording.first + len(recording)))) - 1, widest=True):
            wide = math.ceil(self._font.getlength(text)) + 3 * self._margin
            if x > self._margin and x + wide > self.width:
                x, y = self._margin, y + self._line
            self._places.append((x, y))
            x += wide
        self._text_height = y + self._line + self._margin
        bars = (0 if recording.choices else recording.actions.shape[1]) + (recording.termination is not None)
        self.caption = self._text_height + self._bar * bars + self._margin

    def _wrap(self, words: Sequence[str], width: int, join: str) -> list[str]:
        lines = [words[0]]
        for word in words[1:]:
            longer = lines[-1] + join + word
            if self._font.getlength(longer) + 2 * self._margin > width:
                lines.append(word)
            else:
                lines[-1] = longer
        return lines

    def _texts(self, step: int, *, widest: bool = False) -> list[str]:
        """Captions of a step of the recording."""
        recording = self.recording
        at = min(step, len(recording) - 1)
        number = step if widest else recording.first + at
        over = widest or (recording.complete and step >= len(recording) - 1)
        texts = [f"step {number:,}{', the last' if over else ''}"]
        if recording.choices:
            return [*texts, *self._discrete(at, widest=widest), *self._termination(at)]
        for name, value in zip(recording.names, recording.actions[at].tolist(), strict=True):
            low, slash, high = name.partition(" / ")
            if not slash:
                texts.append(f"{name} {-0.0 if widest else value:+.2f}")
            elif widest:
                texts.append(f"action: {max(low, high, 'none', key=self._font.getlength)}")
            else:
                moved = abs(value) > recording.threshold
                texts.append(f"action: {(high if value > 0 else low) if moved else 'none'}")
        return [*texts, *self._termination(at)]

    def _discrete(self, step: int, *, widest: bool) -> list[str]:
        """Captions of the discrete actions of a step: the names of their values."""
        recording, texts, start = self.recording, [], 0
        for count in recording.choices:
            names = recording.names[start : start + count]
            taken = int(recording.actions[step, start : start + count].argmax())
            texts.append(f"action: {max(names, key=self._font.getlength) if widest else names[taken]}")
            start += count
        return texts

    def _termination(self, step: int) -> list[str]:
        probability = self.recording.termination
        return [] if probability is None else [f"M's termination probability {probability[step]:.2f}"]

    def draw(self, draw: ImageDraw.ImageDraw, left: int, below: int, step: int) -> None:
        """Draw titles, captions and bars of a step, with the block's left edge and the pictures' lower edge given."""
        recording = self.recording
        for x, lines in zip(self.offsets, self._titles, strict=True):
            for number, line in enumerate(lines):
                draw.text((left + x + self._margin, number * self._line), line, font=self._font, fill=_TEXT)
        for (x, y), text in zip(self._places, self._texts(step), strict=False):
            fill = _RED if text.endswith("the last") else _TEXT
            draw.text((left + x, below + y + self._margin // 2), text, font=self._font, fill=fill)
        at = min(step, len(recording) - 1)
        top, middle = below + self._text_height, left + self.width / 2
        for value in [] if recording.choices else recording.actions[at].tolist():
            colour = _BRIGHT if abs(value) > recording.threshold else _DIM
            start, stop = sorted((middle, middle + self.width / 2 * max(-1.0, min(1.0, value))))
            self._rectangle(draw, start, stop, top, colour)
            top += self._bar
        if recording.termination is not None:
            self._rectangle(draw, left, left + self.width * float(recording.termination[at]), top, _RED)

    def _rectangle(self, draw: ImageDraw.ImageDraw, start: float, stop: float, top: int, colour: str) -> None:
        inset = max(1, self._bar // 4)
        draw.rectangle((round(start), top + inset, round(max(start, stop - 1)), top + self._bar - inset), fill=colour)


def _caption_palette() -> bytes:
    """Colours of the strips: text in four steps from the background, and the colours of the bars."""
    back, text, red = (
        np.array(Image.new("RGB", (1, 1), colour))[0, 0].astype(float) for colour in (_BACKGROUND, _TEXT, _RED)
    )
    shades = [back + (text - back) * part / 4 for part in range(5)] + [
        back + (red - back) * part / 3 for part in (1, 2)
    ]
    fixed = [np.array(Image.new("RGB", (1, 1), colour))[0, 0] for colour in (_DIM, _BRIGHT, _RED)]
    return np.concatenate([np.round(shades).astype(np.uint8), fixed]).astype(np.uint8).tobytes()


def _palette(pictures: Pictures, colours: int) -> bytes:
    """At most ``colours`` colours for (N, H, W, 3) pictures."""
    chosen = pictures[np.linspace(0, len(pictures) - 1, min(len(pictures), 64)).astype(int)]
    image = Image.fromarray(chosen.reshape(-1, *chosen.shape[2:]))
    adapted = image.quantize(max(2, colours), method=Image.Quantize.MEDIANCUT, kmeans=2)
    return bytes(adapted.getpalette() or b"")[: 3 * max(2, colours)]


def _quantize(picture: Pictures, palette: bytes) -> Pictures:
    """Indices of the closest colours of a palette: (H, W) uint8."""
    colours = Image.new("P", (1, 1))
    colours.putpalette(palette + palette[-3:] * (256 - len(palette) // 3))
    indices = np.array(Image.fromarray(picture).quantize(palette=colours, dither=Image.Dither.NONE))
    found: Pictures = np.minimum(indices, len(palette) // 3 - 1).astype(np.uint8)
    return found


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
