"""Forward TPU kernel: fused rotation, online softmax, everything transposed.

Scores are held as (sources, queries). The maximum over sources is then an elementwise maximum of vector registers, a
query's running numbers lie along lanes, and ``out^T = [v^T; 1] p^T`` streams 64 + 16 rows through the matmul unit per
128 x 128 weights instead of 128, with the softmax's denominator as one of the rows. Two heads of width 64 lie side by
side in the lanes, as the model's (b, n, h e) activations do: no transposition in memory before or after.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from stvl.ops.attention.tpu_layout import LANES, LN2, LOG2E, LOW, ONES, Layout
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

#: Scores computed before the softmax of the earliest ones starts: they keep the matmul unit busy meanwhile.
AHEAD = 2


class ForwardRefs(NamedTuple):
    """Memory of the kernel. Blocks: q and out (tile, lanes); k and v (sources, lanes); tables like what they turn."""

    bounds: Ref | None
    q: Ref
    k: Ref
    v: Ref
    cos_q: Ref | None
    sin_q: Ref | None
    cos_k: Ref | None
    sin_k: Ref | None
    mask: MaskRefs
    out: Ref
    lse: Ref
    keys: Ref
    values: Ref


def forward_kernel(layout: Layout, refs: ForwardRefs) -> None:
    """One tile of queries of one block of heads. Grid: (b, key lane block, repeat, tile)."""
    repeat, tile = pl.program_id(2), pl.program_id(3)

    @pl.when((repeat == 0) & (tile == 0))
    def _() -> None:
        over_sources(layout, lambda start, short: _fill(layout, refs, start, short))

    q = refs.q[...].astype(jnp.float32)
    if refs.cos_q is not None and refs.sin_q is not None:
        q = turn(q, refs.cos_q[...], refs.sin_q[...], layout)
    q = (q * (layout.scale * LOG2E)).astype(refs.q.dtype)
    queries = [one_head(q, head, layout) for head in range(layout.per)]

    def visit(chunks: list[tuple[Any, int]], carry: Any) -> Any:
        tops, sums = list(carry[0]), list(carry[1])
        items = [(start, size, head) for start, size in chunks for head in range(layout.per)]

        def score(item: tuple[Any, int, int]) -> Array:
            start, size, head = item
            scores = nt(refs.keys[pl.ds(start, size)], queries[head], layout.exact)
            return masked(scores, start, size, refs.mask) if layout.masked else scores

        waiting = [score(item) for item in items[:AHEAD]]
        for index, (start, size, head) in enumerate(items):
            if index + AHEAD < len(items):
                waiting.append(score(items[index + AHEAD]))
            scores = waiting.pop(0)
            top = jnp.maximum(tops[head], scores.max(axis=0, keepdims=True))
            weights = jnp.exp2(scores - top).astype(refs.v.dtype)
            part = nn(refs.values[head, :, pl.ds(start, size)], weights, layout.exact)
            sums[head] = sums[head] * jnp.exp2(tops[head] - top) + part
            tops[head] = top
        return tuple(tops), tuple(sums)

    start = (
        (jnp.full((1, layout.block_q), LOW, jnp.float32),) * layout.per,
        (jnp.zeros((layout.width + ONES, layout.block_q), jnp.float32),) * layout.per,
    )
    bounds = None if refs.bounds is None else (refs.bounds[tile, 0], refs.bounds[tile, 1])
    tops, sums = walk(layout, bounds, visit, start)
    _finish(layout, refs, tops, sums)


def _fill(layout: Layout, refs: ForwardRefs, start: Any, short: bool) -> None:
    """Turn 128 keys, and transpose 128 values above rows of ones; padding gets neither value nor one."""
    rows = pl.ds(start, LANES)
    refs.keys[rows] = keys_of((refs.k, refs.cos_k, refs.sin_k), start, short, layout)
    values = refs.v[rows]
    ones = jnp.ones((ONES, LANES), values.dtype)
    if short:
        count = layout.sources % LANES
        values = true_rows(values, 0, count)
        ones = true_rows(jnp.ones((LANES, ONES), jnp.float32), 0, count).T.astype(values.dtype)
    turned = values.T
    for head in range(layout.per):
        refs.values[head, : layout.width, rows] = turned[head * layout.width : (head + 1) * layout.width]
        refs.values[head, layout.width :, rows] = ones


def _finish(layout: Layout, refs: ForwardRefs, tops: tuple[Array, ...], sums: tuple[Array, ...]) -> None:
    """Divide by the row sums, turn (e, q) back to (q, e), and write the logarithms of the sums."""
    outs, lses = [], []
    for top, total in zip(tops, sums, strict=True):
        denominator = total[layout.width : layout.width + 1]
        out, lse = total[: layout.width] / denominator, (top + jnp.log2(denominator)) * LN2
        if layout.masked:
            blind = top <= LOW / 2
            out, lse = jnp.where(blind, 0.0, out), jnp.where(blind, -jnp.inf, lse)
        outs.append(out)
        lses.append(lse)
    out = outs[0] if layout.per == 1 else jnp.concatenate(outs, axis=0)
    refs.out[...] = out.T.astype(refs.out.dtype)
    refs.lse[...] = lses[0] if layout.per == 1 else jnp.concatenate(lses, axis=0)
