"""Split 3-D, whole-index axial and mixed rotary embeddings against their definitions, and relativity of all schemes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvl.core.errors import ConfigError
from stvl.rope.catalogue import SCHEMES, scheme
from stvl.rope.schemes import AxialRope, MixedRope, Rope1D, Split3DRope, STRope, TADRope


def test_split_is_the_definition_of_cogvideox():
    """Head 64: 16, 24, 24 elements for t, y, x, each with the ladder ``10000 ** (-2i / e_a)`` of its own width."""
    matrix = Split3DRope().frequencies(64)
    expected = np.zeros((3, 32))
    start = 0
    for axis, width in enumerate([64 // 4, 64 // 8 * 3, 64 // 8 * 3]):
        for i in range(width // 2):
            expected[axis, start + i] = 10000 ** (-2 * i / width)
        start += width // 2
    assert matrix == pytest.approx(expected)
    assert Split3DRope().coords(2, 3, 4, 0)[[0, 1, 4, 12]].tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 1, 0],
        [1, 0, 0],
    ]


def test_even_split_by_hand():
    # Head 12: two pairs an axis, 1 and 10000 ** -0.5.
    row = [1, 0.01]
    assert Split3DRope(shares=(1, 1, 1)).frequencies(12).tolist() == [
        pytest.approx([*row, 0, 0, 0, 0]),
        pytest.approx([0, 0, *row, 0, 0]),
        pytest.approx([0, 0, 0, 0, *row]),
    ]


def test_split_with_bases_and_rescaling():
    found = Split3DRope(base_time=100.0, base_space=400.0, reference_grid=16.0)
    matrix = found.frequencies(16)
    assert matrix[0, :2].tolist() == pytest.approx([1, 0.1])
    assert matrix[1, 2:5] == pytest.approx(400 ** (-np.arange(3) / 3))
    assert found.coords(2, 32, 8, 0)[-1].tolist() == [1, 31 / 2, 14]


def test_an_axis_may_have_no_share():
    space_only = Split3DRope(shares=(0, 1, 1)).frequencies(16)
    assert np.array_equal(space_only[1:], AxialRope().frequencies(16))
    assert (space_only[0] == 0).all()


@pytest.mark.parametrize(
    ("shares", "width", "message"),
    [
        ((2, 3, 3), 24, r"divisible by 16, found 24 \(nearest: 16 or 32\)"),
        ((1, 1, 1), 64, r"shares=\(1, 1, 1\).* divisible by 6, found 64 \(nearest: 60 or 66\)"),
        ((2, 2, 2), 64, "divisible by 6, found 64"),
        ((2, 3, 3), 0, r"divisible by 16, found 0 \(nearest: 16\)"),
        ((2, -1, 3), 64, r"shares \(2, -1, 3\) cannot be below 0"),
        ((0, 0, 0), 64, "nor all 0"),
    ],
)
def test_shares_that_do_not_fit_are_refused(shares, width, message):
    with pytest.raises(ConfigError, match=message):
        Split3DRope(shares=shares).frequencies(width)


@pytest.mark.parametrize("kind", [Rope1D, TADRope])
@pytest.mark.parametrize("width", [7, 0, -2])
def test_odd_heads_are_refused(kind, width):
    with pytest.raises(ConfigError, match=rf"{kind.__name__}: .* divisible by 2, found {width}"):
        kind().frequencies(width)


@pytest.mark.parametrize("kind", [AxialRope, MixedRope, STRope])
@pytest.mark.parametrize("width", [18, 0, -4])
def test_heads_that_do_not_halve_twice_are_refused(kind, width):
    with pytest.raises(ConfigError, match=rf"{kind.__name__} .* divisible by 4, found {width}"):
        kind().frequencies(width)


def test_whole_indices_and_rescaling_are_one_ladder():
    whole, eva = AxialRope(reference_grid=None), AxialRope()
    assert np.array_equal(whole.frequencies(32), eva.frequencies(32))
    assert whole.coords(1, 2, 3, 0).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    # On the reference grid both are the same.
    assert np.array_equal(whole.coords(2, 16, 16), eva.coords(2, 16, 16))


def test_mixed_pairs_use_both_axes_at_the_lengths_of_the_ladder():
    matrix = MixedRope().frequencies(32)
    length = np.linalg.norm(matrix, axis=0)
    assert length == pytest.approx(np.tile(10000 ** (-np.arange(8) / 8), 2))
    # The two halves stand at right angles; all but the first pair of each half lean.
    assert (matrix[:, :8] * matrix[:, 8:]).sum(axis=0) == pytest.approx(np.zeros(8), abs=1e-12)
    assert (np.abs(np.delete(matrix, [0, 8], axis=1)) / np.delete(length, [0, 8]) > 1e-3).all()


def test_mixed_tells_the_diagonals_apart_and_axial_does_not():
    def spread(found: AxialRope | MixedRope) -> float:
        angle = found.coords(1, 3, 3, 0) @ found.frequencies(32)
        down, up = np.cos(angle[8] - angle[0]), np.cos(angle[6] - angle[2])
        return float(np.abs(down - up).max())

    assert spread(AxialRope(reference_grid=None)) < 1e-12
    assert spread(MixedRope()) > 0.1


offsets = st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 4))


@given(name=st.sampled_from(sorted(set(SCHEMES) - {"1d", "tad"})), offset=offsets, data=st.data())
def test_angle_differences_depend_on_offsets_only(name, offset, data):
    """Any two pairs of tokens with the same (dt, dy, dx) have the same angle between them, so the same scores."""
    sides = (6, 7, 8)
    width = 96
    found = scheme(name, width)
    angles = (found.coords(*sides, 0) @ found.frequencies(width)).reshape(*sides, width // 2)
    differences = []
    for _ in range(2):
        at = [data.draw(st.integers(0, side - 1 - d)) for side, d in zip(sides, offset, strict=True)]
        to = [a + d for a, d in zip(at, offset, strict=True)]
        differences.append(angles[tuple(to)] - angles[tuple(at)])
    assert differences[0] == pytest.approx(differences[1], abs=1e-9)


@given(t=st.integers(0, 3), y=st.integers(0, 4), x=st.integers(0, 5))
def test_st_rope_is_additive(t, y, x):
    """The angle of (t, y, x) is the angle of (t, 0, 0) plus that of (0, y, x)."""
    found = STRope(base_time=500.0)
    angles = (found.coords(4, 5, 6, 0) @ found.frequencies(32)).reshape(4, 5, 6, 16)
    assert angles[t, y, x] == pytest.approx(angles[t, 0, 0] + angles[0, y, x], abs=1e-12)
    assert np.array_equal(
        angles[0], (AxialRope().coords(1, 5, 6, 0) @ AxialRope().frequencies(32)).reshape(5, 6, 16)
    )


def test_st_rope_time_is_a_one_axis_rope_over_the_whole_head():
    found = STRope(base_time=500.0)
    line = Rope1D(base=500.0)
    assert np.array_equal(found.frequencies(32)[:1], line.frequencies(32))


def test_old_configs_read_back_without_the_new_fields():
    from stvl.core.config import from_dict

    old = {"type": "STRope", "base_space": 10000.0, "base_time": 10.0, "reference_grid": 16.0}
    assert from_dict(old) == dataclasses.replace(STRope(), base_time=10.0)
