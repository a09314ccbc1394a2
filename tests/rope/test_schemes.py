"""Rotary schemes: the equations of the papers, written again as loops, and the properties that they promise."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvl.core.config import from_dict, to_dict
from stvl.core.errors import ConfigError
from stvl.ops.rotary import Rotary, rotate
from stvl.rope.schemes import AxialRope, RopeScheme, STRope

SCHEMES = [AxialRope(), STRope(), STRope(base_space=100.0, base_time=50.0, reference_grid=7.0)]


def angles(
    scheme: RopeScheme, frames: int, rows: int, columns: int, width: int, prefix: int = 1
) -> np.ndarray:
    return scheme.coords(frames, rows, columns, prefix) @ scheme.frequencies(width)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_scheme_answers_the_protocol_and_survives_json(scheme):
    assert isinstance(scheme, RopeScheme)
    assert from_dict(to_dict(scheme)) == scheme
    coords, frequencies = scheme.coords(3, 4, 5, 2), scheme.frequencies(24)
    assert coords.shape == (2 + 60, len(frequencies))
    assert frequencies.shape[1] == 12


def test_st_rope_is_equation_10_of_the_paper():
    width, rows, columns = 64, 14, 14
    found = angles(STRope(), 4, rows, columns, width, prefix=1)
    assert (found[0] == 0).all()
    quarter = width // 4
    for t, y, x in [(0, 0, 0), (3, 0, 0), (0, 5, 0), (0, 0, 9), (2, 13, 7)]:
        for k in (0, 1, 15, 16, 17, 31):
            place = (y if k < quarter else x) / 14 * 16
            expected = t * 10000 ** (-2 * k / width) + place * 10000 ** (-2 * (k % quarter) / (width / 2))
            assert found[1 + (t * rows + y) * columns + x, k] == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_st_rope_of_one_frame_is_the_image_models_rope():
    assert np.array_equal(angles(STRope(), 1, 7, 5, 32), angles(AxialRope(), 1, 7, 5, 32))


def test_axial_rope_gives_every_frame_the_same_angles():
    found = angles(AxialRope(), 3, 4, 4, 16, prefix=0).reshape(3, 16, 8)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_no_pair_belongs_to_one_axis_alone_in_st_rope():
    time, row, column = STRope().frequencies(32)
    assert (time > 0).all()
    assert ((row > 0) ^ (column > 0)).all()


@pytest.mark.parametrize("scheme", [AxialRope(), STRope()], ids=str)
def test_head_width_must_be_divisible_by_four(scheme):
    name = type(scheme).__name__
    with pytest.raises(ConfigError, match=rf"{name} .*divisible by 4, found 18 \(nearest: 16 or 20\)"):
        scheme.frequencies(18)


heads = st.integers(0, 2**32 - 1)
place = st.tuples(st.integers(0, 7), st.integers(0, 9), st.integers(0, 9))
shift = st.tuples(st.integers(-20, 20), st.integers(-20, 20), st.integers(-20, 20))


def score(scheme: RopeScheme, seed: int, one: np.ndarray, two: np.ndarray) -> float:
    """Score of a random query at `one` and a random key at `two`."""
    q, k = np.random.default_rng(seed).standard_normal((2, 1, 1, 1, 16)).astype(np.float32)
    frequencies = jnp.asarray(scheme.frequencies(16), jnp.float32)
    turned = [
        rotate(jnp.asarray(x), Rotary(jnp.asarray(p[None], jnp.float32), frequencies))
        for x, p in ((q, one), (k, two))
    ]
    return float((turned[0] * turned[1]).sum())


@given(seed=heads, one=place, two=place, moved=shift)
def test_st_rope_scores_depend_on_differences_only(seed, one, two, moved):
    one, two, moved = (np.array(p, np.float64) for p in (one, two, moved))
    plain = score(STRope(), seed, one, two)
    assert score(STRope(), seed, one + moved, two + moved) == pytest.approx(plain, abs=2e-4)


def test_st_rope_scores_do_depend_on_each_difference():
    origin, q = np.zeros(3), np.eye(3)
    plain = score(STRope(), 0, origin, origin)
    for axis in range(3):
        assert abs(score(STRope(), 0, origin, q[axis]) - plain) > 1e-2


def test_a_head_of_st_rope_can_prefer_a_velocity():
    """Tokens on a diagonal ``dx = -dt w_t / w_s`` keep their angle in a pair: the crest moves with the motion."""
    time, _, column = STRope(reference_grid=16.0).frequencies(16)
    pair = 5
    speed = time[pair] / column[pair]
    turned = [t * time[pair] - t * speed * column[pair] for t in range(5)]
    assert turned == pytest.approx([0.0] * 5, abs=1e-12)
