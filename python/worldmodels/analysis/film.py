"""The pages of a film: recordings side by side, with titles above their pictures and captions and bars below."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from worldmodels.analysis.recording import Pictures, Recording

_BACKGROUND, _TEXT, _DIM, _BRIGHT, _RED = "#111318", "#e5e7eb", "#4b5563", "#fbbf24", "#ef4444"


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
