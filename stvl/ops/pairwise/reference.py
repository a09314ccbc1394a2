"""The dense form: the whole pair matrix in f32, reduced and differentiated by jax. This is what the op means."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array

from stvl.ops.pairwise.options import PairwiseOptions
from stvl.ops.pairwise.tile import Output, Side, Term, evaluate, similarity


def pairwise_dense(
    term: Term,
    rows: Side,
    columns: Side,
    params: Any,
    found: tuple[Output, ...],
    options: PairwiseOptions,
) -> dict[str, Array]:
    """``S = x y^T``, the term of it, and its reductions; O(rows x columns) memory."""
    answers = evaluate(term, similarity(rows.x, columns.x), rows, columns, params)
    return {out.name: out.reduction.whole(answers[out.name].values, out.axis) for out in found}
