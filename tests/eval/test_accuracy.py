"""Top-k, class means, views, actions and multi-label precision: hand-worked values, extremes, ties, refusals."""

from __future__ import annotations

import math

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import strategies as st

from stvl.core.errors import ConfigError, DataError
from stvl.eval.metrics import accuracy
from stvl.eval.metrics.accuracy import (
    action_ranks,
    average_views,
    label_ranks,
    mean_class_accuracy,
    softmax,
    topk_accuracy,
    view_name,
)
from stvl.eval.metrics.multilabel import chance_map, multilabel_map
from stvl.eval.metrics.recall import rank_metrics, recall_chance, tied_ranks

SCORES = np.array([[3.0, 2, 1], [1, 2, 3], [2, 3, 1], [3, 1, 2]])


def test_topk_by_hand():
    # Ranks of the labels 0, 0, 1, 2: 1, 3, 1, 2.
    labels = np.array([0, 0, 1, 2])
    assert label_ranks(SCORES, labels).tolist() == [1, 3, 1, 2]
    assert topk_accuracy(SCORES, labels, (1, 2), "10x3") == {"top1@10x3": 0.5, "top2@10x3": 0.75}
    # Class 0: 1 of 2, class 1: 1 of 1, class 2: 0 of 1.
    assert mean_class_accuracy(SCORES, labels) == pytest.approx((0.5 + 1 + 0) / 3)


def test_topk_extremes_and_ties():
    labels = np.arange(6)
    assert topk_accuracy(np.eye(6), labels)["top1@1x1"] == 1
    assert topk_accuracy(-np.eye(6), labels) == {"top1@1x1": 0, "top5@1x1": 0}
    assert topk_accuracy(np.zeros((6, 6)), labels) == {
        "top1@1x1": 0,
        "top5@1x1": 0,
    }  # constant scores earn nothing
    assert label_ranks(np.array([[1.0, 1, 0]]), np.array([1])).tolist() == [2]


def test_topk_refuses():
    with pytest.raises(DataError, match=r"NaN, first in row 1, column 2"):
        topk_accuracy(np.array([[0.0, 1, 2], [0, 1, np.nan]]), np.array([0, 0]))
    with pytest.raises(ConfigError, match=r"scores \(4, 3\) with labels \(3,\)"):
        topk_accuracy(SCORES, np.array([0, 1, 2]))
    with pytest.raises(DataError, match=r"clip 3: label 3 is not one of 3 classes"):
        mean_class_accuracy(SCORES, np.array([0, 0, 0, 3]))
    with pytest.raises(DataError, match=r"no clips"):
        topk_accuracy(np.zeros((0, 3)), np.zeros(0, int))


def test_views_average_probabilities_or_logits():
    logits = np.array([[[0.0, math.log(3)], [math.log(9), 0.0]]])  # softmax: 1/4 3/4 and 9/10 1/10
    np.testing.assert_allclose(average_views(logits, "softmax"), [[(0.25 + 0.9) / 2, (0.75 + 0.1) / 2]])
    np.testing.assert_allclose(average_views(logits, "logits"), [[math.log(9) / 2, math.log(3) / 2]])


def test_the_two_means_can_disagree():
    logits = np.array([[[0.0, 2.0], [0.0, 2.0], [9.0, 0.0]]])
    assert average_views(logits, "logits").argmax() == 0
    assert average_views(logits, "softmax").argmax() == 1


def test_views_refuse():
    with pytest.raises(ConfigError, match=r"\(clips, views, classes\), not empty; found \(4, 3\)"):
        average_views(SCORES)
    with pytest.raises(ConfigError, match=r"at least 1x1, found 0x3"):
        view_name(0, 3)
    with pytest.raises(DataError, match=r"NaN, first in clip 1, view 0"):
        average_views(np.array([[[0.0, 1]], [[np.nan, 1]]]))
    assert view_name(10, 3) == "10x3"
    np.testing.assert_allclose(softmax(np.array([1e4, 1e4])), [0.5, 0.5])  # no overflow


def test_actions_rank_pairs_by_the_product():
    # Pairs: .7*.6 .7*.4 .3*.6 .3*.4 = .42 .28 .18 .12
    verbs, nouns = np.array([[0.7, 0.3]] * 4), np.array([[0.6, 0.4]] * 4)
    found = action_ranks(verbs, nouns, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    assert found.tolist() == [1, 2, 3, 4]
    assert action_ranks(
        np.full((1, 2), 0.5), np.full((1, 2), 0.5), np.array([0]), np.array([0])
    ).tolist() == [4]
    with pytest.raises(DataError, match=r"give probabilities"):
        action_ranks(-verbs, nouns, np.zeros(4, int), np.zeros(4, int))
    with pytest.raises(ConfigError, match=r"verbs are of 4 clips, of nouns of 2"):
        action_ranks(verbs, nouns[:2], np.zeros(4, int), np.zeros(2, int))


def test_actions_agree_with_all_pairs_whatever_the_chunk(monkeypatch):
    rng = np.random.default_rng(0)
    verbs, nouns = softmax(rng.normal(size=(9, 4))), softmax(rng.normal(size=(9, 5)))
    labels = rng.integers(0, 4, 9), rng.integers(0, 5, 9)
    expected = []
    for row in range(9):
        pairs = sorted(-v * n for v in verbs[row] for n in nouns[row])
        expected.append(pairs.index(-verbs[row, labels[0][row]] * nouns[row, labels[1][row]]) + 1)
    for cells in (1, 45, 10**6):
        monkeypatch.setattr(accuracy, "_CELLS", cells)
        assert action_ranks(verbs, nouns, *labels).tolist() == expected


# Class 0 has clips 0 and 3, class 1 has clip 1, class 2 none; clip 2 has no label.
LABELS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]], bool)


def test_multilabel_by_hand():
    scores = np.array([[0.9, 0.8, 0.0], [0.8, 0.7, 0.0], [1.0, 1.0, 0.0], [0.1, 0.9, 0.0]])
    # Clip 2 stands last whatever its score. Class 0 ranks clips 0 1 3: hits at 1 and 3. Class 1 ranks 3 0 1: at 3.
    found = multilabel_map(scores, LABELS)
    np.testing.assert_allclose(found.ap, [(1 + 2 / 3) / 2, 1 / 3, np.nan])
    assert found.map == pytest.approx(((1 + 2 / 3) / 2 + 1 / 3) / 2)
    assert found.weighted_map == pytest.approx((2 * (1 + 2 / 3) / 2 + 1 / 3) / 3)
    assert found.clips.tolist() == [2, 1, 0] and found.empty == 1


def test_multilabel_extremes():
    assert multilabel_map(LABELS.astype(float), LABELS).map == 1
    # Reversed among the three labelled clips: class 0 hits at 2 and 3, class 1 at 3.
    assert multilabel_map(-LABELS.astype(float), LABELS).map == pytest.approx(
        ((1 / 2 + 2 / 3) / 2 + 1 / 3) / 2
    )


def test_multilabel_ties_keep_the_order_of_rows():
    # All equal: 0 1 3 (2 is last): class 0 hits at 1 and 3, class 1 at 2.
    assert multilabel_map(np.zeros((4, 3)), LABELS).map == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    # A labelled clip of minus infinity still stands before the one without a label.
    scores = np.where(LABELS, -np.inf, 0.0)
    assert multilabel_map(scores, LABELS).ap[1] == pytest.approx(1 / 3)


@hypothesis.given(
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=7).flatmap(
        lambda shape: st.tuples(
            hnp.arrays(np.float64, shape, elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.5])),
            hnp.arrays(bool, shape),
        )
    )
)
def test_multilabel_agrees_with_the_definition(case):
    scores, labels = case
    hypothesis.assume(labels.any())
    kept = np.flatnonzero(
        labels.any(1)
    )  # rows without a label are behind all others, so leaving them out is the same
    aps = []
    for column in np.flatnonzero(labels.any(0)):
        order = sorted(kept, key=lambda row: (-scores[row, column], row))
        hits = [rank for rank, row in enumerate(order, 1) if labels[row, column]]
        aps.append(sum(i / rank for i, rank in enumerate(hits, 1)) / len(hits))
    assert multilabel_map(scores, labels).map == pytest.approx(np.mean(aps))


def test_multilabel_refuses():
    scores = np.zeros((4, 3))
    with pytest.raises(ConfigError, match=r"\(3, 4\) and labels \(4, 3\).*transposed"):
        multilabel_map(scores.T, LABELS)
    with pytest.raises(DataError, match=r"no clip has a label"):
        multilabel_map(scores, np.zeros((4, 3), bool))
    for value, name in ((np.nan, "NaN"), (np.inf, "plus infinity")):
        scores[2, 1] = value
        with pytest.raises(DataError, match=rf"{name}, first in row 2, column 1"):
            multilabel_map(scores, LABELS)


def test_chance_of_multilabel_is_near_the_prevalence():
    labels = np.random.default_rng(1).random((400, 20)) < 0.1
    chance, weighted = chance_map(labels)
    assert 0.1 < chance < 0.15 and 0.1 < weighted < 0.15
    assert (chance, weighted) == chance_map(labels)
    with pytest.raises(ConfigError, match=r"one seed or more"):
        chance_map(labels, ())


def test_ties_of_ranks():
    scores = np.array([[1.0, 1, 1, 0], [2, 1, 1, 1], [0, 1, 2, 3]])
    right = [{1}, {1}, {3}]
    # One query ties with two others at the top, one with two others below one item.
    assert tied_ranks(scores, right, "against").tolist() == [3, 4, 1]
    assert tied_ranks(scores, right, "average").tolist() == [2, 3, 1]
    assert tied_ranks(scores, right, "first").tolist() == [1, 2, 1]


def test_rank_metrics_by_hand():
    found = rank_metrics(np.array([1.0, 2, 9, 30]), (1, 5, 10))
    assert found == {"r@1": 0.25, "r@5": 0.5, "r@10": 0.75, "median_rank": 5.5, "mean_rank": 10.5}
    with pytest.raises(ConfigError, match=r"one or more"):
        rank_metrics(np.zeros(0))
    assert recall_chance(np.eye(4, dtype=bool), 2) == pytest.approx(0.5)
