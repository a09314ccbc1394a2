"""One time in each segment."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvl.core.errors import DataError
from stvl.data.sampling import segment_times


def test_centres_by_hand():
    assert segment_times(2.0, 4.0, 4).tolist() == [2.25, 2.75, 3.25, 3.75]
    assert segment_times(0.0, 3.0, 1).tolist() == [1.5]


@given(st.floats(0, 1e4), st.floats(0.01, 100), st.integers(1, 32), st.integers(0, 2**32))
def test_a_random_time_stays_in_its_segment(start, length, frames, seed):
    edges = np.linspace(start, start + length, frames + 1)
    times = segment_times(start, start + length, frames, np.random.default_rng(seed))
    assert (times >= edges[:-1] - 1e-9).all() and (times <= edges[1:] + 1e-9).all()


def test_random_times_cover_the_segment():
    rng = np.random.default_rng(0)
    drawn = np.array([segment_times(0.0, 2.0, 2, rng) for _ in range(500)])
    assert drawn[:, 0].min() < 0.02 and drawn[:, 0].max() > 0.98
    assert abs(drawn[:, 1].mean() - 1.5) < 0.05


@pytest.mark.parametrize(("start", "end", "frames"), [(2.0, 2.0, 4), (3.0, 2.0, 4), (0.0, 1.0, 0)])
def test_what_is_no_clip(start, end, frames):
    with pytest.raises(DataError, match=r"must end after it starts|at least one frame"):
        segment_times(start, end, frames)
