"""Mean average precision over classes where a clip may have several, as the Charades challenge counts it."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from stvl.core.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class MultiLabel:
    """What `multilabel_map` found.

    Attributes:
        map: mean of `ap` over the classes that occur, in [0, 1].
        weighted_map: the same weighted by the number of clips of each class.
        ap: average precision of each class, NaN for a class without a clip.
        clips: clips of each class.
        empty: rows without any label.
    """

    map: float
    weighted_map: float
    ap: Float64[np.ndarray, " classes"]
    clips: Int64[np.ndarray, " classes"]
    empty: int


def multilabel_map(scores: Float[np.ndarray, "..."], labels: Bool[np.ndarray, "..."]) -> MultiLabel:
    """Rank the clips of each class by their score and take the average precision; then the mean over classes.

    ``AP_class = mean over the ranks k of its clips of (clips of the class among the first k) / k``.

    The conventions of the Charades script: a clip without any label scores minus infinity for every class, so it stands
    behind all others and can push no clip down; a class without a clip is left out of the mean. Ties keep the order of
    the rows, the order of a stable falling sort.

    Args:
        scores: (clips, classes); minus infinity is allowed, NaN is not.
        labels: (clips, classes), which classes a clip shows.

    Raises:
        ConfigError: shapes that differ.
        DataError: NaN, plus infinity, or no label anywhere.

    Source: Sigurdsson et al., "Hollywood in Homes", 2016, and the classification script of the Charades
    challenge; used on Charades-Ego in arXiv 2206.01670 and 2506.14356.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ConfigError(
            f"scores are {scores.shape} and labels {labels.shape}: both must be (clips, classes)"
            + (" (scores look transposed)" if scores.shape == labels.shape[::-1] else "")
        )
    for name, bad in (("NaN", np.isnan(scores)), ("plus infinity", np.isposinf(scores))):
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise DataError(f"scores hold {name}, first in row {row}, column {column}")
    labels = labels.astype(bool)
    count = labels.sum(0)
    if not count.any():
        raise DataError("no clip has a label, so there is nothing to score")
    empty = ~labels.any(1)
    ap = np.full(labels.shape[1], np.nan)
    for column in np.flatnonzero(count):
        falling = np.where(empty, np.inf, -scores[:, column].astype(np.float64))
        # An empty row ties with a real score of minus infinity; the real one is put first.
        order = np.lexsort((np.arange(len(scores)), empty, falling))
        ranks = np.flatnonzero(labels[order, column]) + 1
        ap[column] = (np.arange(1, len(ranks) + 1) / ranks).mean()
    seen = count > 0
    return MultiLabel(
        map=float(ap[seen].mean()),
        weighted_map=float(np.average(ap[seen], weights=count[seen])),
        ap=ap,
        clips=count.astype(np.int64),
        empty=int(empty.sum()),
    )


def chance_map(
    labels: Bool[np.ndarray, "clips classes"], seeds: tuple[int, ...] = (0, 1, 2)
) -> tuple[float, float]:
    """(map, weighted map) of uniform random scores, mean over `seeds`. Raises: ConfigError without seeds."""
    if not seeds:
        raise ConfigError("chance_map needs one seed or more, found none")
    runs = [multilabel_map(np.random.default_rng(seed).random(labels.shape), labels) for seed in seeds]
    return float(np.mean([run.map for run in runs])), float(np.mean([run.weighted_map for run in runs]))
