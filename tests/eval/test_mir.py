"""MIR metrics against values worked by hand, a plain second implementation, and the properties that they must have."""

from __future__ import annotations

import math
import tracemalloc

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import strategies as st

from stvl.core.errors import ConfigError, DataError
from stvl.eval.metrics import mir as module
from stvl.eval.metrics.mir import mean_average_precision, mir, ndcg, random_mir, relevancy

C = np.array([[1.0, 0.5, 0.0, 1.0]], np.float32)


def plain_ap(scores: list[float], graded: list[float]) -> float:
    """Average precision by the definition, ties in column order."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    seen, parts = 0.0, []
    for rank, item in enumerate(order, 1):
        seen += graded[item]
        if graded[item] == 1:
            parts.append(seen / rank)
    return sum(parts) / len(parts)


def plain_ndcg(scores: list[float], graded: list[float]) -> float:
    """nDCG by the definition, ties in reverse column order."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], -i))
    top = sum(c > 0 for c in graded)
    dcg = sum(graded[item] / math.log2(rank + 1) for rank, item in enumerate(order[:top], 1))
    best = sorted(graded, reverse=True)[:top]
    return dcg / sum(c / math.log2(rank + 1) for rank, c in enumerate(best, 1))


def test_average_precision_adds_up_graded_relevancy():
    # Ranked 0.5, 1, 0, 1: hits at ranks 2 and 4 with 1.5 / 2 and 2.5 / 4.
    scores = np.array([[3.0, 4.0, 2.0, 1.0]], np.float32)
    assert mean_average_precision(scores, C) == pytest.approx((1.5 / 2 + 2.5 / 4) / 2)


def test_ndcg_by_hand():
    # K = 3. Ranked 0.5, 1, 0, (1 is out of the top).
    scores = np.array([[3.0, 4.0, 2.0, 1.0]], np.float32)
    dcg = 0.5 / math.log2(2) + 1 / math.log2(3)
    best = 1 / math.log2(2) + 1 / math.log2(3) + 0.5 / math.log2(4)
    assert ndcg(scores, C) == pytest.approx(dcg / best)


def test_perfect_and_reversed():
    assert mean_average_precision(C, C) == 1
    assert ndcg(C, C) == pytest.approx(1)
    # Reversed, with ties broken by column: ranked 0, 0.5, 1, 1.
    assert mean_average_precision(-C, C) == pytest.approx((1.5 / 3 + 2.5 / 4) / 2)
    # Top three of 0, 0.5, 1 (the two 1 are equal).
    best = 1 + 1 / math.log2(3) + 0.25
    assert ndcg(-C, C) == pytest.approx((0.5 / math.log2(3) + 1 / 2) / best)


def test_ties_keep_column_order_in_map_and_reverse_it_in_ndcg():
    flat = np.zeros_like(C)
    assert mean_average_precision(flat, C) == pytest.approx((1 / 1 + 2.5 / 4) / 2)
    best = 1 + 1 / math.log2(3) + 0.25
    assert ndcg(flat, C) == pytest.approx((1 + 0.5 / 2) / best)
    # As the script's own calls order short rows.
    assert np.argsort(-flat[0]).tolist() == [0, 1, 2, 3]
    assert np.argsort(flat[0])[::-1].tolist() == [3, 2, 1, 0]


def test_minus_zero_ties_with_zero_and_infinities_rank_at_the_ends():
    scores = np.array([[0.0, -0.0, -np.inf, np.inf]], np.float32)
    graded = np.array([[0, 1, 0, 0]], np.float32)
    assert mean_average_precision(scores, graded) == pytest.approx(1 / 3)
    assert mean_average_precision(scores, np.array([[0, 0, 1, 0]], np.float32)) == pytest.approx(1 / 4)
    assert mean_average_precision(scores, np.array([[0, 0, 0, 1]], np.float32)) == 1


@hypothesis.given(
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(
        lambda shape: st.tuples(
            hnp.arrays(np.float32, shape, elements=st.sampled_from([-1.5, -0.25, 0.0, 0.5, 2.0])),
            hnp.arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])),
            st.sampled_from([np.float16, np.float32, np.float64]),
            st.integers(1, 20),
        )
    )
)
def test_agrees_with_the_definition(case):
    scores, graded, dtype, cells = case
    before, module._CELLS = module._CELLS, cells
    try:
        kept = [(s.tolist(), c.tolist()) for s, c in zip(scores, graded, strict=True)]
        if any(1.0 in c for _, c in kept):
            expected = np.mean([plain_ap(s, c) for s, c in kept if 1.0 in c])
            assert mean_average_precision(scores.astype(dtype), graded) == pytest.approx(expected)
        if graded.any():
            expected = np.mean([plain_ndcg(s, c) for s, c in kept if any(c)])
            assert ndcg(scores.astype(dtype), graded) == pytest.approx(expected)
    finally:
        module._CELLS = before


def test_float32_and_float64_agree():
    rng = np.random.default_rng(3)
    scores = rng.standard_normal((40, 30)).astype(np.float32)
    graded = rng.choice(np.array([0, 0.5, 1], np.float32), (40, 30))
    assert mir(scores, graded) == pytest.approx(mir(scores.astype(np.float64), graded.astype(np.float64)))


def test_mir_has_both_directions():
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((6, 5)).astype(np.float32)
    graded = np.eye(6, 5, dtype=np.float32)
    graded[5, 0] = 1
    found = mir(scores, graded)
    assert list(found) == ["map.v2t", "map.t2v", "map.avg", "ndcg.v2t", "ndcg.t2v", "ndcg.avg"]
    assert found["map.v2t"] == mean_average_precision(scores, graded)
    assert found["map.t2v"] == mean_average_precision(scores.T, graded.T)
    assert found["ndcg.t2v"] == ndcg(np.ascontiguousarray(scores.T), np.ascontiguousarray(graded.T))
    assert found["map.avg"] == pytest.approx((found["map.v2t"] + found["map.t2v"]) / 2)
    assert found["ndcg.avg"] == pytest.approx((found["ndcg.v2t"] + found["ndcg.t2v"]) / 2)


def test_rows_without_a_right_answer_are_left_out():
    scores = np.array([[1.0, 2.0], [1.0, 2.0]], np.float32)
    graded = np.array([[0.0, 1.0], [0.0, 0.0]], np.float32)
    assert mean_average_precision(scores, graded) == 1
    assert ndcg(scores, graded) == 1
    with pytest.raises(DataError, match="mAP has no meaning here: not one of 2 rows"):
        mean_average_precision(scores, graded / 2)
    with pytest.raises(DataError, match=r"nDCG has no meaning here: .* of relevancy above 0"):
        ndcg(scores, graded * 0)


def test_nan_and_wrong_shapes_are_refused():
    scores = np.zeros((3, 4), np.float32)
    scores[2, 1] = np.nan
    with pytest.raises(DataError, match="similarity holds NaN, first in row 2, column 1"):
        mir(scores, np.ones((3, 4), np.float32))
    with pytest.raises(DataError, match="relevancy holds NaN, first in row 2, column 1"):
        mir(np.ones((3, 4), np.float32), scores)
    with pytest.raises(ConfigError, match=r"similarity is \(4, 3\) and relevancy \(3, 4\).*transposed"):
        mir(np.ones((4, 3), np.float32), np.ones((3, 4), np.float32))
    with pytest.raises(ConfigError, match="not empty"):
        mir(np.ones((0, 3), np.float32), np.ones((0, 3), np.float32))


def test_relevancy_by_hand():
    found = relevancy(
        np.array([3, 4, -1]),
        [(1, 2), (2,), ()],
        np.array([3, 5, -1]),
        [{1, 2}, {2, 7, 9}, {-1}],
    )
    expected = [[1.0, 0.5 / 4, 0.0], [0.25, 0.5 / 3, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


def test_relevancy_reads_padded_rows_and_any_codes():
    padded = np.array([[5, -1, -1], [1000000, 5, 5]])
    found = relevancy(np.array([0, 0]), padded, np.array([0]), [(5,)])
    np.testing.assert_allclose(found, [[1.0], [0.75]])


def test_relevancy_wants_a_verb_for_every_set():
    with pytest.raises(ConfigError, match=r"text side: verbs of shape \(2,\) with 1 sets"):
        relevancy(np.array([0]), [(1,)], np.array([0, 1]), [(1,)])


codes = st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 5), min_size=1)), min_size=1, max_size=6)


@hypothesis.given(codes, codes)
def test_relevancy_agrees_with_sets(videos, texts):
    found = relevancy(
        np.array([v for v, _ in videos]),
        [n for _, n in videos],
        np.array([v for v, _ in texts]),
        [n for _, n in texts],
    )
    for i, (verb, nouns) in enumerate(videos):
        for j, (other, others) in enumerate(texts):
            expected = 0.5 * (verb == other) + 0.5 * len(nouns & others) / len(nouns | others)
            assert found[i, j] == pytest.approx(expected, abs=1e-6)
            assert (found[i, j] == 1) == (verb == other and nouns == others)


def test_random_baseline_is_repeatable_and_near_the_mean_relevancy():
    graded = relevancy(
        np.arange(300) % 10, [(i % 7,) for i in range(300)], np.arange(70) % 10, [(i % 7,) for i in range(70)]
    )
    found = random_mir(graded, seeds=(0, 1))
    assert found == random_mir(graded, seeds=(0, 1))
    assert found != random_mir(graded, seeds=(1, 2))
    # Precision adds up graded relevancies, so chance lies near their mean (above it by the hit's own 1).
    assert graded.mean() < found["map.v2t"] < graded.mean() + 0.08
    with pytest.raises(ConfigError, match="one seed or more"):
        random_mir(graded, seeds=())


def test_memory_is_bounded():
    rng = np.random.default_rng(0)
    scores = rng.random((6000, 2000), dtype=np.float32)
    graded = (scores > 0.99).astype(np.float32)
    tracemalloc.start()
    mir(scores, graded)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6, f"{peak / 1e6:.0f} MB beside two matrices of 48 MB"
