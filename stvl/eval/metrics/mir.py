"""Multi-instance retrieval of EPIC-KITCHENS-100: relevancy, mAP and nDCG, as the challenge's own script has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from stvl.core.errors import ConfigError, DataError

_CELLS = 1 << 17  # matrix cells worked on at once: small enough for the cache, which halves the time


def relevancy(
    video_verbs: Int[np.ndarray, "..."],
    video_nouns: Sequence[Iterable[int]] | Int[np.ndarray, "..."],
    text_verbs: Int[np.ndarray, "..."],
    text_nouns: Sequence[Iterable[int]] | Int[np.ndarray, "..."],
) -> Float32[np.ndarray, "clips texts"]:
    """Relevancy of every text to every clip, ``c = 0.5 * IoU(verb classes) + 0.5 * IoU(noun classes)``, in [0, 1].

    A verb is one class, so its IoU is 1 or 0. Negative codes mean unknown: an unknown verb equals no verb, and negative
    nouns are left out, so padded rows may be given as they are. Two empty sets of nouns share nothing: their IoU is 0.

    Raises:
        ConfigError: as many verbs as sets of nouns were expected.

    Source: Damen et al., "Rescaling Egocentric Vision", 2022, section 4.5; EVA02-AT, arXiv 2506.14356, Eq. 5.
    """
    video_verbs, text_verbs = np.asarray(video_verbs), np.asarray(text_verbs)
    for side, verbs, nouns in (("video", video_verbs, video_nouns), ("text", text_verbs, text_nouns)):
        if verbs.ndim != 1 or len(verbs) != len(nouns):
            raise ConfigError(
                f"{side} side: verbs of shape {verbs.shape} with {len(nouns)} sets of nouns; one of each"
            )
    # Narrations repeat: each pair of a verb and a set of nouns is compared once, then the table is spread out.
    video_keys, video_place = _distinct(video_verbs, video_nouns)
    text_keys, text_place = _distinct(text_verbs, text_nouns)
    table = _relevancy_table(video_keys, text_keys)
    out = np.empty((len(video_place), len(text_place)), np.float32)
    for rows in _chunks(*out.shape):
        out[rows] = table[video_place[rows]][:, text_place]
    return out


def mean_average_precision(
    similarity: Float[np.ndarray, "..."], relevancy: Float[np.ndarray, "..."]
) -> float:
    """Mean average precision of the rows (queries x items), in [0, 1].

    ``AP = mean over the ranks k with c_k = 1 of (sum_{j<=k} c_j) / k``.

    Only an item of relevancy 1 counts as found, but the precision at its rank adds up the *graded* relevancies above it:
    so does the challenge's script, and the published figures (random: 5.7 %) rest on it. A row without an item of
    relevancy 1 is left out (the script would give NaN). Ties keep the order of the columns.

    Raises:
        ConfigError: shapes that differ.
        DataError: NaN, or no row with a relevant item.

    Source: evaluation/mAP.py of the EK-100 baselines (Wray et al., Joint Part-of-Speech Embeddings).
    """
    return _mean(_one_way(*_checked(similarity, relevancy))[0], "mAP", "1")


def ndcg(similarity: Float[np.ndarray, "..."], relevancy: Float[np.ndarray, "..."]) -> float:
    """Mean normalised discounted cumulative gain of the rows (queries x items), in [0, 1], over the top K of each.

    ``DCG = sum_{rank=1..K} c_rank / log2(rank + 1)``, K = number of items with c > 0, divided by the DCG of the best
    order. A row without an item of c > 0 is left out. Ties stand in the reverse order of the columns, as the
    challenge's script leaves them (it sorts upwards and reads backwards); it does so for short rows and promises nothing
    for long ones, here it always holds.

    Raises:
        ConfigError: shapes that differ.
        DataError: NaN, or no row with a relevant item.

    Source: evaluation/nDCG.py of the EK-100 baselines (Wray et al., Joint Part-of-Speech Embeddings).
    """
    return _mean(_one_way(*_checked(similarity, relevancy))[1], "nDCG", "above 0")


def mir(similarity: Float[np.ndarray, "..."], relevancy: Float[np.ndarray, "..."]) -> dict[str, float]:
    """Both metrics in both directions and their means, in [0, 1].

    Args:
        similarity: clips x sentences.
        relevancy: clips x sentences.

    Returns:
        keys ``map.v2t, map.t2v, map.avg, ndcg.v2t, ndcg.t2v, ndcg.avg``; v2t ranks the sentences of each clip.

    Raises:
        ConfigError: shapes that differ.
        DataError: NaN, or a direction without any relevant item.
    """
    similarity, relevancy = _checked(similarity, relevancy)
    ways = _one_way(similarity, relevancy), _one_way(similarity.T, relevancy.T)
    out: dict[str, float] = {}
    for i, (name, rule) in enumerate((("map", "1"), ("ndcg", "above 0"))):
        v2t, t2v = (_mean(way[i], name, rule) for way in ways)
        out |= {f"{name}.v2t": v2t, f"{name}.t2v": t2v, f"{name}.avg": (v2t + t2v) / 2}
    return out


def random_mir(
    relevancy: Float[np.ndarray, "clips texts"], seeds: Sequence[int] = (0, 1, 2)
) -> dict[str, float]:
    """What chance scores: the mean of `mir` over one uniform random similarity matrix per seed.

    Raises:
        ConfigError: no seeds.
    """
    if not seeds:
        raise ConfigError("random_mir needs one seed or more, found none")
    shape = np.shape(relevancy)
    runs = [mir(np.random.default_rng(seed).random(shape, dtype=np.float32), relevancy) for seed in seeds]
    return {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}


def _distinct(
    verbs: np.ndarray, nouns: Sequence[Iterable[int]] | np.ndarray
) -> tuple[list[tuple[int, frozenset[int]]], Int[np.ndarray, " rows"]]:
    """The distinct (verb, set of nouns) in order of appearance, and the place of each row among them."""
    places: dict[tuple[int, frozenset[int]], int] = {}
    rows = [
        (int(verb), frozenset(int(code) for code in codes if code >= 0))
        for verb, codes in zip(verbs, nouns, strict=True)
    ]
    found = np.array([places.setdefault(row, len(places)) for row in rows], np.int64)
    return list(places), found


def _relevancy_table(
    videos: list[tuple[int, frozenset[int]]], texts: list[tuple[int, frozenset[int]]]
) -> Float32[np.ndarray, "videos texts"]:
    codes = sorted({code for _, nouns in (*videos, *texts) for code in nouns})
    column = {code: place for place, code in enumerate(codes)}
    hot = [np.zeros((len(side), len(column)), np.float32) for side in (videos, texts)]
    for array, side in zip(hot, (videos, texts), strict=True):
        for row, (_, nouns) in enumerate(side):
            array[row, [column[code] for code in nouns]] = 1
    sizes = [array.sum(1) for array in hot]
    video_verbs, text_verbs = (np.array([verb for verb, _ in side], np.int64) for side in (videos, texts))
    out = np.empty((len(videos), len(texts)), np.float32)
    for rows in _chunks(*out.shape):
        shared = hot[0][rows] @ hot[1].T
        union = sizes[0][rows, None] + sizes[1][None, :] - shared
        verbs = (video_verbs[rows, None] == text_verbs[None, :]) & (text_verbs >= 0)[None, :]
        out[rows] = 0.5 * verbs + 0.5 * (shared / np.maximum(union, 1))
    return out


def _checked(similarity: np.ndarray, relevancy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    similarity, relevancy = np.asarray(similarity), np.asarray(relevancy)
    if similarity.shape != relevancy.shape or similarity.ndim != 2 or 0 in similarity.shape:
        raise ConfigError(
            f"similarity is {similarity.shape} and relevancy {relevancy.shape}: both must be (clips, sentences), not empty"
            + (" (similarity looks transposed)" if similarity.shape == relevancy.shape[::-1] else "")
        )
    for name, array in (("similarity", similarity), ("relevancy", relevancy)):
        for rows in _chunks(*array.shape):
            bad = np.isnan(array[rows])
            if bad.any():
                row, column = np.argwhere(bad)[0]
                raise DataError(f"{name} holds NaN, first in row {rows.start + row}, column {column}")
    if similarity.dtype not in (np.float32, np.float64):
        similarity = similarity.astype(np.float32 if similarity.dtype.itemsize <= 2 else np.float64)
    return similarity, relevancy


def _one_way(
    similarity: np.ndarray, relevancy: np.ndarray
) -> tuple[Float64[np.ndarray, " queries"], Float64[np.ndarray, " queries"]]:
    """(AP, nDCG) of each row, NaN for a row with nothing to find."""
    precisions, gains = [], []
    discount = 1 / np.log2(np.arange(similarity.shape[1]) + 2)
    for rows in _chunks(*similarity.shape):
        graded = np.ascontiguousarray(relevancy[rows])
        first, last = _orders(np.ascontiguousarray(similarity[rows]))
        ranked = np.take_along_axis(graded, first, axis=1)
        precisions.append(_average_precision(ranked))
        if last is not first:
            ranked = np.take_along_axis(graded, last, axis=1)
        gains.append(_gain(ranked, graded, discount))
    return np.concatenate(precisions), np.concatenate(gains)


def _mean(values: Float64[np.ndarray, " queries"], name: str, rule: str) -> float:
    if np.isnan(values).all():
        raise DataError(
            f"{name} has no meaning here: not one of {len(values)} rows has an item of relevancy {rule}"
        )
    return float(np.nanmean(values))


def _average_precision(ranked: np.ndarray) -> Float64[np.ndarray, " queries"]:
    rows, ranks = np.nonzero(ranked == 1)
    above = np.cumsum(ranked, axis=1, dtype=np.float64)[rows, ranks]
    total = np.bincount(rows, above / (ranks + 1), minlength=len(ranked))
    count = np.bincount(rows, minlength=len(ranked))
    return np.divide(total, count, out=np.full(len(ranked), np.nan), where=count > 0)


def _gain(ranked: np.ndarray, graded: np.ndarray, discount: np.ndarray) -> Float64[np.ndarray, " queries"]:
    count = (graded > 0).sum(1)
    top = np.arange(ranked.shape[1])[None, :] < count[:, None]
    best = -np.sort(-graded, axis=1)
    dcg = (ranked * top).astype(np.float64) @ discount
    ideal = (best * top).astype(np.float64) @ discount
    return np.divide(dcg, ideal, out=np.full(len(ranked), np.nan), where=count > 0)


def _orders(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns from best to worst, ties in column order and ties in reverse; one and the same array without ties."""
    if scores.dtype != np.float32:
        return _orders_wide(scores)
    # A float32 and its column packed into one integer sort nine times faster than a stable argsort of the floats.
    bits = (scores + 0.0).view(np.uint32)
    falling = np.where(bits >> 31 == 1, bits, ~bits & np.uint32(0x7FFFFFFF))
    high = falling.astype(np.uint64) << np.uint64(32)
    columns = np.arange(scores.shape[1], dtype=np.uint64)
    keys = np.sort(high | columns, axis=1)
    first = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    keys >>= np.uint64(32)
    if not (keys[:, 1:] == keys[:, :-1]).any():
        return first, first
    keys = np.sort(high | columns[::-1], axis=1)
    return first, len(columns) - 1 - (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _orders_wide(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_orders` for numbers too wide to be packed; the slow stable sort only sees rows that have ties."""
    first = np.argsort(-scores, axis=1)
    ranked = np.take_along_axis(scores, first, axis=1)
    tied = (ranked[:, 1:] == ranked[:, :-1]).any(1)
    if not tied.any():
        return first, first
    last = first.copy()
    first[tied] = np.argsort(-scores[tied], axis=1, kind="stable")
    last[tied] = np.argsort(scores[tied], axis=1, kind="stable")[:, ::-1]
    return first, last


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _CELLS // max(columns, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
