"""The row-chunked form: O(chunk x columns) memory on any device, exact gradients by computing each tile again."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array

from stvl.ops.pairwise.exact import Results, exact
from stvl.ops.pairwise.options import PairwiseOptions
from stvl.ops.pairwise.sweep import Gradient, Pull, Sweep
from stvl.ops.pairwise.tile import Output, Side, Term


@dataclasses.dataclass(frozen=True)
class Chunked:
    """All tiles on one device, a chunk of rows at a time."""

    sweep: Sweep

    @property
    def found(self) -> tuple[Output, ...]:
        """What the term answers."""
        return self.sweep.found

    def forward(self, rows: Side, columns: Side, params: Any) -> Results:
        """The reduced vectors."""
        per_row, per_column = self.sweep.forward(rows, columns, params)
        return {**self.sweep.finish(True, per_row), **self.sweep.finish(False, per_column)}

    def backward(
        self, rows: Side, columns: Side, params: Any, row_pull: Pull, column_pull: Pull
    ) -> tuple[Gradient, Gradient, Any]:
        """Gradients of rows, columns and parameters."""
        return self.sweep.backward(rows, columns, params, row_pull, column_pull)


def pairwise_chunked(
    term: Term,
    rows: Side,
    columns: Side,
    params: Any,
    found: tuple[Output, ...],
    options: PairwiseOptions,
) -> dict[str, Array]:
    """The dense form's results from a scan over chunks of rows; rows need not divide by the chunk."""
    sweep = Sweep(term, found, (rows.size, columns.size), options.chunk, padded=False)
    return exact(Chunked(sweep), rows, columns, params)
