"""Backward TPU kernel: dq, dk and dv in one pass over the scores.

Scores, weights and their slopes are held as (sources, queries), like in the forward kernel. Five products are enough
where separate dq and dkv kernels need seven, and the three that give gradients are taken transposed, so that 64 rows
instead of 128 stream through the matmul unit. dk and dv of one block of heads stay in VMEM, (e, sources) in f32, until
the last tile of queries; sums run in a fixed order, so two runs agree bit for bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from stvl.ops.attention.tpu_layout import LANES, LN2, LOG2E, Layout
from stvl.ops.attention.tpu_parts import (
    MaskRefs,
    Ref,
    keys_of,
    masked,
    nn,
    nt,
    one_head,
    over_sources,
    true_rows,
    turn,
    walk,
)

#: Pairs of score and slope tiles computed before the earliest one is used: the matmul unit is full with one.
AHEAD = 1


class BackwardRefs(NamedTuple):
    """Memory of the kernel. `lse2` is the row's log sum exp in base 2, `drop` is ``sum(out * ct)``: rows over lanes."""

    bounds: Ref | None
    q: Ref
    k: Ref
    v: Ref
    cos_q: Ref | None
    sin_q: Ref | None
    cos_k: Ref | None
    sin_k: Ref | None
    mask: MaskRefs
    ct: Ref
    lse2: Ref
    drop: Ref
    dq: Ref
    dk: Ref
    dv: Ref
    keys: Ref
    keys_t: Ref
    values: Ref
    dk_t: Ref
    dv_t: Ref


def backward_kernel(layout: Layout, refs: BackwardRefs) -> None:
    """One tile of queries of one block of heads. Grid: (b, key lane block, repeat, tile)."""
    repeat, tile = pl.program_id(2), pl.program_id(3)

    @pl.when((repeat == 0) & (tile == 0))
    def _() -> None:
        over_sources(layout, lambda start, short: _fill(layout, refs, start, short))

    dtype = refs.q.dtype
    short = bool(layout.queries % layout.block_q)
    q, ct = refs.q[...].astype(jnp.float32), refs.ct[...].astype(jnp.float32)
    if refs.cos_q is not None and refs.sin_q is not None:
        q = turn(q, refs.cos_q[...], refs.sin_q[...], layout)
    if short:
        # What lies behind the last query would otherwise reach dk and dv.
        q, ct = (true_rows(x, tile * layout.block_q, layout.queries) for x in (q, ct))
    q, ct = (q * (layout.scale * LOG2E)).astype(dtype), ct.astype(dtype)
    queries = [one_head(q, head, layout) for head in range(layout.per)]
    cts = [one_head(ct, head, layout) for head in range(layout.per)]
    q_t, ct_t = q.T, ct.T

    def visit(chunks: list[tuple[Any, int]], carry: tuple[Array, ...]) -> tuple[Array, ...]:
        dq = list(carry)
        items = [(start, size, head) for start, size in chunks for head in range(layout.per)]

        def products(item: tuple[Any, int, int]) -> tuple[Array, Array]:
            start, size, head = item
            rows = pl.ds(start, size)
            scores = nt(refs.keys[rows], queries[head], layout.exact)
            if layout.masked:
                scores = masked(scores, start, size, refs.mask)
            return scores, nt(refs.values[rows], cts[head], layout.exact)

        waiting = [products(item) for item in items[:AHEAD]]
        for index, (start, size, head) in enumerate(items):
            if index + AHEAD < len(items):
                waiting.append(products(items[index + AHEAD]))
            scores, slopes = waiting.pop(0)
            weights = jnp.exp2(scores - refs.lse2[head : head + 1])
            change = (weights * (slopes - refs.drop[head : head + 1])).astype(dtype)
            rows, mine = pl.ds(start, size), slice(head * layout.width, (head + 1) * layout.width)
            refs.dv_t[mine, rows] += nt(ct_t[mine], weights.astype(dtype), layout.exact)
            refs.dk_t[mine, rows] += nt(q_t[mine], change, layout.exact)
            dq[head] = dq[head] + nn(refs.keys_t[mine, rows], change, layout.exact)
        return tuple(dq)

    start = (jnp.zeros((layout.width, layout.block_q), jnp.float32),) * layout.per
    bounds = None if refs.bounds is None else (refs.bounds[tile, 0], refs.bounds[tile, 1])
    parts = walk(layout, bounds, visit, start)
    dq = (parts[0] if layout.per == 1 else jnp.concatenate(parts, axis=0)).T * layout.scale
    if refs.cos_q is not None and refs.sin_q is not None:
        dq = turn(dq, refs.cos_q[...], -refs.sin_q[...], layout)
    refs.dq[...] = dq.astype(refs.dq.dtype)

    @pl.when((repeat == layout.repeats - 1) & (tile == layout.tiles - 1))
    def _() -> None:
        over_sources(layout, lambda start, short: _finish(layout, refs, start))


def _fill(layout: Layout, refs: BackwardRefs, start: Any, short: bool) -> None:
    """Turn 128 keys and keep them both ways round; padding has copied keys for the scores, zeros for all sums."""
    rows = pl.ds(start, LANES)
    keys = keys_of((refs.k, refs.cos_k, refs.sin_k), start, short, layout)
    values = refs.v[rows]
    refs.keys[rows] = keys
    if short:
        count = layout.sources % LANES
        keys, values = true_rows(keys, 0, count), true_rows(values, 0, count)
    refs.keys_t[:, rows] = keys.T
    refs.values[rows] = values
    zeros = jnp.zeros((layout.lanes, LANES), jnp.float32)
    refs.dk_t[:, rows] = zeros
    refs.dv_t[:, rows] = zeros


def _finish(layout: Layout, refs: BackwardRefs, start: Any) -> None:
    """Write dk, turned back, and dv of 128 sources."""
    rows = pl.ds(start, LANES)
    # The queries that dk was summed from carry the scale and log2(e).
    dk = refs.dk_t[:, rows].T * LN2
    if refs.cos_k is not None and refs.sin_k is not None:
        dk = turn(dk, refs.cos_k[rows], -refs.sin_k[rows], layout)
    refs.dk[rows] = dk.astype(refs.dk.dtype)
    refs.dv[rows] = refs.dv_t[:, rows].T.astype(refs.dv.dtype)
