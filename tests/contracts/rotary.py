"""What every rotary backend promises. A backend joins with a few lines::

class TestMine(RotaryContract):
    backend = "mine"
    options = RotaryOptions(block_n=64)   # so small that the long cases have several blocks
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.ops.rotary import Rotary, RotaryOptions, rotate


class Shape(NamedTuple):
    """Axes of the heads (b n h e), the number of coordinate axes, and whether each sample has its own coordinates."""

    b: int
    n: int
    h: int
    e: int
    axes: int
    batched: bool
    dtype: str


CASES = {
    "one token, narrowest": Shape(2, 1, 1, 4, 1, False, "float32"),
    "7 tokens, 6 wide": Shape(1, 7, 5, 6, 2, True, "float32"),
    "197 tokens, odd heads": Shape(2, 197, 3, 64, 3, False, "float32"),
    "197 tokens of each sample, bf16": Shape(2, 197, 4, 32, 3, True, "bfloat16"),
    "785 tokens, bf16": Shape(2, 785, 4, 64, 3, False, "bfloat16"),
    "72 wide": Shape(1, 40, 3, 72, 4, True, "float32"),
    "80 wide, bf16": Shape(1, 33, 2, 80, 2, False, "bfloat16"),
    "128 wide": Shape(2, 65, 2, 128, 3, True, "float32"),
    "256 wide, 4 axes": Shape(1, 17, 1, 256, 4, False, "float32"),
}


class Turned(NamedTuple):
    """Turned heads, and the gradients of ``(turned * ct).sum()``."""

    y: Any
    dx: Any
    d_coords: Any
    d_frequencies: Any


def draw(shape: Shape, reach: float = 40.0, seed: int = 0) -> tuple[jax.Array, Rotary, jax.Array]:
    """Random heads, coordinates in ``-reach .. reach``, a geometric ladder on each axis, and a cotangent."""
    rng = np.random.default_rng(seed)
    b, n, h, e, axes, batched, dtype = shape
    x, ct = (jnp.asarray(rng.standard_normal((b, n, h, e)), dtype) for _ in range(2))
    coords = rng.uniform(-reach, reach, (*((b,) if batched else ()), n, axes))
    ladder = 100.0 ** -(np.arange(e // 2) / (e // 2)) * rng.uniform(0.5, 1.0, (axes, 1))
    return x, Rotary(jnp.asarray(coords, jnp.float32), jnp.asarray(ladder, jnp.float32)), ct


def as_complex(x: Any) -> np.ndarray:
    """Pairs as complex numbers, f64."""
    x = np.asarray(x, np.float64)
    return x[..., : x.shape[-1] // 2] + 1j * x[..., x.shape[-1] // 2 :]


def as_pairs(z: np.ndarray) -> np.ndarray:
    """The inverse of `as_complex`."""
    return np.concatenate([z.real, z.imag], axis=-1)


def plain(x: Any, rotary: Rotary, ct: Any) -> Turned:
    """Rotation by complex multiplication in f64: ``y = x exp(i angle)``, ``dangle = Im(conj(y) dy)``."""
    coords, frequencies = (np.asarray(part, np.float64) for part in rotary)
    units = np.exp(1j * (coords @ frequencies))[..., None, :]
    z, dz = as_complex(x), as_complex(ct)
    slopes = (np.conj(z * units) * dz).imag.sum(axis=2)
    if coords.ndim == 2:
        slopes = slopes.sum(axis=0)
    d_frequencies = coords.reshape(-1, coords.shape[-1]).T @ slopes.reshape(-1, slopes.shape[-1])
    return Turned(as_pairs(z * units), as_pairs(dz * units.conj()), slopes @ frequencies.T, d_frequencies)


def run(impl: str | None, x: jax.Array, rotary: Rotary, ct: jax.Array, options: RotaryOptions) -> Turned:
    """Turned heads and gradients of a backend."""

    def total(x: jax.Array, rotary: Rotary) -> tuple[jax.Array, jax.Array]:
        y = rotate(x, rotary, options=options, impl=impl)
        return (y.astype(jnp.float32) * ct.astype(jnp.float32)).sum(), y

    (_, y), (dx, slopes) = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(x, rotary)
    return Turned(y, dx, *slopes)


def spacing(rotary: Rotary) -> np.ndarray:
    """What f32 may do to an angle: half a unit in the last place of each product and of each sum; (..., n, p)."""
    coords, frequencies = (np.abs(np.asarray(part, np.float64)) for part in rotary)
    return 2 * coords.shape[-1] * 2.0**-24 * (coords @ frequencies)


def close(found: Any, expected: np.ndarray, rotary: Rotary) -> None:
    """Assert that turned heads agree, pair by pair: the angle, sine, cosine and products are those of f32."""
    size = np.abs(as_complex(expected))
    bound = (spacing(rotary)[..., None, :] + 5e-7) * size
    if found.dtype == jnp.bfloat16:
        bound = bound + 2.0**-8 * size
    wrong = np.abs(as_complex(found) - as_complex(expected))
    assert (wrong <= bound + 1e-30).all(), (
        f"off by up to {(wrong / np.maximum(size, 1e-30)).max()} of the pair"
    )


class RotaryContract:
    """The tests; a subclass names its backend, and options that make several blocks."""

    backend: ClassVar[str]
    options: ClassVar[RotaryOptions] = RotaryOptions()

    @pytest.mark.parametrize("case", CASES)
    def test_agrees_with_complex_numbers(self, case: str) -> None:
        x, rotary, ct = draw(CASES[case])
        found, expected = run(self.backend, x, rotary, ct, self.options), plain(x, rotary, ct)
        assert found.y.dtype == found.dx.dtype == x.dtype
        close(found.y, expected.y, rotary)
        close(found.dx, expected.dx, rotary)
        # Sums over heads, samples and pairs of products of numbers of order one; bf16 rounds dx before them.
        tolerance = 1e-2 if CASES[case].dtype == "bfloat16" else 1e-5
        for slopes, other in (
            (found.d_coords, expected.d_coords),
            (found.d_frequencies, expected.d_frequencies),
        ):
            assert slopes.shape == other.shape
            assert np.abs(np.asarray(slopes) - other).max() <= tolerance * max(1.0, np.abs(other).max())

    def test_positions_of_an_hour_of_video(self) -> None:
        shape = CASES["128 wide"]
        x, rotary, ct = draw(shape, reach=65536.0)
        found, expected = run(self.backend, x, rotary, ct, self.options), plain(x, rotary, ct)
        close(found.y, expected.y, rotary)
        close(found.dx, expected.dx, rotary)

    def test_norms_stay_and_opposite_coordinates_turn_back(self) -> None:
        x, rotary, _ = draw(CASES["197 tokens, odd heads"], seed=1)
        turn = jax.jit(lambda x, coords: rotate(x, Rotary(coords, rotary.frequencies), **self.ask()))
        y = turn(x, rotary.coords)
        np.testing.assert_allclose(np.abs(as_complex(y)), np.abs(as_complex(x)), rtol=1e-6, atol=1e-30)
        np.testing.assert_allclose(turn(y, -rotary.coords), x, atol=2e-6)
        assert not np.allclose(y, x, atol=0.5)

    def test_tokens_at_the_origin_do_not_turn(self) -> None:
        x, rotary, _ = draw(CASES["7 tokens, 6 wide"], seed=2)
        y = rotate(x, Rotary(rotary.coords.at[:, 3].set(0.0), rotary.frequencies), **self.ask())
        assert np.array_equal(y[:, 3], x[:, 3])
        assert not np.allclose(y[:, 4], x[:, 4], atol=1e-2)

    def test_bits_repeat_and_do_not_depend_on_the_blocks(self) -> None:
        x, rotary, _ = draw(CASES["197 tokens, odd heads"], seed=3)
        turn = jax.jit(lambda x: rotate(x, rotary, **self.ask()))
        whole = rotate(x, rotary, impl=self.backend, options=RotaryOptions(block_n=256))
        once = turn(x)
        assert np.array_equal(once, turn(x))
        np.testing.assert_allclose(once, whole, atol=1e-6)

    def test_no_tokens(self) -> None:
        y = rotate(jnp.zeros((2, 0, 3, 8)), Rotary(jnp.zeros((0, 2)), jnp.zeros((2, 4))), **self.ask())
        assert y.shape == (2, 0, 3, 8)

    def ask(self) -> dict[str, Any]:
        """Arguments that name the backend and its options."""
        return {"impl": self.backend, "options": self.options}
