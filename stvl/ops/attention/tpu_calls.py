"""The Pallas calls of the TPU attention: which block of which array each grid step sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from stvl.ops.attention.core import Visible
from stvl.ops.attention.masks import FAR
from stvl.ops.attention.options import AttentionOptions
from stvl.ops.attention.tpu_backward import BackwardRefs, backward_kernel
from stvl.ops.attention.tpu_forward import ForwardRefs, forward_kernel
from stvl.ops.attention.tpu_layout import (
    LANES,
    LOG2E,
    ONES,
    Layout,
    by_heads,
    by_lanes,
    interpreted,
    layout_of,
    row_of_tiles,
    tables,
)
from stvl.ops.attention.tpu_parts import MaskRefs
from stvl.ops.rotary import Rotary

Specs = list[tuple[Any, pl.BlockSpec] | None]
Rotaries = tuple[Rotary | None, Rotary | None]


def bounds_of(visible: Visible, layout: Layout) -> Array | None:
    """First trip over sources that each tile of queries needs, and the one after the last: (tiles, 2)."""
    if visible.first is None or visible.last is None or visible.at is not None or not layout.trips:
        return None
    numpy = np if isinstance(visible.first, np.ndarray) and isinstance(visible.last, np.ndarray) else jnp
    short = layout.tiles * layout.block_q - layout.queries
    first, last = (
        numpy.pad(x, (0, short), mode="edge").reshape(layout.tiles, layout.block_q)
        for x in (visible.first, visible.last)
    )
    low = numpy.clip(first.min(axis=1) // layout.run, 0, layout.trips)
    high = numpy.clip(last.max(axis=1) // layout.run + 1, low, layout.trips)
    return jnp.stack([jnp.asarray(low, jnp.int32), jnp.asarray(high, jnp.int32)], axis=1)


def _mask_inputs(visible: Visible, layout: Layout) -> Specs:
    """Vectors of `Visible` as kernel inputs: first, last, q_ids along lanes; at, s_ids down rows, equal over lanes."""
    block = layout.block_q
    row = pl.BlockSpec((1, block), lambda b, g, r, i, *_: (0, i))
    batch_row = pl.BlockSpec((None, 1, block), lambda b, g, r, i, *_: (b, 0, i))
    column = pl.BlockSpec((layout.padded_sources, LANES), lambda b, g, r, i, *_: (0, 0))
    batch_column = pl.BlockSpec((None, layout.padded_sources, LANES), lambda b, g, r, i, *_: (b, 0, 0))

    def over_rows(x: Any, value: int) -> Array:
        x = jnp.asarray(x, jnp.int32)
        x = jnp.pad(
            x, [(0, 0)] * (x.ndim - 1) + [(0, layout.padded_sources - layout.sources)], constant_values=value
        )
        return jnp.broadcast_to(x[..., None], (*x.shape, LANES))

    first, last, at, q_ids, s_ids = visible
    if last is not None and at is None:
        # Padding lies behind the last source: no query may see it.
        last = jnp.minimum(jnp.asarray(last, jnp.int32), layout.sources - 1)
    return [
        None if first is None else (row_of_tiles(jnp.asarray(first, jnp.int32)[None], layout, FAR), row),
        None if last is None else (row_of_tiles(jnp.asarray(last, jnp.int32)[None], layout, -1), row),
        None
        if q_ids is None
        else (row_of_tiles(jnp.asarray(q_ids, jnp.int32)[:, None], layout, -1), batch_row),
        None if at is None else (over_rows(at, FAR + 1), column),
        None if s_ids is None else (over_rows(s_ids, -1), batch_column),
    ]


def _table_inputs(rotary: tuple[Rotary | None, Rotary | None], layout: Layout) -> Specs:
    """Cosines and sines of queries and of sources as kernel inputs."""
    specs: Specs = []
    for one, rows, moves in ((rotary[0], layout.block_q, True), (rotary[1], layout.padded_sources, False)):
        if one is None:
            specs += [None, None]
            continue
        for table in tables(one, layout):
            if table.ndim == 3:
                spec = pl.BlockSpec((None, rows, layout.lanes), lambda b, g, r, i, *_, m=moves: (b, i * m, 0))
            else:
                spec = pl.BlockSpec((rows, layout.lanes), lambda b, g, r, i, *_, m=moves: (i * m, 0))
            specs.append((table, spec))
    return specs


class _Blocks(NamedTuple):
    """Block specs that both kernels use."""

    queries: pl.BlockSpec
    sources: pl.BlockSpec
    rows: pl.BlockSpec


def _blocks(layout: Layout) -> _Blocks:
    repeats, per = layout.repeats, layout.per
    return _Blocks(
        pl.BlockSpec((None, layout.block_q, layout.lanes), lambda b, g, r, i, *_: (b, i, g * repeats + r)),
        pl.BlockSpec((None, layout.padded_sources, layout.lanes), lambda b, g, r, i, *_: (b, 0, g)),
        pl.BlockSpec((None, None, per, layout.block_q), lambda b, g, r, i, *_: (b, g * repeats + r, 0, i)),
    )


def forward_call(
    q: Array, k: Array, v: Array, rotaries: Rotaries, visible: Visible, options: AttentionOptions, dtype: Any
) -> tuple[Array, Array]:
    """Output in `dtype` and log sum exp; `rotaries` are those of the queries and of the sources."""
    masked = any(x is not None for x in visible)
    layout = layout_of(q, k, rotaries[0], masked, options)
    queries, keys, values = (by_lanes(x, layout) for x in (q, k, v))
    blocks = _blocks(layout)
    inputs: Specs = [(queries, blocks.queries), (keys, blocks.sources), (values, blocks.sources)]
    inputs += _table_inputs(rotaries, layout) + _mask_inputs(visible, layout)
    b, n, lanes = queries.shape
    width = (layout.tiles * layout.block_q, lanes // layout.lanes)
    outputs = [
        (jax.ShapeDtypeStruct((b, n, lanes), dtype), blocks.queries),
        (jax.ShapeDtypeStruct((b, width[1], layout.per, width[0]), jnp.float32), blocks.rows),
    ]
    s = layout.padded_sources
    scratch = [
        pltpu.VMEM((s, layout.lanes), k.dtype),
        pltpu.VMEM((layout.per, layout.width + ONES, s), v.dtype),
    ]

    def kernel(bounds: Any, ins: list[Any], outs: list[Any], kept: list[Any]) -> None:
        forward_kernel(layout, ForwardRefs._make([bounds, *ins[:7], MaskRefs._make(ins[7:]), *outs, *kept]))

    out, lse = _call(
        "stvl_attention_forward", kernel, (inputs, outputs, scratch), (visible, layout, options), 2
    )
    lse = lse.reshape(b, -1, width[0])[:, : q.shape[2], : q.shape[1]]
    return by_heads(out, q.shape[2], q.shape[3], layout), lse


def backward_call(
    q: Array,
    k: Array,
    v: Array,
    rotaries: Rotaries,
    visible: Visible,
    options: AttentionOptions,
    rows: tuple[Array, Array, Array],
    dtype: Any,
) -> tuple[Array, Array, Array]:
    """dq in `dtype`, dk and dv; `rows` are log sum exp, ``sum(out * ct)`` (b, h, q) and the cotangent of the output."""
    lse, drop, ct = rows
    masked = any(x is not None for x in visible)
    layout = layout_of(q, k, rotaries[0], masked, options, backward=True)
    queries, keys, values, cts = (by_lanes(x, layout) for x in (q, k, v, ct.astype(q.dtype)))
    blocks = _blocks(layout)
    # exp2(score - FAR) is zero: rows that saw nothing, and those that are not there, give nothing.
    lse2 = jnp.where(jnp.isfinite(lse), lse * LOG2E, float(FAR))
    lse2, drop = (_rows_by_lanes(x, layout, value) for x, value in ((lse2, float(FAR)), (drop, 0.0)))
    inputs: Specs = [(queries, blocks.queries), (keys, blocks.sources), (values, blocks.sources)]
    inputs += _table_inputs(rotaries, layout) + _mask_inputs(visible, layout)
    inputs += [(cts, blocks.queries), (lse2, blocks.rows), (drop, blocks.rows)]
    outputs = [
        (jax.ShapeDtypeStruct(queries.shape, dtype), blocks.queries),
        (jax.ShapeDtypeStruct(keys.shape, k.dtype), blocks.sources),
        (jax.ShapeDtypeStruct(values.shape, v.dtype), blocks.sources),
    ]
    s = layout.padded_sources
    both_ways = [pltpu.VMEM((s, layout.lanes), k.dtype), pltpu.VMEM((layout.lanes, s), k.dtype)]
    sums = [pltpu.VMEM((layout.lanes, s), jnp.float32)] * 2
    scratch = [*both_ways, pltpu.VMEM((s, layout.lanes), v.dtype), *sums]

    def kernel(bounds: Any, ins: list[Any], outs: list[Any], kept: list[Any]) -> None:
        backward_kernel(
            layout, BackwardRefs._make([bounds, *ins[:7], MaskRefs._make(ins[7:12]), *ins[12:], *outs, *kept])
        )

    dq, dk, dv = _call(
        "stvl_attention_backward", kernel, (inputs, outputs, scratch), (visible, layout, options), 5
    )
    heads, e = q.shape[2:]
    dk, dv = (by_heads(x, k.shape[2], e, layout) for x in (dk, dv))
    return by_heads(dq, heads, e, layout), dk, dv


def _rows_by_lanes(x: Array, layout: Layout, value: float) -> Array:
    """(b, h, q) to (b, lane block, head in it, padded q)."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % layout.per), (0, 0)], constant_values=value)
    x = row_of_tiles(x, layout, value)
    return x.reshape(x.shape[0], -1, layout.per, x.shape[-1])


def _call(
    name: str,
    kernel: Callable[..., None],
    memory: tuple[Specs, list[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]], list[Any]],
    case: tuple[Visible, Layout, AttentionOptions],
    products: int,
) -> Any:
    (inputs, outputs, scratch), (visible, layout, options) = memory, case
    bounds = bounds_of(visible, layout)
    given = [item for item in inputs if item is not None]

    def body(*refs: Any) -> None:
        found = list(refs)
        low = found.pop(0) if bounds is not None else None
        ins = [None if item is None else found.pop(0) for item in inputs]
        kernel(low, ins, found[: len(outputs)], found[len(outputs) :])

    (batch, _, lanes), (_, _, key_lanes) = given[0][0].shape, given[1][0].shape
    grid = (batch, key_lanes // layout.lanes, layout.repeats, layout.tiles)
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=int(bounds is not None),
        grid=grid,
        in_specs=[spec for _, spec in given],
        out_specs=[spec for _, spec in outputs],
        scratch_shapes=scratch,
    )
    pairs = batch * (lanes // layout.width) * layout.queries * layout.sources
    moved = sum(x.size * x.dtype.itemsize for x, _ in [*given, *outputs])
    run = pl.pallas_call(
        body,
        name=name,
        grid_spec=spec,
        out_shape=[shape for shape, _ in outputs],
        interpret=interpreted(options),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * pairs * layout.width, transcendentals=pairs, bytes_accessed=moved
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=_vmem(given, outputs, scratch, layout),
        ),
    )
    arrays = [x for x, _ in given]
    return run(*arrays) if bounds is None else run(bounds, *arrays)


def _vmem(given: Any, outputs: Any, scratch: list[Any], layout: Layout) -> int:
    """Bytes of VMEM to ask for: blocks twice (one is filled while the other is used), scratch, and room to spill."""
    blocks = sum(
        2 * x.dtype.itemsize * int(np.prod([max(n or 1, 1) for n in spec.block_shape]))
        for x, spec in [*given, *outputs]
    )
    kept = sum(x.dtype.itemsize * int(np.prod(x.shape)) for x in scratch)
    tiles = 16 * layout.block_q * layout.chunk * 4
    return min(blocks + kept + tiles + 8 * 2**20, 110 * 2**20)
