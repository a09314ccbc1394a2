"""What every attention backend promises. A backend joins with a few lines::

class TestMine(AttentionContract):
    backend = "mine"
    options = AttentionOptions(block_q=16, block_kv=16)   # so small that every case has several tiles
    declines = {"custom": "reason, as a pattern"}
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.errors import NotSupported
from stvl.ops.attention import (
    AttentionOptions,
    BlockCausal,
    Causal,
    Full,
    Lengths,
    Mask,
    Prefix,
    Segments,
    Window,
    attention,
)
from stvl.ops.attention.shapes import SHAPES as NAMED
from stvl.ops.rotary import Rotary


@dataclasses.dataclass(frozen=True)
class First(Mask):
    """Sources 0 .. count - 1 are seen by all; known by its array only, as a mask of a user's own may be."""

    count: int

    def as_array(self, queries: int, sources: int) -> np.ndarray:
        return np.broadcast_to(np.arange(sources) < self.count, (queries, sources))


@dataclasses.dataclass(frozen=True)
class Blind(Mask):
    """Every third query sees nothing, the others everything; known by its array only."""

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
    "grouped heads": Shape(1, 41, 41, 6, 2, 16),
    "one key head": Shape(2, 5, 35, 4, 1, 12),
    "one token": Shape(3, 1, 1, 2, 2, 4),
    "more queries than sources": Shape(1, 50, 18, 2, 2, 32),
    "odd heads, head width 64": Shape(1, 37, 37, 3, 3, 64),
    "wide heads": Shape(1, 33, 33, 2, 1, 128),
    **{
        f"small {name}": Shape(*(getattr(NAMED[name].smaller(40, 2), axis) for axis in "bqshge"))
        for name in ("b16-4f", "l14-16f-nocls", "text-77", "time-only", "window-8x7x7", "grouped-8k")
    },
}
IDS = np.array([[0] * 9 + [1] * 14 + [2] * 11 + [-1] * 7], np.int32)
MASKS: dict[str, Mask] = {
    "full": Full(),
    "causal": Causal(),
    "causal, 5 sources before": Causal(offset=5),
    "causal, first 6 queries blind": Causal(offset=-6),
    "window": Window(4, 2),
    "window to one side": Window(20, 0),
    "prefix": Prefix(11),
    "frames": BlockCausal(8),
    "frames & window": BlockCausal(8) & Window(12, 12),
    "segments": Segments(IDS),
    "segments & causal": Segments(IDS) & Causal(),
    "lengths": Lengths(np.array([23])),
    "lengths of both": Lengths(np.array([29]), np.array([17])),
    "no source": Lengths(np.array([0])),
    "lengths & segments & window": Lengths(np.array([30])) & Segments(IDS) & Window(9, 30),
}
OWN_MASKS: dict[str, Mask] = {"first": First(3), "blind": Blind(), "causal & first": Causal() & First(3)}
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}

Arrays = tuple[np.ndarray, ...]


def draw(shape: Shape, dtype: str = "float32", seed: int = 0) -> tuple[jax.Array, ...]:
    """Random q, k, v and a cotangent of the output, rounded to `dtype`."""
    rng = np.random.default_rng(seed)
    b, q, s, h, g, e = shape
    sizes = [(b, q, h, e), (b, s, g, e), (b, s, g, e), (b, q, h, e)]
    return tuple(jnp.asarray(rng.standard_normal(size), dtype) for size in sizes)


def draw_rotary(shape: Shape, seed: int = 0, batched: bool = False) -> Rotary:
    """Random coordinates on three axes and frequencies."""
    rng = np.random.default_rng(seed)
    lead = (shape.b,) if batched else ()
    coords = rng.uniform(-9, 9, (*lead, shape.q, 3))
    return Rotary(jnp.asarray(coords, jnp.float32), jnp.asarray(rng.random((3, shape.e // 2)), jnp.float32))


def turn(x: np.ndarray, rotary: Rotary) -> tuple[np.ndarray, np.ndarray]:
    """Rotated heads as complex numbers' parts, and the unit complex numbers that turned them, in f64."""
    angles = np.asarray(rotary.coords, np.float64) @ np.asarray(rotary.frequencies, np.float64)
    units = np.exp(1j * angles)[..., None, :]
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * units
    return np.concatenate([turned.real, turned.imag], axis=-1), units


def turn_back(x: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The inverse, which is the transpose, of `turn`."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * units.conj()
    return np.concatenate([turned.real, turned.imag], axis=-1)


def plain(
    q: Any, k: Any, v: Any, ct: Any, mask: Mask, rotary: Rotary | None = None
) -> tuple[np.ndarray, Arrays]:
    """Softmax attention in numpy, f64, one head at a time: the output, and the gradients of ``(out * ct).sum()``."""
    q, k, v, ct = (np.asarray(x, np.float64) for x in (q, k, v, ct))
    units = np.ones(1)
    if rotary is not None:
        (q, units), (k, _) = turn(q, rotary), turn(k, rotary)
    out, dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    allowed, scale = np.asarray(mask.as_array(q.shape[1], k.shape[1])), q.shape[3] ** -0.5
    allowed = np.broadcast_to(allowed, (q.shape[0], *allowed.shape[-2:]))
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            g = h // (q.shape[2] // k.shape[2])
            weights = np.where(allowed[b], np.exp(q[b, :, h] @ k[b, :, g].T * scale), 0)
            total = weights.sum(1, keepdims=True)
            weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
            out[b, :, h] = weights @ v[b, :, g]
            towards = ct[b, :, h] @ v[b, :, g].T
            ds = weights * (towards - (weights * towards).sum(1, keepdims=True)) * scale
            dq[b, :, h] += ds @ k[b, :, g]
            dk[b, :, g] += ds.T @ q[b, :, h]
            dv[b, :, g] += weights.T @ ct[b, :, h]
    return out, (dq, dk, dv) if rotary is None else (turn_back(dq, units), turn_back(dk, units), dv)


def run(
    impl: str | None,
    arrays: tuple[jax.Array, ...],
    mask: Mask,
    rotary: Rotary | None = None,
    options: AttentionOptions | None = None,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Output and gradients of a backend with respect to q, k and v."""
    *qkv, ct = arrays

    def total(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attention(*qkv, mask=mask, rotary=rotary, options=options, impl=impl)
        return (out.astype(jnp.float32) * ct.astype(jnp.float32)).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return out, gradients


def close(found: Any, expected: Any, tolerance: float) -> None:
    """Assert that two arrays agree, relative to the largest value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


class AttentionContract:
    """The tests; a subclass names its backend, options that make several tiles, and what it declines.

    `declines` maps ``custom`` (masks known by their array only) or the name of a mask, shape or dtype to a pattern of
    the reason.
    """

    backend: ClassVar[str]
    options: ClassVar[AttentionOptions] = AttentionOptions()
    declines: ClassVar[dict[str, str]] = {}

    def answers(self, name: str, arrays: Any, mask: Mask, rotary: Rotary | None = None) -> Any:
        """Output and gradients, or None when the backend declines the case as announced."""
        if name not in self.declines:
            return run(self.backend, arrays, mask, rotary, self.options)
        with pytest.raises(NotSupported, match=self.declines[name]):
            run(self.backend, arrays, mask, rotary, self.options)
        return None

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_agrees_with_numpy(self, shape: str, dtype: str) -> None:
        arrays = draw(SHAPES[shape], dtype)
        answer = self.answers(shape, arrays, Full())
        if answer is None:
            return
        (out, gradients), (expected, slopes) = answer, plain(*arrays, Full())
        assert out.dtype == jnp.dtype(dtype)
        close(out, expected, TOLERANCE[dtype])
        for found, slope, x in zip(gradients, slopes, arrays[:3], strict=True):
            assert found.dtype == x.dtype
            close(found, slope, TOLERANCE[dtype])

    @pytest.mark.parametrize("mask", MASKS)
    def test_masks_agree_with_numpy(self, mask: str) -> None:
        arrays = draw(SHAPES["grouped heads"], seed=1)
        answer = self.answers(mask, arrays, MASKS[mask])
        if answer is None:
            return
        (out, gradients), (expected, slopes) = answer, plain(*arrays, MASKS[mask])
        for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
            close(found, other, TOLERANCE["float32"])
        seen = np.asarray(MASKS[mask].as_array(41, 41)).reshape(-1, 41, 41)[0].any(-1)
        assert (np.asarray(out)[0, ~seen] == 0).all()

    @pytest.mark.parametrize("mask", OWN_MASKS)
    def test_masks_known_by_their_array_agree_or_are_declined(self, mask: str) -> None:
        arrays = draw(SHAPES["grouped heads"], seed=2)
        answer = self.answers("custom", arrays, OWN_MASKS[mask])
        if answer is None:
            return
        (out, gradients), (expected, slopes) = answer, plain(*arrays, OWN_MASKS[mask])
        for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
            close(found, other, TOLERANCE["float32"])

    @pytest.mark.parametrize("batched", [False, True])
    @pytest.mark.parametrize("shape", ["odd heads, head width 64", "grouped heads", "wide heads"])
    def test_turned_heads_agree_with_numpy(self, shape: str, batched: bool) -> None:
        arrays = draw(SHAPES[shape], seed=3)
        rotary = draw_rotary(SHAPES[shape], batched=batched)
        answer = self.answers(shape, arrays, Causal(), rotary)
        if answer is None:
            return
        (out, gradients), (expected, slopes) = answer, plain(*arrays, Causal(), rotary)
        for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
            close(found, other, TOLERANCE["float32"])

    def test_coordinates_and_frequencies_get_gradients(self) -> None:
        q, k, v, ct = draw(SHAPES["grouped heads"], seed=4)

        def total(rotary: Rotary, impl: str) -> jax.Array:
            return (attention(q, k, v, rotary=rotary, options=self.options, impl=impl) * ct).sum()

        rotary = draw_rotary(SHAPES["grouped heads"])
        found = jax.grad(total)(rotary, self.backend)
        expected = jax.grad(total)(rotary, "reference")
        for ours, theirs in zip(found, expected, strict=True):
            close(ours, theirs, 1e-4)

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_two_runs_agree_bit_for_bit(self, dtype: str) -> None:
        arrays = draw(SHAPES["grouped heads"], dtype, seed=5)
        rotary = draw_rotary(SHAPES["grouped heads"])
        once = self.answers(dtype, arrays, Window(9, 20), rotary)
        if once is None:
            return
        again = run(self.backend, arrays, Window(9, 20), rotary, self.options)
        for first, second in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
            assert np.array_equal(np.asarray(first), np.asarray(second))

    def test_large_scores_stay_finite(self) -> None:
        q, k, v, ct = draw(SHAPES["odd length"], seed=6)
        out, gradients = run(self.backend, (100 * q, 100 * k, v, ct), Causal(), None, self.options)
        assert all(np.isfinite(np.asarray(x)).all() for x in (out, *gradients))
        best = np.asarray(v)[:, 0]
        close(np.asarray(out)[:, 0], best, 1e-6)

    def test_what_a_query_may_not_see_does_not_matter(self) -> None:
        q, k, v, _ = draw(SHAPES["odd length"], seed=7)
        ask = {"mask": Causal(), "options": self.options, "impl": self.backend}
        plain_out = attention(q, k, v, **ask)
        changed = attention(q, k.at[:, 4:].add(5.0), v.at[:, 4:].add(5.0), **ask)
        assert np.array_equal(np.asarray(plain_out)[:, :4], np.asarray(changed)[:, :4])
        assert not np.allclose(np.asarray(plain_out)[:, 4:], np.asarray(changed)[:, 4:])
