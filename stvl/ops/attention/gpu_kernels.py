"""The three kernels of the GPU core: forward, gradient of the queries, gradients of keys and values.

FlashAttention-2 (arXiv 2307.08691, Algorithms 1 and 2). Scores are kept in base 2: ``exp2(score * scale * log2 e -
row)`` is one multiply-add and one exponential, so nothing has to be folded into q, which would round it once more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from stvl.ops.attention.chunked import LOW
from stvl.ops.attention.core import Visible
from stvl.ops.attention.gpu_loads import (
    LOG2_E,
    NEVER,
    Inputs,
    Plan,
    allowed,
    heads,
    operand,
    product,
    scores,
    side,
    store,
    store_gradient,
    vector,
)
from stvl.ops.attention.gpu_tiles import Spans, Tiles, spans

Carry = tuple[Any, ...]


def _place(x: Inputs, span: Spans) -> tuple[Any, tuple[Any, ...]]:
    """The tile of this program, and the bounds of the tiles that it visits.

    To be called before any loop: a loop that is interpreted knows no program.
    """
    tile = pl.program_id(0)
    if span.longest_last:
        tile = pl.num_programs(0) - 1 - tile
    return tile, tuple(x.bounds[tile, edge] for edge in range(4)) if span.fixed is None else span.fixed


def _walk(
    edges: tuple[Any, ...], span: Spans, visit: Callable[[bool], Callable[..., Carry]], carry: Carry
) -> Carry:
    """Visit the tiles of a span, with masks only where they are needed."""
    for part, masked in enumerate((True, False, True)):
        if span.parts[part]:
            carry = jax.lax.fori_loop(edges[part], edges[part + 1], visit(masked), carry)
    return carry


def _forward_kernel(x: Inputs, y: Inputs, *, plan: Plan, tiles: Tiles, span: Spans) -> None:
    tile, edges = _place(x, span)
    queries = side(tile, tiles.block_q, plan.queries)
    q = operand(x.q, x, queries, plan, plan.turns_q)

    def visit(masked: bool) -> Callable[..., Carry]:
        def body(tile: Any, carry: Carry) -> Carry:
            top, total, out = carry
            sources = side(tile, tiles.block_kv, plan.sources, masked)
            k = operand(x.k, x, sources, plan, plan.turns_k)
            found = scores(plan, q, k, allowed(x, queries, sources, 0) if masked else None)
            new = jnp.maximum(top, found.max(axis=1))
            weights = jnp.exp2(found - new[:, None])
            shrink = jnp.exp2(top - new)
            v = heads(x.v, sources, plan.padded, plan.width)
            part = product(plan, weights.astype(v.dtype), v, (1, 0))
            return new, total * shrink + weights.sum(axis=1), out * shrink[:, None] + part

        return body

    size = tiles.block_q
    start = (
        jnp.full((size,), LOW, jnp.float32),
        jnp.zeros((size,), jnp.float32),
        jnp.zeros((size, plan.padded), jnp.float32),
    )
    top, total, out = _walk(edges, span, visit, start)
    # A blind row has met nothing, or only scores of LOW: its weights are not probabilities.
    blind = top <= LOW / 2
    total = jnp.where(blind, 1.0, total)
    store(y.ct, jnp.where(blind[:, None], 0.0, out / total[:, None]), queries, plan.width)
    lse = jnp.where(blind, -jnp.inf, top / LOG2_E + jnp.log(total))
    plt.store(y.row.at[queries.rows], lse, mask=queries.inside)


def _queries_kernel(x: Inputs, y: Inputs, *, plan: Plan, tiles: Tiles, span: Spans) -> None:
    tile, edges = _place(x, span)
    queries = side(tile, tiles.block_q, plan.queries)
    q = operand(x.q, x, queries, plan, plan.turns_q)
    ct = heads(x.ct, queries, plan.padded, plan.width)
    row, drop = vector(x.row, queries, NEVER)[:, None], vector(x.drop, queries, 0.0)[:, None]

    def visit(masked: bool) -> Callable[..., Carry]:
        def body(tile: Any, carry: Carry) -> Carry:
            sources = side(tile, tiles.block_kv, plan.sources, masked)
            k = operand(x.k, x, sources, plan, plan.turns_k)
            found = scores(plan, q, k, allowed(x, queries, sources, 0) if masked else None)
            slope = product(plan, ct, heads(x.v, sources, plan.padded, plan.width), (1, 1))
            change = (jnp.exp2(found - row) * (slope - drop)).astype(k.dtype)
            return (carry[0] + product(plan, change, k, (1, 0)),)

        return body

    (dq,) = _walk(edges, span, visit, (jnp.zeros(q.shape, jnp.float32),))
    store_gradient(y.q, dq * plan.width**-0.5, x, queries, plan)


def _sources_kernel(x: Inputs, y: Inputs, *, plan: Plan, tiles: Tiles, span: Spans) -> None:
    tile, edges = _place(x, span)
    sources = side(tile, tiles.block_kv, plan.sources)
    k = operand(x.k, x, sources, plan, plan.turns_k)
    v = heads(x.v, sources, plan.padded, plan.width)

    def add(head: Any, carry: Carry) -> Carry:
        def visit(masked: bool) -> Callable[..., Carry]:
            def body(tile: Any, carry: Carry) -> Carry:
                dk, dv = carry
                # Absent queries need no mask: they and their ct are loaded as zeros.
                queries = side(tile, tiles.block_q, plan.queries, masked)
                q = operand(x.q, x, queries, plan, plan.turns_q, head)
                ct = heads(x.ct, queries, plan.padded, plan.width, head=head)
                row, drop = vector(x.row, queries, NEVER, head), vector(x.drop, queries, 0.0, head)
                # Transposed, so that the weights are the left factor as they stand.
                found = scores(plan, k, q, allowed(x, queries, sources, 1) if masked else None)
                weights = jnp.exp2(found - row[None, :])
                dv = dv + product(plan, weights.astype(ct.dtype), ct, (1, 0))
                slope = product(plan, v, ct, (1, 1))
                change = (weights * (slope - drop[None, :])).astype(q.dtype)
                return dk + product(plan, change, q, (1, 0)), dv

            return body

        return _walk(edges, span, visit, carry)

    carry = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    # The query heads of a group are added up here, one after the other: no atomics, the same bits each time.
    dk, dv = add(None, carry) if plan.shared == 1 else jax.lax.fori_loop(0, plan.shared, add, carry)
    store_gradient(y.k, dk * plan.width**-0.5, x, sources, plan)
    store(y.v, dv, sources, plan.width)


def _spec(x: Any, sizes: tuple[int | None, ...], index: Callable[..., Any]) -> pl.BlockSpec | None:
    return None if x is None else pl.BlockSpec(sizes, index)


def _specs(x: Inputs, plan: Plan, tiles: Tiles, by_source: bool) -> Inputs:
    """Each program sees whole sequences of its sample and head, padded in name only, and loads tiles of them."""
    n_q = -(-plan.queries // tiles.block_q) * tiles.block_q
    n_s = -(-plan.sources // tiles.block_kv) * tiles.block_kv
    n = max(n_q, n_s)
    shared = plan.shared if by_source and plan.shared > 1 else None

    def key_head(h: Any) -> Any:
        return h if by_source else jax.lax.div(h, plan.shared)

    wide = 2 * plan.half if plan.turned else plan.padded

    def table(values: Any, size: int) -> pl.BlockSpec | None:
        if values is None or values.ndim == 1:
            return _spec(values, (size,), lambda i, h, b: (0,))
        return _spec(values, (None, size), lambda i, h, b: (b, 0))

    def tokens(operand: Any, size: int, columns: int, key: bool) -> pl.BlockSpec | None:
        if key:
            return _spec(operand, (None, size, None, columns), lambda i, h, b: (b, 0, key_head(h), 0))
        return _spec(operand, (None, size, shared, columns), lambda i, h, b: (b, 0, h, 0))

    def angles(operand: Any) -> pl.BlockSpec | None:
        if operand is None or operand.ndim == 2:
            return _spec(operand, (n, plan.half), lambda i, h, b: (0, 0))
        return _spec(operand, (None, n, plan.half), lambda i, h, b: (b, 0, 0))

    def bounds(b: Any) -> Any:
        return b if x.bounds.shape[0] > 1 else 0

    return Inputs(
        q=tokens(x.q, n_q, wide, False),
        k=tokens(x.k, n_s, wide, True),
        v=tokens(x.v, n_s, plan.padded, True),
        ct=tokens(x.ct, n_q, plan.padded, False),
        row=_spec(x.row, (None, shared, n_q), lambda i, h, b: (b, h, 0)),
        drop=_spec(x.drop, (None, shared, n_q), lambda i, h, b: (b, h, 0)),
        cos=angles(x.cos),
        sin=angles(x.sin),
        first=table(x.first, n_q),
        last=table(x.last, n_q),
        at=table(x.at, n_s),
        q_ids=table(x.q_ids, n_q),
        s_ids=table(x.s_ids, n_s),
        bounds=None
        if x.bounds is None
        else _spec(x.bounds, (None, *x.bounds.shape[1:]), lambda i, h, b: (bounds(b), 0, 0)),
    )


def run(kernel: str, x: Inputs, results: Inputs, plan: Plan, tiles: Tiles) -> Inputs:
    """Run a kernel once for each tile, head and sample.

    Args:
        kernel: ``forward``, ``queries`` or ``sources``.
        x: what it reads.
        results: shapes and dtypes of what it writes, each in the place of the input that it is laid out like.
        plan: the case.
        tiles: sizes.
    """
    by_source = kernel == "sources"
    visible = Visible(x.first, x.last, x.at, x.q_ids, x.s_ids)
    span = spans(visible, plan.queries, plan.sources, tiles, by_source)
    arrays = {name: jnp.asarray(value) for name, value in visible._asdict().items() if value is not None}
    x = x._replace(bounds=None if span.fixed is not None else jnp.asarray(span.bounds), **arrays)
    body = {"forward": _forward_kernel, "queries": _queries_kernel, "sources": _sources_kernel}[kernel]
    count = -(-plan.sources // tiles.block_kv) if by_source else -(-plan.queries // tiles.block_q)
    call = pl.pallas_call(
        functools.partial(body, plan=plan, tiles=tiles, span=span._replace(bounds=())),
        # Tiles of one head come next to each other: they read the same keys and values from the cache.
        grid=(count, plan.groups if by_source else plan.heads, x.q.shape[0]),
        in_specs=[_specs(x, plan, tiles, by_source)],
        out_specs=[_specs(results, plan, tiles, by_source)],
        out_shape=[results],
        compiler_params=plt.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=plan.interpret,
        name=f"stvl_attention_{kernel}",
    )
    return call(x)[0]
