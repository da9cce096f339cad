"""The pages of a film: panels, titles, captions and bars."""

import numpy as np
import pytest

from recordings import moving, recording_of
from worldmodels.analysis.film import Film
from worldmodels.analysis.recording import Recording


def test_a_film_has_panels_titles_and_bars():
    """The action goes left of the middle or right, bright above the threshold; M's probability from the left, red."""
    recording = Recording(
        {"game": np.zeros((3, 64, 64, 3), np.uint8), "V's reconstruction": np.full((3, 64, 64, 3), 200, np.uint8)},
        np.array([[-1.0], [0.2], [1.0]], np.float32),
        np.array([0.0, 0.5, 1.0], np.float32),
        names=("left / right",),
        threshold=0.5,
    )
    film = Film([recording], 4)
    width, height = film.size
    assert width == 2 * 256 + 4 and height % 2 == 0
    pages = [film.frame(step).astype(int) for step in range(3)]
    assert {page.shape for page in pages} == {(height, width, 3)}
    top = film._header
    assert (pages[0][top : top + 256, :256] == 0).all() and (pages[0][top : top + 256, 260:516] == 200).all()
    action, term = height - 4 - 18, height - 4 - 6  # the middles of the two bars
    bright = [np.flatnonzero(np.abs(page[action] - (251, 191, 36)).max(axis=1) < 5) for page in pages]
    assert bright[0].min() == 0 and 250 < bright[0].max() <= 258
    assert len(bright[1]) == 0
    assert 256 <= bright[2].min() <= 260 and bright[2].max() == 515
    red = [np.count_nonzero(np.abs(page[term] - (239, 68, 68)).max(axis=1) < 5) for page in pages]
    assert red[0] <= 2 and abs(red[1] - 258) < 4 and abs(red[2] - 516) < 4
    lit = [page[:top].max(axis=(0, 2)) > 150 for page in pages]
    assert lit[0][:256].any() and lit[0][260:].any()  # both titles
    assert (pages[0][:top] == pages[2][:top]).all()


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_captions_stay_inside_their_strip_at_every_zoom(scale):
    block = Film([recording_of(moving(3), names=("steering",), frames_per_second=50)], scale)._blocks[0]
    for (x, y), text in zip(block._places, block._texts(2), strict=True):
        assert y + block._line <= block._text_height
        if x > block._margin:
            assert x + block._font.getlength(text) <= block.width
    assert block.header >= block._line * len(block._titles[0])


def test_the_captions_of_a_step():
    recording = recording_of(moving(5), panels=2)
    texts = [Film([recording])._blocks[0]._texts(step) for step in (0, 2, 4)]
    assert texts[0] == ["step 0", "action: left", "M's termination probability 0.00"]
    assert texts[1] == ["step 2", "action: none", "M's termination probability 0.50"]
    assert texts[2] == ["step 4, the last", "action: right", "M's termination probability 1.00"]
    driven = Recording(
        {"game": moving(2)},
        np.array([[-0.5, 1, 0]] * 2, np.float32),
        names=("steering", "gas", "brake"),
        complete=False,
    )
    assert Film([driven])._blocks[0]._texts(1) == ["step 1", "steering -0.50", "gas +1.00", "brake +0.00"]


def test_recordings_side_by_side_and_the_shorter_one_stops(tmp_path):
    film = Film([recording_of(moving(10)), recording_of(moving(30))], 2)
    assert film.steps == 30 and film.size[0] == 2 * 128 + 2
    now, later = film.frame(9)[:, :128], film.frame(25)[:, :128]
    assert np.array_equal(now, later)
    with pytest.raises(ValueError, match="recordings: expected one frame rate"):
        Film([recording_of(moving(3)), recording_of(moving(3), frames_per_second=50)])
