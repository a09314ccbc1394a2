"""What a loss over pairs is written with: a tile of the pair matrix, and reductions of its values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from stvl.ops.pairwise.reductions import NOWHERE, Reduction


@dataclasses.dataclass(frozen=True)
class Tile:
    """A rectangle of the pair matrix and what belongs to its rows and columns.

    Attributes:
        similarity: ``x_i . y_j``, f32.
        rows: the caller's arrays of the tile's rows; floats are f32.
        columns: the caller's arrays of the tile's columns; floats are f32.
        row_index: numbers of the rows in the whole matrix.
        column_index: numbers of the columns in the whole matrix.
        params: the caller's parameters, f32.
    """

    similarity: Float[Array, "q s"]
    rows: Mapping[str, Shaped[Array, "q ..."]]
    columns: Mapping[str, Shaped[Array, "s ..."]]
    row_index: Int[Array, " q"]
    column_index: Int[Array, " s"]
    params: Any

    @property
    def diagonal(self) -> Bool[Array, "q s"]:
        """Where row i meets column i: the pairs of the batch."""
        return self.row_index[:, None] == self.column_index[None, :]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerRow:
    """One number a row: values (rows, columns) of a tile, reduced over all columns of the matrix."""

    values: Any
    reduction: Reduction = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerColumn:
    """One number a column: values (rows, columns) of a tile, reduced over all rows of the matrix."""

    values: Any
    reduction: Reduction = dataclasses.field(metadata={"static": True})


#: A loss over pairs: a pure, hashable function of a tile. Learned or traced arrays reach it through the tile only.
Term = Callable[[Tile], Mapping[str, PerRow | PerColumn]]


class Output(NamedTuple):
    """What a term answers under one name: which way it is reduced and how."""

    name: str
    per_row: bool
    reduction: Reduction

    @property
    def axis(self) -> int:
        """The axis of the tile that is summed away."""
        return 1 if self.per_row else 0


class Side(NamedTuple):
    """One side of the matrix: the rows, or the columns. Every array has the same leading axis.

    Attributes:
        x: features, in the dtype of the caller.
        floats: arrays that have gradients, f32.
        others: codes and masks, which have none.
        index: numbers in the whole matrix; those of padding are not below its size.
    """

    x: Array
    floats: dict[str, Array]
    others: dict[str, Array]
    index: Array

    @property
    def size(self) -> int:
        """Rows or columns here, padding included."""
        return self.x.shape[0]

    def padded(self, size: int) -> Side:
        """Repeat the first entry up to `size`, so that padding is as harmless to a term as real entries."""
        extra = size - self.size
        if not extra:
            return self
        longer = jax.tree.map(
            lambda a: jnp.concatenate([a, jnp.broadcast_to(a[:1], (extra, *a.shape[1:]))]), self
        )
        return longer._replace(index=jnp.concatenate([self.index, jnp.full(extra, NOWHERE, jnp.int32)]))


def similarity(x: Shaped[Array, "q o"], y: Shaped[Array, "s o"]) -> Float[Array, "q s"]:
    """``x @ y^T``: products of bf16 or f32 features, summed in f32."""
    if x.dtype != y.dtype or x.dtype != jnp.bfloat16:
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    precision = None if x.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    across = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, y, across, precision=precision, preferred_element_type=jnp.float32)


def pair_similarity(x: Shaped[Array, "b o"], y: Shaped[Array, "b o"]) -> Float[Array, " b"]:
    """``s_ii = x_i . y_i``, f32: the similarity of each pair, for terms that compare a pair with its own."""
    return (x.astype(jnp.float32) * y.astype(jnp.float32)).sum(-1)


def evaluate(term: Term, s: Array, rows: Side, columns: Side, params: Any) -> dict[str, PerRow | PerColumn]:
    """Ask the term about a tile whose similarities are `s`, and check its answer.

    Raises:
        ValueError: an answer that is no dictionary of `PerRow` and `PerColumn` values of the tile's shape.
    """
    tile = Tile(
        similarity=s,
        rows={**rows.floats, **rows.others},
        columns={**columns.floats, **columns.others},
        row_index=rows.index,
        column_index=columns.index,
        params=params,
    )
    found = term(tile)
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"a term returns a dictionary of PerRow and PerColumn, found {type(found).__name__}")
    for name, item in found.items():
        if not isinstance(item, (PerRow, PerColumn)):
            raise ValueError(
                f"a term returns PerRow or PerColumn, found {type(item).__name__} under {name!r}: "
                "wrap the values, as in PerRow(values, SUM)"
            )
        shape, dtype = jnp.shape(item.values), jnp.result_type(item.values)
        if shape != s.shape or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"values of {name!r} must be floats of the tile's shape {s.shape}, found {dtype} {shape}"
            )
    return {name: type(item)(item.values.astype(jnp.float32), item.reduction) for name, item in found.items()}


def outputs(term: Term, rows: Side, columns: Side, params: Any) -> tuple[Output, ...]:
    """What the term answers, found without computing anything."""

    def answer(rows: Side, columns: Side, params: Any) -> dict[str, PerRow | PerColumn]:
        return evaluate(term, similarity(rows.x, columns.x), rows, columns, params)

    found = jax.eval_shape(answer, rows, columns, params)
    return tuple(Output(name, isinstance(item, PerRow), item.reduction) for name, item in found.items())
