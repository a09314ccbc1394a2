"""What every attention backend promises. A backend joins with three lines::

class TestMine(AttentionContract):
    backend = "mine"
    declines = {"blind rows": "reason, as a pattern"}
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.errors import NotSupported
from stvl.ops.attention import Causal, Full, Mask, attention


@dataclasses.dataclass(frozen=True)
class First(Mask):
    """Sources 0 .. count - 1 are seen by all."""

    count: int

    def as_array(self, queries: int, sources: int) -> np.ndarray:
        return np.broadcast_to(np.arange(sources) < self.count, (queries, sources))


@dataclasses.dataclass(frozen=True)
class Blind(Mask):
    """Every third query sees nothing, the others everything."""

    def as_array(self, queries: int, sources: int) -> np.ndarray:
        return np.broadcast_to((np.arange(queries) % 3 != 2)[:, None], (queries, sources))


class Shape(NamedTuple):
    """Axes of q (b q h e) and of k and v (b s g e)."""

    b: int
    q: int
    s: int
    h: int
    g: int
    e: int


SHAPES = {
    "odd length": Shape(2, 7, 7, 4, 4, 8),
    "grouped heads": Shape(1, 9, 9, 6, 2, 16),
    "one key head": Shape(2, 5, 11, 4, 1, 12),
    "one token": Shape(3, 1, 1, 2, 2, 4),
    "clip of 4 x 3 x 3": Shape(1, 37, 37, 2, 2, 16),
}
MASKS = {"full": Full(), "causal": Causal(), "first": First(3), "causal & first": Causal() & First(3)}
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}

Arrays = tuple[np.ndarray, ...]


def draw(shape: Shape, dtype: str = "float32", seed: int = 0) -> tuple[jax.Array, ...]:
    """Random q, k, v and a cotangent of the output, rounded to `dtype`."""
    rng = np.random.default_rng(seed)
    b, q, s, h, g, e = shape
    sizes = [(b, q, h, e), (b, s, g, e), (b, s, g, e), (b, q, h, e)]
    return tuple(jnp.asarray(rng.standard_normal(size), dtype) for size in sizes)


def plain(q: Any, k: Any, v: Any, ct: Any, mask: Mask) -> tuple[np.ndarray, Arrays]:
    """Softmax attention in numpy, f64, one head at a time: the output, and the gradients of ``(out * ct).sum()``."""
    q, k, v, ct = (np.asarray(x, np.float64) for x in (q, k, v, ct))
    out, dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    allowed, scale = mask.as_array(q.shape[1], k.shape[1]), q.shape[3] ** -0.5
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            g = h // (q.shape[2] // k.shape[2])
            weights = np.where(allowed, np.exp(q[b, :, h] @ k[b, :, g].T * scale), 0)
            total = weights.sum(1, keepdims=True)
            weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
            out[b, :, h] = weights @ v[b, :, g]
            towards = ct[b, :, h] @ v[b, :, g].T
            ds = weights * (towards - (weights * towards).sum(1, keepdims=True)) * scale
            dq[b, :, h] += ds @ k[b, :, g]
            dk[b, :, g] += ds.T @ q[b, :, h]
            dv[b, :, g] += weights.T @ ct[b, :, h]
    return out, (dq, dk, dv)


def run(
    impl: str | None, arrays: tuple[jax.Array, ...], mask: Mask
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Output and gradients of a backend."""
    *qkv, ct = arrays

    def total(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attention(*qkv, mask=mask, impl=impl)
        return (out.astype(jnp.float32) * ct.astype(jnp.float32)).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return out, gradients


def close(found: Any, expected: Any, tolerance: float) -> None:
    """Assert that two arrays agree, relative to the largest value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


class AttentionContract:
    """The tests; a subclass names its backend and what it declines."""

    backend: ClassVar[str]
    declines: ClassVar[dict[str, str]] = {}

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_agrees_with_numpy(self, shape: str, dtype: str) -> None:
        arrays = draw(SHAPES[shape], dtype)
        out, gradients = run(self.backend, arrays, Full())
        expected, slopes = plain(*arrays, Full())
        assert out.dtype == jnp.dtype(dtype)
        close(out, expected, TOLERANCE[dtype])
        for found, slope, x in zip(gradients, slopes, arrays[:3], strict=True):
            assert found.dtype == x.dtype
            close(found, slope, TOLERANCE[dtype])

    @pytest.mark.parametrize("mask", MASKS)
    def test_masks_agree_with_numpy_and_the_reference(self, mask: str) -> None:
        arrays = draw(SHAPES["grouped heads"], seed=1)
        out, gradients = run(self.backend, arrays, MASKS[mask])
        expected, slopes = plain(*arrays, MASKS[mask])
        meant, meant_slopes = run("reference", arrays, MASKS[mask])
        for found, other, reference in zip(
            (out, *gradients), (expected, *slopes), (meant, *meant_slopes), strict=True
        ):
            close(found, other, TOLERANCE["float32"])
            close(found, reference, TOLERANCE["float32"])

    def test_rows_that_see_nothing_are_zero_or_declined(self) -> None:
        arrays = draw(SHAPES["odd length"], seed=2)
        if "blind rows" in self.declines:
            with pytest.raises(NotSupported, match=self.declines["blind rows"]):
                run(self.backend, arrays, Blind())
            return
        out, gradients = run(self.backend, arrays, Blind())
        expected, slopes = plain(*arrays, Blind())
        assert (np.asarray(out)[:, 2::3] == 0).all()
        for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
            close(found, other, TOLERANCE["float32"])

    def test_large_scores_stay_finite(self) -> None:
        q, k, v, ct = draw(SHAPES["odd length"], seed=3)
        out, gradients = run(self.backend, (100 * q, 100 * k, v, ct), Causal())
        assert all(np.isfinite(np.asarray(x)).all() for x in (out, *gradients))
        best = np.asarray(v)[:, 0]
        close(np.asarray(out)[:, 0], best, 1e-6)

    def test_what_a_query_may_not_see_does_not_matter(self) -> None:
        q, k, v, _ = draw(SHAPES["odd length"], seed=4)
        plain_out = attention(q, k, v, mask=Causal(), impl=self.backend)
        changed = attention(q, k.at[:, 4:].add(5.0), v.at[:, 4:].add(5.0), mask=Causal(), impl=self.backend)
        assert np.array_equal(np.asarray(plain_out)[:, :4], np.asarray(changed)[:, :4])
        assert not np.allclose(np.asarray(plain_out)[:, 4:], np.asarray(changed)[:, 4:])
