"""Pieces that the forward and the backward TPU kernel share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from stvl.ops.attention.tpu_layout import LANES, LOW, Layout

#: A window into the memory of a kernel; Pallas has no public name for its type.
Ref = Any


class MaskRefs(NamedTuple):
    """Vectors of `Visible`: those of queries lie along lanes (1, q), those of sources down rows, equal over lanes."""

    first: Ref | None
    last: Ref | None
    q_ids: Ref | None
    at: Ref | None
    s_ids: Ref | None


def nt(left: Array, right: Array, exact: bool) -> Array:
    """``left @ right.T`` in f32."""
    return _product(left, right, 1, exact)


def nn(left: Array, right: Array, exact: bool) -> Array:
    """``left @ right`` in f32."""
    return _product(left, right, 0, exact)


def _product(left: Array, right: Array, axis: int, exact: bool) -> Array:
    precision = None
    if exact:
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
        precision = jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(
        left, right, (((1,), (axis,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def turn(x: Array, cos: Array, sin: Array, layout: Layout) -> Array:
    """Rotate half-split pairs of all heads of a lane block in f32: ``x cos + swap(x) sin``, sin carries the sign."""
    x = x.astype(jnp.float32)
    half, lanes = layout.width // 2, layout.lanes
    if lanes == layout.width:
        swapped = (
            jnp.concatenate([x[:, half:], x[:, :half]], axis=1) if half >= LANES else pltpu.roll(x, half, 1)
        )
    else:
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        in_front = lane % layout.width < half
        swapped = jnp.where(in_front, pltpu.roll(x, lanes - half, 1), pltpu.roll(x, half, 1))
    return x * cos + swapped * sin


def one_head(x: Array, head: int, layout: Layout) -> Array:
    """`x` (rows, lanes) with zeros outside the lanes of one head."""
    if layout.per == 1:
        return x
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    mine = (lane >= head * layout.width) & (lane < (head + 1) * layout.width)
    return jnp.where(mine, x, jnp.zeros_like(x))


def true_rows(x: Array, start: Array | int, count: int) -> Array:
    """`x` with zeros in the rows at `count` and beyond, where a block reaches over the end of its array."""
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0) + start
    return jnp.where(row < count, x, jnp.zeros_like(x))


def over_sources(layout: Layout, fill: Any) -> None:
    """Call ``fill(start, short)`` for each 128 sources; `short` is True for the ones that reach over the end."""
    whole = layout.sources // LANES

    def one(j: Array, carry: Any) -> Any:
        fill(pl.multiple_of(j * LANES, LANES), False)
        return carry

    if whole:
        jax.lax.fori_loop(0, whole, one, 0)
    if layout.sources % LANES:
        fill(whole * LANES, True)


def keys_of(refs: tuple[Ref, Ref | None, Ref | None], start: Any, short: bool, layout: Layout) -> Array:
    """128 turned keys; those behind the last are copies of it, so that no maximum ever changes by padding."""
    k_ref, cos_ref, sin_ref = refs
    rows = pl.ds(start, LANES)
    keys = k_ref[rows].astype(jnp.float32)
    if cos_ref is not None and sin_ref is not None:
        keys = turn(keys, cos_ref[rows], sin_ref[rows], layout)
    if short:
        row = jax.lax.broadcasted_iota(jnp.int32, keys.shape, 0)
        count = layout.sources % LANES
        last = jnp.where(row == count - 1, keys, 0.0).sum(axis=0, keepdims=True)
        keys = jnp.where(row < count, keys, last)
    return keys.astype(k_ref.dtype)


def masked(scores: Array, start: Any, size: int, refs: MaskRefs) -> Array:
    """Scores (sources, queries) with LOW where the query may not see the source."""
    rows = pl.ds(start, size)
    allowed = None

    def also(condition: Array) -> Array:
        return condition if allowed is None else allowed & condition

    if refs.first is not None and refs.last is not None:
        if refs.at is None:
            at = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0) + start
        else:
            at = _over_lanes(refs.at[rows], scores.shape)
        allowed = (at >= refs.first[...]) & (at <= refs.last[...])
    if refs.q_ids is not None and refs.s_ids is not None:
        q_ids = refs.q_ids[...]
        allowed = also((_over_lanes(refs.s_ids[rows], scores.shape) == q_ids) & (q_ids >= 0))
    return scores if allowed is None else jnp.where(allowed, scores, LOW)


def _over_lanes(column: Array, shape: tuple[int, ...]) -> Array:
    """(rows, 128) of equal lanes to (rows, q)."""
    return jnp.concatenate([column] * (shape[1] // LANES), axis=1)


def walk(layout: Layout, bounds: tuple[Array, Array] | None, visit: Any, carry: Any) -> Any:
    """``carry = visit([(start, size), ...], carry)`` over all runs of sources, or those in `bounds`, and the tail."""

    def trip(j: Array, carry: Any) -> Any:
        start = pl.multiple_of(j * layout.run, layout.run)
        return visit([(start + c * layout.chunk, layout.chunk) for c in range(layout.body)], carry)

    if layout.trips == 1 and bounds is None:
        carry = visit([(c * layout.chunk, layout.chunk) for c in range(layout.body)], carry)
    elif layout.trips:
        low, high = (0, layout.trips) if bounds is None else bounds
        carry = jax.lax.fori_loop(low, high, trip, carry)
    tail = layout.tail()
    return visit(tail, carry) if tail else carry
