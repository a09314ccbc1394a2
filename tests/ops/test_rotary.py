"""The rotary op: rotations as complex multiplication, and what makes them useful."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvl.ops.rotary import Rotary, rotate
from stvl.rope.schemes import STRope

SHAPE = (2, 25, 3, 16)


def heads(seed: int = 0, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(SHAPE), dtype)


def st_rope(width: int = 16) -> Rotary:
    scheme = STRope()
    coords, frequencies = scheme.coords(4, 2, 3, prefix=1), scheme.frequencies(width)
    return Rotary(jnp.asarray(coords, jnp.float32), jnp.asarray(frequencies, jnp.float32))


def as_complex(x: jax.Array) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x[..., : x.shape[-1] // 2] + 1j * x[..., x.shape[-1] // 2 :]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_rotation_is_multiplication_by_a_unit_complex_number(dtype, tolerance):
    x, rotary = heads(dtype=dtype), st_rope()
    turn = np.exp(1j * np.asarray(rotary.coords, np.float64) @ np.asarray(rotary.frequencies, np.float64))
    found = rotate(x, rotary)
    assert found.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(as_complex(found), as_complex(x) * turn[:, None], atol=tolerance)


def test_rotation_by_hand():
    quarter = Rotary(jnp.asarray([[1.0]]), jnp.asarray([[np.pi / 2, 0.0]], jnp.float32))
    x = jnp.asarray([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    # Pair 0 is (1, 3) and turns by 90 degrees into (-3, 1); pair 1 is (2, 4) and stays.
    np.testing.assert_allclose(np.asarray(rotate(x, quarter))[0, 0, 0], [-3, 2, 1, 4], atol=1e-6)


def test_tokens_at_the_origin_do_not_turn():
    assert np.array_equal(rotate(heads(), st_rope())[:, 0], heads()[:, 0])


def test_coordinates_of_each_sample():
    rotary = st_rope()
    each = jnp.stack([rotary.coords, rotary.coords[::-1]])
    found = rotate(heads(), Rotary(each, rotary.frequencies))
    assert np.array_equal(found[0], rotate(heads(), rotary)[0])
    assert np.array_equal(found[1], rotate(heads(), Rotary(rotary.coords[::-1], rotary.frequencies))[1])


@given(st.integers(0, 2**32 - 1))
def test_norms_are_preserved(seed):
    x = heads(seed)
    before, after = (np.linalg.norm(np.asarray(y), axis=-1) for y in (x, rotate(x, st_rope())))
    np.testing.assert_allclose(after, before, rtol=1e-5)


@given(st.integers(0, 2**32 - 1), st.lists(st.floats(-50, 50), min_size=3, max_size=3))
def test_scores_do_not_see_a_common_shift(seed, shift):
    x, rotary = heads(seed), st_rope()
    moved = Rotary(rotary.coords + jnp.asarray(shift, jnp.float32), rotary.frequencies)
    scores = [
        np.einsum("bqhe,bshe->bhqs", *(np.asarray(rotate(y, r)) for y in (x, x[::-1])))
        for r in (rotary, moved)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=2e-3)


def test_gradient_is_the_inverse_rotation():
    x, ct, rotary = heads(1), heads(2), st_rope()
    _, pull = jax.vjp(lambda y: rotate(y, rotary), x)
    back = rotate(ct, Rotary(-rotary.coords, rotary.frequencies))
    np.testing.assert_allclose(pull(ct)[0], back, atol=1e-5)
    np.testing.assert_allclose(
        rotate(rotate(x, rotary), Rotary(-rotary.coords, rotary.frequencies)), x, atol=1e-5
    )


WRONG = [
    (Rotary(jnp.zeros((25, 3)), jnp.zeros((3, 6))), "for 6 pairs, the heads are 16 wide: expected 8 pairs"),
    (Rotary(jnp.zeros((25, 2)), jnp.zeros((3, 8))), "coords have 2 axes, frequencies have 3"),
    (Rotary(jnp.zeros((24, 3)), jnp.zeros((3, 8))), "coords are for 24 tokens, the heads have 25"),
]


@pytest.mark.parametrize(("rotary", "message"), WRONG)
@pytest.mark.usefixtures("as_installed")
def test_shapes_that_do_not_fit(rotary, message):
    with pytest.raises(ValueError, match=message):
        rotate(heads(), rotary)
