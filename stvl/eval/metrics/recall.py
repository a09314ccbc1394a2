"""Recall at k, median and mean rank with one or more right answers a query, and accuracy on pairs of opposites."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from stvl.core.errors import ConfigError, DataError

#: What a tie with wrong items does to the rank of a right answer, see `tied_ranks`.
Ties = Literal["against", "average", "first"]


def ranks(
    similarity: Float[np.ndarray, "..."],
    right: Bool[np.ndarray, "..."] | Sequence[Collection[int]],
) -> Int64[np.ndarray, " queries"]:
    """Rank of the best right answer of each query, from 1: one more than the wrong items that score as high or higher.

    Ties count against the answer, so constant scores earn nothing.

    Args:
        similarity: (queries, items).
        right: which items answer it: a mask of the same shape or one set of columns a query.

    Raises:
        ConfigError: shapes that differ, or a column that does not exist.
        DataError: NaN, or a query without a right answer.
    """
    return _spans(similarity, right)[1]


def tied_ranks(
    similarity: Float[np.ndarray, "..."],
    right: Bool[np.ndarray, "..."] | Sequence[Collection[int]],
    ties: Ties = "average",
) -> Float64[np.ndarray, " queries"]:
    """`ranks` under a rule for ties: with `low` wrong items above the best right answer and `high` above or equal to it,

    ``against``: 1 + high; ``average``: 1 + (low + high) / 2, the mean over all orders of the tied items; ``first``:
    1 + low, under which constant scores are perfect. Published scripts of text-video retrieval use ``average`` or
    ``first``; without ties all three agree.

    Raises:
        ConfigError: as `ranks`, and another word for `ties`.
        DataError: as `ranks`.
    """
    low, high = _spans(similarity, right)
    rules = {"against": high * 1.0, "average": (low + high) / 2, "first": low * 1.0}
    if ties not in rules:
        raise ConfigError(f"ties are one of {', '.join(rules)}, found {ties!r}")
    return rules[ties]


def rank_metrics(ranks: Float[np.ndarray, "..."], ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """``r@k`` in [0, 1], ``median_rank`` and ``mean_rank`` from 1, of ranks as `ranks` and `tied_ranks` give them.

    Raises:
        ConfigError: no ranks.
    """
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or not ranks.size:
        raise ConfigError(f"ranks are a list of one or more, found shape {ranks.shape}")
    found = {f"r@{k}": float((ranks <= k).mean()) for k in ks}
    return found | {"median_rank": float(np.median(ranks)), "mean_rank": float(ranks.mean())}


def _spans(
    similarity: np.ndarray, right: np.ndarray | Sequence[Collection[int]]
) -> tuple[Int64[np.ndarray, " queries"], Int64[np.ndarray, " queries"]]:
    """(first, last) rank that the best right answer of each query can have among the items it ties with."""
    similarity = np.asarray(similarity)
    if similarity.ndim != 2 or len(right) != len(similarity):
        raise ConfigError(
            f"similarity {similarity.shape} with {len(right)} sets of right answers: one a row expected"
        )
    mask = right if isinstance(right, np.ndarray) else None
    if mask is not None and mask.shape != similarity.shape:
        raise ConfigError(f"similarity {similarity.shape} with a mask of right answers {mask.shape}")
    first, last = np.empty((2, len(similarity)), np.int64)
    for row, scores in enumerate(similarity):
        columns = np.flatnonzero(mask[row]) if mask is not None else right[row]
        answers = np.unique(np.fromiter(columns, np.int64))
        if not len(answers):
            raise DataError(f"query {row} has no right answer")
        if answers[0] < 0 or answers[-1] >= len(scores):
            raise ConfigError(f"query {row}: right answers {answers.tolist()} among {len(scores)} items")
        if np.isnan(scores).any():
            raise DataError(f"similarity holds NaN, first in row {row}")
        best = scores[answers].max()
        first[row] = 1 + (scores > best).sum()
        last[row] = 1 + (scores >= best).sum() - (scores[answers] >= best).sum()
    return first, last


def recall(
    similarity: Float[np.ndarray, "..."],
    right: Bool[np.ndarray, "..."] | Sequence[Collection[int]],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """``r@k``: share of queries with a right answer among the first k, in [0, 1]; ``median_rank``: from 1, 1 is best.

    Raises:
        ConfigError: as `ranks`, and no queries.
        DataError: as `ranks`.
    """
    found = ranks(similarity, right)
    if not len(found):
        raise ConfigError("recall needs one query or more, found none")
    return {f"r@{k}": float((found <= k).mean()) for k in ks} | {"median_rank": float(np.median(found))}


def opposites_accuracy(
    own: Float[np.ndarray, "..."],
    opposite: Float[np.ndarray, "..."],
    weights: Float[np.ndarray, "..."] | None = None,
) -> float:
    """Share of pairs in which a clip scores its own narration above that of the opposite motion; a tie counts 0.5.

    Chance is 50 %. `weights` make the pairs of one clip count as one.

    Raises:
        ConfigError: lengths that differ, or no pairs.
        DataError: NaN.
    """
    own, opposite = np.asarray(own), np.asarray(opposite)
    weights = np.ones(own.shape) if weights is None else np.asarray(weights)
    if own.ndim != 1 or not own.shape == opposite.shape == weights.shape or not own.size:
        raise ConfigError(
            f"own {own.shape}, opposite {opposite.shape}, weights {weights.shape}: expected one number a pair"
        )
    if np.isnan(own).any() or np.isnan(opposite).any():
        raise DataError(
            f"scores hold NaN, first in pair {int(np.flatnonzero(np.isnan(own) | np.isnan(opposite))[0])}"
        )
    return float(np.average((own > opposite) + 0.5 * (own == opposite), weights=weights))


def recall_chance(right: Bool[np.ndarray, "queries items"], k: int) -> float:
    """Chance of a right item among k drawn without replacement, mean over the queries: ``1 - C(n-r, k) / C(n, k)``."""
    n = right.shape[1]
    wrong = n - right.sum(1)
    miss = np.ones(len(right))
    for i in range(min(k, n)):
        miss *= np.maximum(wrong - i, 0) / (n - i)
    return float(1 - miss.mean())
