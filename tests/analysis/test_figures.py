"""Figures of a report."""

from __future__ import annotations

import pytest
from PIL import Image

from worldmodels.analysis import figures
from worldmodels.data.records import TrainingLine

V = [TrainingLine(step=step, squared_error=9.0 - step, kl=1.0 + step) for step in (1, 2)]
M = [TrainingLine(step=step, z=1.0 / step, done=0.1 / step) for step in (1, 2)]


@pytest.mark.parametrize(("vae", "rnn", "panels"), [(V, M, 4), ([], M, 2), (V, [], 2)])
def test_losses_has_a_panel_for_every_loss_that_was_logged(tmp_path, vae, rnn, panels):
    heights = []
    for name, lines in (("some", (vae, rnn)), ("all", (V, M))):
        figures.losses(tmp_path / f"{name}.png", *lines)
        with Image.open(tmp_path / f"{name}.png") as image:
            heights.append(image.height)
    assert heights[0] * 4 == pytest.approx(heights[1] * panels, rel=0.05)


def test_losses_of_a_run_that_trained_nothing_can_be_drawn(tmp_path):
    figures.losses(tmp_path / "none.png", [], [])
    assert (tmp_path / "none.png").is_file()
