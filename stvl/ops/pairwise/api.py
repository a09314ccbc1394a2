"""The pairwise op: checks its arguments, and hands them to the backend that is named or that the rules choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from stvl.core.errors import NotSupported, nearest
from stvl.ops.pairwise.chunked import pairwise_chunked
from stvl.ops.pairwise.options import PairwiseOptions
from stvl.ops.pairwise.reference import pairwise_dense
from stvl.ops.pairwise.ring import pairwise_ring, ring_axes
from stvl.ops.pairwise.tile import Side, Term, outputs

#: Pairs up to which the dense form is taken. Forward and gradients of InfoNCE, f32, width 256, jax 0.10.2, 2 CPU cores,
#: seconds (MiB of temporaries); the eight devices are parts of the same CPU, so their figures show the overhead only:
#: pairs               dense       chunked |  8 devices: dense     chunked         ring
#: 1,024 x 1,024  0.011 (12)     0.013 (3) |       0.014 (2.5)  0.022 (1.4)  0.029 (0.7)
#: 2,048 x 2,048  0.039 (48)     0.041 (6) |       0.041 (8.0)  0.058 (4.5)  0.055 (1.5)
#: 4,096 x 4,096  0.265 (192)    0.267 (12) |      0.160 (28)   0.182 (8.8)  0.280 (3.8)
#: Chunks cost no time from 1,024 on and save the memory; below, the matrix is small and XLA lays it out as it likes.
DENSE_PAIRS = 2**20


@dataclasses.dataclass(frozen=True)
class Backend:
    """One way to go over all pairs.

    Attributes:
        run: ``run(term, rows, columns, params, outputs, options)``, on arguments that the api has checked.
        declines: the reason why it cannot serve, or None.
    """

    run: Callable[..., dict[str, Array]]
    declines: Callable[[PairwiseOptions], str | None] = lambda options: None


def _no_ring(options: PairwiseOptions) -> str | None:
    found = ring_axes(options)
    return found if isinstance(found, str) else None


#: Backends by name.
BACKENDS: dict[str, Backend] = {
    "dense": Backend(pairwise_dense),
    "ring": Backend(pairwise_ring, _no_ring),
    "chunked": Backend(pairwise_chunked),
}


def pairwise(
    term: Term,
    x: Float[Array, "q o"],
    y: Float[Array, "s o"],
    *,
    rows: Mapping[str, Shaped[Array, "q ..."]] | None = None,
    columns: Mapping[str, Shaped[Array, "s ..."]] | None = None,
    params: Any = None,
    options: PairwiseOptions | None = None,
    impl: str | None = None,
) -> dict[str, Shaped[Array, " _"]]:
    """Reduce a function of all pairs ``(i, j)`` to one number a row or a column, with exact gradients.

    ``out[name]_i = reduce_j term(x_i . y_j, rows_i, columns_j, params)`` and the same with i and j exchanged. For
    example InfoNCE, both ways::

        def contrast(tile):
            logits = tile.params["scale"] * tile.similarity
            return {"rows": PerRow(logits, LOGSUMEXP), "columns": PerColumn(logits, LOGSUMEXP)}

        out = pairwise(contrast, video, text, params={"scale": scale})
        own = scale * pair_similarity(video, text)
        loss = (out["rows"] + out["columns"] - 2 * own).mean()

    Gradients of `x`, `y`, the floats in `rows` and `columns`, and `params` are exact in every backend. The tiled ones
    compute each tile again in the backward pass and can be differentiated once, in reverse.

    Args:
        term: a pure, hashable function of a `Tile`, which may be any rectangle of the matrix. Arrays reach it through
            the tile only, not from an enclosing function.
        x: features of the rows, bf16 or f32; products are summed in f32.
        y: features of the columns; their number may differ (a queue).
        rows: arrays with one entry a row: codes, weights, the similarity of the own pair (`pair_similarity`).
        columns: arrays with one entry a column.
        params: floats that all pairs share, in any nesting: a scale, a bias, a margin.
        options: sizes of tiles, the axes of the ring.
        impl: ``dense``, ``chunked`` or ``ring``, or None for the one that the rules choose (`explain` says which).

    Returns:
        What the term named: f32 vectors over rows (`PerRow`) or columns (`PerColumn`); int32 for ARGMAX.

    Raises:
        ValueError: shapes that do not fit, an empty side, an unusable answer of the term, an unknown backend.
        NotSupported: the named backend cannot serve; the message has the reason.
    """
    options = PairwiseOptions() if options is None else options
    if impl is None:
        impl, _ = explain(x, y, options=options)
    elif impl not in BACKENDS:
        raise ValueError(f"unknown pairwise backend {impl!r}{nearest(impl, BACKENDS)}")
    one, two = _side("row", x, rows), _side("column", y, columns)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"rows {x.shape} and columns {y.shape} must share the width")
    params = jax.tree.map(_parameter, params)
    found = outputs(term, one, two, params)
    reason = BACKENDS[impl].declines(options)
    if reason is not None:
        raise NotSupported(f"pairwise backend {impl!r}: {reason}")
    return BACKENDS[impl].run(term, one, two, params, found, options)


def explain(x: Any, y: Any, *, options: PairwiseOptions | None = None) -> tuple[str, dict[str, str]]:
    """Name the backend that ``impl=None`` takes, and the reasons for which those before it were passed over.

    `x` and `y` may be `jax.ShapeDtypeStruct`. The rule: the dense form up to `DENSE_PAIRS` pairs, unless a chunk is
    asked for; above, the ring where the batch is split over a mesh, and chunks of rows elsewhere.
    """
    options = PairwiseOptions() if options is None else options
    pairs, reasons = x.shape[0] * y.shape[0], {}
    if options.chunk is not None:
        reasons["dense"] = f"a chunk of {options.chunk} rows is asked for"
    elif pairs > DENSE_PAIRS:
        reasons["dense"] = f"{pairs} pairs, the dense form is taken up to {DENSE_PAIRS}"
    else:
        return "dense", reasons
    reason = _no_ring(options)
    if reason is None:
        return "ring", reasons
    return "chunked", {**reasons, "ring": reason}


def _side(what: str, x: Array, given: Mapping[str, Array] | None) -> Side:
    """Check the arrays of one side; floats become f32."""
    if x.ndim != 2 or not x.shape[0]:
        raise ValueError(f"{what} features have shape (at least one, width), found {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{what} features must be floats, found {x.dtype}")
    floats, others = {}, {}
    for name, array in (given or {}).items():
        if not array.ndim or array.shape[0] != x.shape[0]:
            raise ValueError(
                f"array {name!r} needs one entry for each of the {x.shape[0]} {what}s, found shape {array.shape}"
            )
        if jnp.issubdtype(array.dtype, jnp.floating):
            floats[name] = array.astype(jnp.float32)
        else:
            others[name] = array
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        x = x.astype(jnp.float32)
    return Side(x, floats, others, jnp.arange(x.shape[0], dtype=jnp.int32))


def _parameter(value: Any) -> Array:
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"parameters must be floats, found {array.dtype}: give codes as arrays of rows or columns"
        )
    return array.astype(jnp.float32)
