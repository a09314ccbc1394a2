"""Recognition: top-k accuracy, mean class accuracy, several views of one clip, and actions as pairs of a verb and a noun."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

from stvl.core.errors import ConfigError, DataError

#: How the scores of several views of a clip become one: the mean of probabilities or the mean of logits.
Averaging = Literal["softmax", "logits"]

_CELLS = 1 << 22  # pairs of classes worked on at once


def label_ranks(
    scores: Float[np.ndarray, "..."], labels: Int[np.ndarray, "..."]
) -> Int64[np.ndarray, " clips"]:
    """Rank of the right class of each clip, from 1: one more than the other classes that score as high or higher.

    Ties count against the model, so constant scores earn nothing (scripts built on ``topk`` or ``argsort`` give a tied
    top to whichever class the sort happens to put first).

    Args:
        scores: (clips, classes).
        labels: (clips,), columns.

    Raises:
        ConfigError: shapes that do not fit.
        DataError: NaN, a label that is no column, no clips.
    """
    scores, labels = checked_labels(scores, labels)
    own = scores[np.arange(len(scores)), labels]
    return (scores >= own[:, None]).sum(1).astype(np.int64)


def topk_accuracy(
    scores: Float[np.ndarray, "..."],
    labels: Int[np.ndarray, "..."],
    ks: Sequence[int] = (1, 5),
    views: str = "1x1",
) -> dict[str, float]:
    """Share of clips whose class is among the k best, in [0, 1]; the views stand in the name: ``top1@10x3``.

    Args:
        scores: (clips, classes), of one view or averaged by `average_views`.
        labels: (clips,).
        ks: each k.
        views: ``TxS``: views in time x views in space, see `view_name`.

    Raises:
        ConfigError: as `label_ranks`.
        DataError: as `label_ranks`.
    """
    ranks = label_ranks(scores, labels)
    return {f"top{k}@{views}": float((ranks <= k).mean()) for k in ks}


def mean_class_accuracy(scores: Float[np.ndarray, "..."], labels: Int[np.ndarray, "..."]) -> float:
    """Mean over the classes that occur of the share of their clips that are right at rank 1, in [0, 1].

    Raises:
        ConfigError: as `label_ranks`.
        DataError: as `label_ranks`.
    """
    return mean_by_class(label_ranks(scores, labels) <= 1, np.asarray(labels))


def mean_by_class(right: Bool[np.ndarray, " clips"], labels: Int[np.ndarray, " clips"]) -> float:
    """Mean over the values of `labels` of the share of `right` among the clips of that value."""
    _, place = np.unique(labels, return_inverse=True)
    place = place.reshape(-1)
    return float((np.bincount(place, right) / np.bincount(place)).mean())


def average_views(
    scores: Float[np.ndarray, "..."], how: Averaging = "softmax"
) -> Float64[np.ndarray, "clips classes"]:
    """One row a clip from the logits of its views.

    ``softmax``: ``mean_v softmax(s_v)``, probabilities; ``logits``: ``mean_v s_v``. The two can rank classes
    differently, and published numbers use both, so the choice is written into the protocol card.

    Args:
        scores: logits, (clips, views, classes).
        how: ``softmax`` or ``logits``.

    Raises:
        ConfigError: another shape, or another word for `how`.
        DataError: NaN.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 3 or 0 in scores.shape:
        raise ConfigError(f"scores of views are (clips, views, classes), not empty; found {scores.shape}")
    if how not in ("softmax", "logits"):
        raise ConfigError(f"views are averaged by 'softmax' or 'logits', found {how!r}")
    if np.isnan(scores).any():
        clip, view = np.argwhere(np.isnan(scores))[0][:2]
        raise DataError(f"scores hold NaN, first in clip {clip}, view {view}")
    return (softmax(scores) if how == "softmax" else scores).mean(1)


def view_name(times: int, crops: int) -> str:
    """``TxS``, views in time x views in space, as in ``top1@10x3``. Raises: ConfigError below 1."""
    if times < 1 or crops < 1:
        raise ConfigError(f"views are at least 1x1, found {times}x{crops}")
    return f"{times}x{crops}"


def softmax(logits: Float[np.ndarray, "*rows classes"]) -> Float64[np.ndarray, "*rows classes"]:
    """``exp(s_k) / sum_j exp(s_j)`` over the last axis, in float64."""
    logits = np.asarray(logits, np.float64)
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def action_ranks(
    verbs: Float[np.ndarray, "..."],
    nouns: Float[np.ndarray, "..."],
    verb_labels: Int[np.ndarray, "..."],
    noun_labels: Int[np.ndarray, "..."],
) -> Int64[np.ndarray, " clips"]:
    """Rank of the right (verb, noun) pair among all pairs scored ``P(verb) * P(noun)``, from 1; ties count against it.

    Args:
        verbs: probabilities, (clips, verb classes).
        nouns: probabilities, (clips, noun classes).
        verb_labels: (clips,).
        noun_labels: (clips,).

    Raises:
        ConfigError: shapes that do not fit.
        DataError: NaN, a negative score, a label that is no column.

    Source: Damen et al., "Rescaling Egocentric Vision", 2022, section 4.1: an action is right where both parts are.
    """
    verbs, verb_labels = checked_labels(verbs, verb_labels)
    nouns, noun_labels = checked_labels(nouns, noun_labels)
    if len(verbs) != len(nouns):
        raise ConfigError(f"scores of verbs are of {len(verbs)} clips, of nouns of {len(nouns)}")
    if (verbs < 0).any() or (nouns < 0).any():
        raise DataError("products of scores only rank where no score is negative; give probabilities")
    out = np.empty(len(verbs), np.int64)
    step = max(1, _CELLS // (verbs.shape[1] * nouns.shape[1]))
    for start in range(0, len(verbs), step):
        rows = slice(start, start + step)
        pairs = verbs[rows, :, None] * nouns[rows, None, :]
        own = pairs[np.arange(len(pairs)), verb_labels[rows], noun_labels[rows]]
        out[rows] = (pairs >= own[:, None, None]).sum((1, 2))
    return out


def checked_labels(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scores, labels) as arrays that fit each other.

    Raises:
        ConfigError: shapes that do not fit.
        DataError: NaN, a label that is no column, no clips.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != (len(scores),):
        raise ConfigError(
            f"scores {scores.shape} with labels {labels.shape}: expected (clips, classes) and one label a clip"
        )
    if not scores.size:
        raise DataError("there are no clips to score")
    bad = np.isnan(scores)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DataError(f"scores hold NaN, first in row {row}, column {column}")
    wrong = (labels < 0) | (labels >= scores.shape[1])
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(f"clip {row}: label {labels[row]} is not one of {scores.shape[1]} classes")
    return scores, labels
