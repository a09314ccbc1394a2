"""Coordinates and ladders against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stvl.core.errors import ConfigError
from stvl.rope.coords import grid, rescale, with_prefix
from stvl.rope.frequencies import ladder


def test_grid_runs_through_columns_fastest():
    expected = [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 1, 2), (1, 0, 0)]
    assert grid(2, 2, 3)[:7].tolist() == [list(map(float, row)) for row in expected]
    assert grid(2, 2, 3).shape == (12, 3)


def test_grid_refuses_an_empty_side():
    with pytest.raises(ConfigError, match=r"sides of at least 1, found \(1, 0, 2\)"):
        grid(1, 0, 2)


def test_rescaled_grids_cover_the_reference_grid():
    # 24 patches a side (336 / 14) read the coordinates of 16 at a step of 2/3.
    assert rescale(np.arange(24.0), 24, 16.0)[:4].tolist() == pytest.approx([0, 2 / 3, 4 / 3, 2])
    assert rescale(np.arange(16.0), 16, 16.0).tolist() == list(range(16))


def test_prefix_tokens_stand_at_the_origin():
    coords = with_prefix(np.ones((2, 3)), 2)
    assert coords.tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert with_prefix(np.ones((2, 3)), 0).shape == (2, 3)


def test_ladder_by_hand():
    # RoFormer with e = 8: base ** (-2k / 8) = 1, 1/10, 1/100, 1/1000.
    assert ladder(4, 10000.0).tolist() == pytest.approx([1, 0.1, 0.01, 0.001])


@pytest.mark.parametrize(("pairs", "base"), [(0, 10000.0), (4, 0.0), (4, -1.0)])
def test_ladder_refuses_nonsense(pairs, base):
    with pytest.raises(ConfigError, match="at least one pair and a base above 0"):
        ladder(pairs, base)
