"""Modifiers of a ladder: by hand, against each other, and inside every scheme."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvl.core.config import from_dict, to_dict
from stvl.core.errors import ConfigError
from stvl.rope.catalogue import SCHEMES, scheme
from stvl.rope.frequencies import ladder
from stvl.rope.scaling import BaseScaling, Interpolation, NTKAware, NTKByParts, Scaling, Unscaled, YaRN

SCALINGS = [
    Unscaled(),
    BaseScaling(factor=8.0),
    Interpolation(factor=4.0),
    NTKAware(factor=4.0),
    NTKByParts(factor=4.0, original_length=256.0),
    YaRN(factor=4.0, original_length=256.0),
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=repr)
def test_scaling_answers_the_protocol_and_survives_json(scaling):
    assert isinstance(scaling, Scaling)
    assert from_dict(to_dict(scaling)) == scaling
    row = scaling.ladder(16, 10000.0)
    assert row.shape == (16,) and (row > 0).all() and (np.diff(row) < 0).all()
    # Nothing turns faster than before.
    assert (row <= ladder(16, 10000.0) * (1 + 1e-12)).all()


def test_a_larger_base_is_not_interpolation():
    """LWM, 32 times the length, head 128: the slow-down of pairs 0, 16, 32, 48, 63, not 32 for all."""
    slower = ladder(64, 10000.0) / BaseScaling(factor=32.0).ladder(64, 10000.0)
    assert slower[[0, 16, 32, 48, 63]] == pytest.approx([1, 2.3784, 5.6569, 13.4543, 30.3132], rel=1e-5)
    everywhere = ladder(64, 10000.0) / Interpolation(factor=32.0).ladder(64, 10000.0)
    assert everywhere == pytest.approx(np.full(64, 32.0))


def test_exponent_of_base_scaling():
    # B' = 100 * 16 ** 0.5 = 400; two pairs: 1 and 400 ** -0.5.
    assert BaseScaling(factor=16.0, exponent=0.5).ladder(2, 100.0) == pytest.approx([1, 0.05])


def test_interpolation_is_slower_positions():
    position, row = np.arange(9.0), Interpolation(factor=4.0).ladder(8, 10000.0)
    assert np.outer(position, row) == pytest.approx(np.outer(position / 4, ladder(8, 10000.0)))


@given(factor=st.floats(1.0, 64.0), pairs=st.integers(2, 64))
def test_ntk_keeps_the_first_pair_and_interpolates_the_last(factor, pairs):
    row, plain = NTKAware(factor=factor).ladder(pairs, 10000.0), ladder(pairs, 10000.0)
    assert row[0] == plain[0]
    assert row[-1] == pytest.approx(plain[-1] / factor)


@pytest.mark.parametrize("kind", [NTKByParts, YaRN])
def test_parts_keep_fast_pairs_and_interpolate_slow_ones(kind):
    scaling, plain = kind(factor=8.0, original_length=4096.0), ladder(64, 10000.0)
    turns = 4096 * plain / (2 * math.pi)
    share = (scaling.ladder(64, 10000.0) / plain - 1 / 8) / (1 - 1 / 8)
    # Between the two ends YaRN rounds outwards by up to a pair.
    step = plain[0] / plain[1]
    assert share[turns > 32 * step] == pytest.approx(1)
    assert share[turns < 1 / step] == pytest.approx(0, abs=1e-12)
    between = (turns < 32 / step) & (turns > step)
    assert ((share[between] > 0) & (share[between] < 1)).all() and between.sum() > 10


def test_ramps_of_paper_and_release_by_hand():
    """Ladder 1, 0.1, 0.01, 0.001, trained at 2 pi * 50: turns 50, 5, 0.5, 0.05."""
    length, base = 100 * math.pi, 10000.0
    paper = NTKByParts(factor=2.0, original_length=length).ladder(4, base)
    # Shares 1, (5 - 1) / 31, 0, 0; a share g of w and 1 - g of w / 2 is w (1 + g) / 2.
    assert paper == pytest.approx([1, 0.1 * (1 + 4 / 31) / 2, 0.005, 0.0005])
    # k(r) = log10(50 / r): k(32) = 0.19 -> 0, k(1) = 1.70 -> 2; shares 1, 1/2, 0, 0.
    release = YaRN(factor=2.0, original_length=length).ladder(4, base)
    assert release == pytest.approx([1, 0.075, 0.005, 0.0005])
    # Without rounding the share of pair 1 is 1 - (1 - 0.19382) / (1.69897 - 0.19382).
    exact = YaRN(factor=2.0, original_length=length, whole=False).ladder(4, base)
    assert exact[1] == pytest.approx(0.05 * (2 - (1 - 0.19382) / (1.69897 - 0.19382)), rel=1e-5)


def test_attention_factor():
    # The temperature of YaRN: 0.1 ln 4 + 1 = 1.13863.
    assert YaRN(factor=4.0, original_length=256.0).attention_factor == pytest.approx(1.138629)
    assert NTKByParts(factor=4.0, original_length=256.0).attention_factor == pytest.approx(1.138629)
    assert YaRN(factor=0.5, original_length=256.0).attention_factor == 1
    assert {scaling.attention_factor for scaling in SCALINGS[:4]} == {1.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BaseScaling(factor=0.0), r"BaseScaling\(factor=0.0\): expected a number above 0"),
        (lambda: Interpolation(factor=-2.0), r"Interpolation\(factor=-2.0\)"),
        (lambda: NTKAware(factor=float("nan")), "expected a number above 0"),
        (lambda: YaRN(factor=2.0, original_length=0.0), r"YaRN\(original_length=0.0\)"),
        (lambda: YaRN(factor=2.0, original_length=9.0, slow=32.0, fast=1.0), "slow must be below fast"),
        (lambda: NTKByParts(factor=2.0, original_length=9.0, slow=2.0, fast=2.0), "slow must be below fast"),
        (lambda: NTKAware(factor=2.0).ladder(1, 10.0), "at least two pairs, found 1"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_takes_a_modifier(name):
    """With interpolation by 2 in all its ladders, a scheme turns half as fast; with none it is as published."""
    plain = scheme(name, 96)
    fields = [f.name for f in dataclasses.fields(plain) if f.name.startswith("scaling")]  # type: ignore[arg-type]
    assert fields
    slow = dataclasses.replace(plain, **dict.fromkeys(fields, Interpolation(factor=2.0)))  # type: ignore[type-var]
    assert slow.frequencies(96) == pytest.approx(plain.frequencies(96) / 2)
    assert from_dict(to_dict(slow)) == slow


def test_time_can_be_stretched_alone():
    st_rope = dataclasses.replace(scheme("st", 64), scaling_time=BaseScaling(factor=16.0))  # type: ignore[type-var]
    plain = scheme("st", 64).frequencies(64)
    assert np.array_equal(st_rope.frequencies(64)[1:], plain[1:])
    assert st_rope.frequencies(64)[0] == pytest.approx(ladder(32, 160000.0))
