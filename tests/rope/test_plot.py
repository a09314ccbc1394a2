"""What the pictures show, as numbers, and that they are written."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image as Picture

from stvl.core.errors import ConfigError
from stvl.rope.catalogue import SCHEMES, scheme
from stvl.rope.plot import PlotOptions, angle_curves, draw_angles, draw_scores, png, score_map, write_plots
from stvl.rope.schemes import AxialRope, Rope1D, STRope

SMALL = PlotOptions(head_width=32, frames=3, rows=4, columns=5)


def test_angle_curves_are_coordinate_times_frequency():
    curves = angle_curves(AxialRope(reference_grid=None), PlotOptions(head_width=8, rows=3, columns=5))
    assert list(curves) == ["y", "x"]
    line, angles = curves["x"]
    assert (line[0], line[-1]) == (0, 4)
    assert angles[-1].tolist() == pytest.approx([0, 0, 4, 0.04])


def test_an_axis_of_one_coordinate_is_drawn_over_one_unit():
    line, angles = angle_curves(STRope(), PlotOptions(head_width=8, frames=1))["t"]
    assert (line[0], line[-1]) == (0, 1)
    assert angles[-1] == pytest.approx([1, 0.1, 0.01, 0.001])


def test_score_map_by_hand():
    # One axis, two pairs (1 and 1/100): the centre of a line of three is token 1.
    scores = score_map(Rope1D(), PlotOptions(head_width=4, frames=1, rows=1, columns=3))
    side = (np.cos(1) + np.cos(0.01)) / 2
    assert scores.reshape(-1).tolist() == pytest.approx([side, 1, side])


@pytest.mark.parametrize("name", SCHEMES)
def test_the_centre_scores_highest(name):
    width = 96
    scores = score_map(scheme(name, width), PlotOptions(head_width=width, frames=3, rows=4, columns=5))
    assert scores.shape == (3, 4, 5)
    assert scores[1, 2, 2] == 1 == scores.max()


@pytest.mark.parametrize("name", ["1d", "st", "vrope", "videorope"])
def test_pictures_are_written(name, tmp_path):
    paths = write_plots(scheme(name, 32), name, tmp_path / "new" / "folder", SMALL)
    assert [path.name for path in paths] == [f"{name}-angles.png", f"{name}-scores.png"]
    for path in paths:
        pixels = np.asarray(Picture.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 200
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50, "an empty picture"


def test_the_picture_says_which_pairs_an_axis_turns():
    figure = draw_angles(scheme("videorope", 32), SMALL, "VideoRoPE")
    left = figure.axes[::2]
    assert [axis.get_title() for axis in left] == ["4 of 16 pairs", "6 of 16 pairs", "6 of 16 pairs"]
    # One curve a pair, and the line at pi.
    assert [len(axis.lines) for axis in left] == [5, 7, 7]
    assert figure.get_suptitle() == "VideoRoPE"


def test_long_videos_show_a_few_frames_and_always_the_centre():
    options = PlotOptions(head_width=32, frames=40, rows=4, columns=5, panels=3)
    titles = [axis.get_title() for axis in draw_scores(STRope(), options).axes]
    assert titles[:-2] == ["dt = -20", "dt = +0", "dt = +19"]
    assert titles[-2] == "dy = 0"
    assert Picture.open(io.BytesIO(png(draw_scores(STRope(), SMALL)))).format == "PNG"


def test_no_global_state_of_pyplot():
    already = "matplotlib.pyplot" in sys.modules
    draw_scores(STRope(), SMALL)
    assert ("matplotlib.pyplot" in sys.modules) == already


def test_bad_requests_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="at least one frame is shown"):
        PlotOptions(panels=0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"written into a folder, and .*file' is a file"):
        write_plots(STRope(), "st", tmp_path / "file", SMALL)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"drawing needs matplotlib.*pip install 'stvl\[notebooks\]'"):
        draw_angles(STRope(), SMALL)
