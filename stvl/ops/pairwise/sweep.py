"""One device's part: a set of rows against a set of columns, a chunk of rows at a time, forward and backward."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from stvl.ops.pairwise.reductions import State
from stvl.ops.pairwise.tile import Output, Side, Term, evaluate, similarity

#: Rows of a tile where the caller does not say. Forward and gradients of InfoNCE, f32, width 256, jax 0.10.2, 2 CPU cores:
#: rows of a tile            64      128      256      512     1024
#: 2,048 x 2,048          0.055    0.046    0.041    0.039    0.043 s
#: 8,192 x 8,192          1.436    1.167    1.075    2.124    2.018 s
#: 16,384 x 16,384        8.410    2.855    2.248    3.203    2.679 s (24, 32, 49, 113, 209 MiB of temporaries)
#: A margin loss has its best at 256 or 512 as well. Not measured on accelerators.
CHUNK_ROWS = 256

States = dict[str, State]


class Pull(NamedTuple):
    """What the backward pass needs of each differentiable output: cotangent and result, one entry a row or column."""

    cotangent: dict[str, Array]
    result: dict[str, Array]


class Gradient(NamedTuple):
    """Gradients of a side, f32."""

    x: Array
    floats: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A term and how its matrix is cut.

    Attributes:
        term: the loss over pairs.
        found: what the term answers.
        size: rows and columns of the whole matrix; numbers that are not below are padding.
        chunk: rows of a tile, or None for `CHUNK_ROWS`.
        padded: whether rows or columns may hold padding.
    """

    term: Term
    found: tuple[Output, ...]
    size: tuple[int, int]
    chunk: int | None
    padded: bool

    def rows_of_a_tile(self, rows: int) -> int:
        """At most the chunk, so that all tiles are of nearly equal size."""
        most = min(rows, self.chunk or CHUNK_ROWS)
        return -(-rows // -(-rows // most))

    def select(self, per_row: bool, differentiable: bool = False) -> tuple[Output, ...]:
        """The outputs that are reduced one way."""
        return tuple(
            out
            for out in self.found
            if out.per_row == per_row and (out.reduction.differentiable or not differentiable)
        )

    def values(self, s: Array, rows: Side, columns: Side, params: Any, masked: bool) -> dict[str, Array]:
        """The term's values on a tile, neutral where a row or column is padding."""
        answers = evaluate(self.term, s, rows, columns, params)
        if not masked:
            return {name: item.values for name, item in answers.items()}
        real = (rows.index < self.size[0])[:, None] & (columns.index < self.size[1])[None, :]
        return {name: jnp.where(real, item.values, item.reduction.neutral) for name, item in answers.items()}

    def start(self, per_row: bool, size: int) -> States:
        """States of `size` rows or columns that have seen nothing."""
        return {out.name: out.reduction.start(size) for out in self.select(per_row)}

    def merge(self, per_row: bool, one: States, two: States) -> States:
        """States after the pairs of both."""
        return {out.name: out.reduction.merge(one[out.name], two[out.name]) for out in self.select(per_row)}

    def finish(self, per_row: bool, states: States) -> dict[str, Array]:
        """Results of states that have seen everything."""
        return {out.name: out.reduction.finish(states[out.name]) for out in self.select(per_row)}

    def forward(self, rows: Side, columns: Side, params: Any) -> tuple[States, States]:
        """States of the rows and of the columns after all pairs of the two."""
        chunk = self.rows_of_a_tile(rows.size)
        masked = self.padded or rows.size % chunk > 0

        def step(seen: States, part: Side) -> tuple[States, States]:
            values = self.values(similarity(part.x, columns.x), part, columns, params, masked)
            per_row, per_column = (
                {out.name: out.reduction.tile(values[out.name], out.axis, index) for out in self.select(way)}
                for way, index in ((True, columns.index), (False, part.index))
            )
            return self.merge(False, seen, per_column), per_row

        seen, per_row = jax.lax.scan(step, self.start(False, columns.size), _chunks(rows, chunk))
        return _joined(per_row, rows.size), seen

    def backward(
        self, rows: Side, columns: Side, params: Any, row_pull: Pull, column_pull: Pull
    ) -> tuple[Gradient, Gradient, Any]:
        """Gradients of the rows, the columns and the parameters; the values of each tile are computed again."""
        chunk = self.rows_of_a_tile(rows.size)
        masked = self.padded or rows.size % chunk > 0
        wanted = [*self.select(True, True), *self.select(False, True)]
        wide = columns.x.astype(jnp.float32)

        def step(
            total: tuple[Gradient, Any], parts: tuple[Side, Pull]
        ) -> tuple[tuple[Gradient, Any], Gradient]:
            part, pull = parts

            def values(s: Array, floats: dict, column_floats: dict, params: Any) -> dict[str, Array]:
                side, other = part._replace(floats=floats), columns._replace(floats=column_floats)
                found = self.values(s, side, other, params, masked)
                return {out.name: found[out.name] for out in wanted}

            s = similarity(part.x, columns.x)
            found, transpose = jax.vjp(values, s, part.floats, columns.floats, params)
            slopes = {}
            for out in wanted:
                given = pull if out.per_row else column_pull
                ends = (jnp.expand_dims(x[out.name], out.axis) for x in given)
                cotangent, result = ends
                slopes[out.name] = out.reduction.slope(cotangent, found[out.name], result)
            slope, floats, column_floats, on_params = transpose(slopes)
            on_rows = Gradient(_product(slope, wide), floats)
            on_columns = Gradient(_product(slope.T, part.x.astype(jnp.float32)), column_floats)
            return jax.tree.map(jnp.add, total, (on_columns, on_params)), on_rows

        nothing = Gradient(jnp.zeros(wide.shape, jnp.float32), columns.floats)
        start = jax.tree.map(jnp.zeros_like, (nothing, params))
        pulls = jax.tree.map(lambda a: _fold(a, chunk), row_pull)
        (on_columns, on_params), on_rows = jax.lax.scan(step, start, (_chunks(rows, chunk), pulls))
        return _joined(on_rows, rows.size), on_columns, on_params


def _chunks(side: Side, chunk: int) -> Side:
    """A side in parts of `chunk` entries, padded at the end: every array gets a leading axis of parts."""
    count = -(-side.size // chunk)
    longer = side.padded(count * chunk)
    return jax.tree.map(lambda a: a.reshape(count, chunk, *a.shape[1:]), longer)


def _fold(a: Array, chunk: int) -> Array:
    """A vector in parts of `chunk`, filled up with zeros at the end: padding has no cotangent."""
    count = -(-a.shape[0] // chunk)
    return jnp.pad(a, (0, count * chunk - a.shape[0])).reshape(count, chunk)


def _joined(tree: Any, size: int) -> Any:
    """Undo `_chunks` on the outputs of a scan over parts."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:size], tree)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
