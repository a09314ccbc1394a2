"""ST-RoPE's angles for a few tokens, worked by hand from EVA02-AT (arXiv 2506.14356), Eq. 8-10."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from stvl.ops.rotary import Rotary, rotate
from stvl.rope.schemes import AxialRope, STRope

# Head width 8: four pairs; w_t = 1, 1/10, 1/100, 1/1000; w_s = 1, 1/100 for the row (pairs 0, 1) and the column (2, 3).
# A 4 x 4 grid stands on coordinates 0, 4, 8, 12.
HAND = [
    ((0, 0, 0), (0, 0, 0, 0)),
    ((1, 0, 0), (1, 0.1, 0.01, 0.001)),
    ((0, 1, 0), (4, 0.04, 0, 0)),
    ((0, 0, 1), (0, 0, 4, 0.04)),
    ((2, 1, 3), (2 + 4, 0.2 + 0.04, 0.02 + 12, 0.002 + 0.12)),
    ((3, 2, 2), (3 + 8, 0.3 + 0.08, 0.03 + 8, 0.003 + 0.08)),
]


def angles(scheme: AxialRope | STRope, frames: int, side: int, head: int, prefix: int = 0) -> np.ndarray:
    return scheme.coords(frames, side, side, prefix=prefix) @ scheme.frequencies(head)


@pytest.mark.parametrize(("place", "wanted"), HAND)
def test_angles(place: tuple[int, int, int], wanted: tuple[float, ...]):
    t, y, x = place
    found = angles(STRope(), 4, 4, 8)[(t * 4 + y) * 4 + x]
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_class_token_stands_at_the_origin():
    with_class = angles(STRope(), 2, 3, 16, prefix=1)
    assert not with_class[0].any()
    np.testing.assert_array_equal(with_class[1:], angles(STRope(), 2, 3, 16))


def test_grid_of_14_covers_16_units():
    column = STRope().coords(1, 14, 14, prefix=0)[:14, 2]
    np.testing.assert_allclose(column, [i * 16 / 14 for i in range(14)], rtol=1e-12)


def test_rotation_of_one_pair_by_hand():
    # Pair 0 of a head of width 4 turns by t + 16 y / rows; a quarter turn takes (1, 0) to (0, 1).
    coords = jnp.asarray([[np.pi / 2, 0.0, 0.0]], jnp.float32)
    frequencies = jnp.asarray(STRope().frequencies(4), jnp.float32)
    turned = rotate(jnp.asarray([[[[1.0, 0.0, 0.0, 0.0]]]]), Rotary(coords, frequencies))
    np.testing.assert_allclose(turned[0, 0, 0], [0, 0, 1, 0], atol=1e-6)
    turned = rotate(jnp.asarray([[[[0.0, 1.0, 0.0, 0.0]]]]), Rotary(coords, frequencies))
    # w_t[1] = 10000 ** (-2 / 4) = 1/100.
    slow = np.pi / 200
    np.testing.assert_allclose(turned[0, 0, 0], [0, np.cos(slow), 0, np.sin(slow)], atol=1e-6)


def scores(scheme: STRope, frames: int, side: int, head: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    q, k = (
        jnp.asarray(np.tile(rng.normal(size=head), (1, frames * side * side, 1, 1)), jnp.float32)
        for _ in "qk"
    )
    coords = jnp.asarray(scheme.coords(frames, side, side, prefix=0), jnp.float32)
    rotary = Rotary(coords, jnp.asarray(scheme.frequencies(head), jnp.float32))
    return np.einsum("bqhe,bshe->qs", rotate(q, rotary), rotate(k, rotary)).astype(np.float64)


def test_score_depends_on_the_difference_of_places_only():
    frames, side = 3, 3
    found = scores(STRope(), frames, side, 16)
    places = list(itertools.product(range(frames), range(side), range(side)))
    by_step: dict[tuple[int, ...], list[float]] = {}
    for (i, p), (j, q) in itertools.product(enumerate(places), repeat=2):
        by_step.setdefault(tuple(np.subtract(p, q)), []).append(found[i, j])
    assert len(by_step) == 5**3
    assert max(np.ptp(values) for values in by_step.values()) < 2e-5
    # Steps of one unit along each axis are told apart.
    firsts = [
        by_step[step][0]
        for step in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), (1, 1, 0), (1, 0, 1))
    ]
    assert np.diff(np.sort(firsts)).min() > 1e-3


def test_a_head_can_prefer_a_velocity():
    """q = k = the first pair of a head of width 4, on a grid of 16 rows: the score is cos(dt + dy), hand-worked.

    It is largest where the row falls by one a frame. A split scheme's score is f(dt) + g(dy): no velocity is best.
    """
    frames, side = 4, 16
    coords = jnp.asarray(STRope().coords(frames, side, side, prefix=0), jnp.float32)
    rotary = Rotary(coords, jnp.asarray(STRope().frequencies(4), jnp.float32))
    x = jnp.zeros((1, frames * side * side, 1, 4)).at[..., 0].set(1.0)
    turned = np.asarray(rotate(x, rotary), np.float64)[0, :, 0].reshape(frames, side, side, 4)
    found = np.einsum("tye,e->ty", turned[:, :, 5], turned[0, 8, 5])
    t, y = np.mgrid[:frames, :side]
    np.testing.assert_allclose(found, np.cos(t + (y - 8)), atol=2e-6)
    assert [int(row[4:11].argmax()) + 4 for row in found] == [8, 7, 6, 5]
