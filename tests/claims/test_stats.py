"""Mean, spread and paired intervals by hand-worked numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stvl.claims.stats import paired, spread
from stvl.core.errors import ConfigError


def test_spread_of_three_by_hand():
    # Mean 4; squares of deviations 4 + 0 + 4 = 8; 8 / 2 = 4; root 2.
    found = spread([2.0, 4.0, 6.0])
    assert (found.mean, found.deviation, found.count) == (4.0, 2.0, 3)


def test_spread_of_one_is_not_known():
    found = spread([0.25])
    assert found.mean == 0.25 and math.isnan(found.deviation)


def test_paired_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.303, half width 4.303 / sqrt 3.
    found = paired([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(2.48434, abs=1e-5)
    assert (found.low, found.high) == pytest.approx((-0.48434, 4.48434), abs=1e-5)
    assert not found.clear


def test_five_pairs_take_the_t_of_four_degrees():
    # Differences 1, 1, 1, 1, 2: mean 1.2, variance 0.8 / 4 = 0.2; half 2.776 * sqrt(0.2 / 5) = 0.5552.
    found = paired([1.0, 1.0, 1.0, 1.0, 2.0], [0.0] * 5)
    assert found.mean == pytest.approx(1.2)
    assert found.half == pytest.approx(0.5552)
    assert found.clear


def test_equal_differences_have_no_width():
    found = paired([3.0, 5.0], [1.0, 3.0])
    assert (found.mean, found.half, found.clear) == (2.0, 0.0, True)


def test_one_pair_is_never_clear():
    found = paired([9.0], [1.0])
    assert found.mean == 8.0 and math.isnan(found.half) and not found.clear


def test_many_pairs_take_the_normal_point():
    values = [0.0, 2.0] * 20
    # 40 differences, deviation sqrt(40 / 39).
    assert paired(values, [0.0] * 40).half == pytest.approx(1.96 * math.sqrt(40 / 39) / math.sqrt(40))


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="lists of one length, found 2 and 1"):
        paired([1.0, 2.0], [1.0])
    with pytest.raises(ConfigError, match="one value or more"):
        spread([])


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=9), st.floats(-5, 5))
def test_a_shift_of_both_sides_changes_no_difference(pairs, shift):
    one, other = [list(side) for side in zip(*pairs, strict=True)]
    plain = paired(one, other)
    moved = paired([x + shift for x in one], [x + shift for x in other])
    assert moved.mean == pytest.approx(plain.mean, abs=1e-9)
    assert moved.half == pytest.approx(plain.half, abs=1e-9)
