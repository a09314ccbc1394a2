"""Multiple choice, recall and opposites: hand-worked values, ties, refusals."""

from __future__ import annotations

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import strategies as st

from stvl.core.errors import ConfigError, DataError
from stvl.eval.metrics.mcq import mcq_accuracy
from stvl.eval.metrics.recall import opposites_accuracy, ranks, recall


def test_mcq_by_hand():
    scores = np.array([[0.1, 0.9, 0, 0, 0], [0.5, 0.4, 0, 0, 0], [0, 0, 0, 0.2, 0.1]])
    found = mcq_accuracy(scores, np.array([1, 1, 3]), ["inter", "intra", "intra"])
    assert found == {"inter": 1.0, "intra": 0.5, "count.inter": 1, "count.intra": 2}


def test_mcq_without_one_kind_names_only_the_other():
    assert set(mcq_accuracy(np.eye(5), np.arange(5), ["inter"] * 5)) == {"inter", "count.inter"}


def test_mcq_ties_share_the_credit():
    assert mcq_accuracy(np.zeros((10, 5)), np.zeros(10, int), ["inter"] * 10)["inter"] == pytest.approx(0.2)
    assert mcq_accuracy(np.array([[1.0, 1, 0, 0, 0]]), np.array([1]), ["intra"])["intra"] == 0.5


def test_mcq_refuses():
    scores = np.zeros((2, 5))
    with pytest.raises(DataError, match="question 1: answer 5 is not one of its 5 choices"):
        mcq_accuracy(scores, np.array([0, 5]), ["inter", "inter"])
    with pytest.raises(ConfigError, match=r"answers \(1,\), 2 kinds"):
        mcq_accuracy(scores, np.array([0]), ["inter", "inter"])
    with pytest.raises(DataError, match="NaN, first in question 1"):
        mcq_accuracy(np.array([[0.0, 1], [np.nan, 0]]), np.array([0, 1]), ["inter", "inter"])
    with pytest.raises(DataError, match="no questions"):
        mcq_accuracy(np.zeros((0, 5)), np.zeros(0, int), [])


def test_ranks_take_the_best_right_answer():
    scores = np.array([[4.0, 3, 2, 1], [1, 2, 3, 4], [1, 2, 3, 4]])
    assert ranks(scores, [{1, 3}, {0}, {3}]).tolist() == [2, 4, 1]
    mask = np.array([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 1]], bool)
    assert ranks(scores, mask).tolist() == [2, 4, 1]
    assert recall(scores, mask, ks=(1, 2)) == {"r@1": 1 / 3, "r@2": 2 / 3, "median_rank": 2.0}


def test_ties_count_against_the_answer():
    assert ranks(np.zeros((1, 4)), [{0, 1}]).tolist() == [3]
    assert recall(np.zeros((5, 20)), [{0}] * 5) == {"r@1": 0, "r@5": 0, "r@10": 0, "median_rank": 20}


@hypothesis.given(
    hnp.arrays(np.float64, (4, 6), elements=st.integers(-3, 3).map(float)),
    st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=4, max_size=4),
)
def test_ranks_agree_with_the_definition(scores, right):
    expected = []
    for row, answers in zip(scores, right, strict=True):
        best = max(row[i] for i in answers)
        expected.append(1 + sum(row[i] >= best for i in range(6) if i not in answers))
    assert ranks(scores, right).tolist() == expected


def test_recall_refuses():
    scores = np.zeros((2, 3))
    with pytest.raises(DataError, match="query 1 has no right answer"):
        recall(scores, [{0}, set()])
    with pytest.raises(ConfigError, match=r"query 0: right answers \[3\] among 3 items"):
        recall(scores, [{3}, {0}])
    with pytest.raises(ConfigError, match="1 sets of right answers"):
        recall(scores, [{0}])
    with pytest.raises(ConfigError, match=r"mask of right answers \(2, 4\)"):
        recall(scores, np.ones((2, 4), bool))
    with pytest.raises(DataError, match="NaN, first in row 1"):
        recall(np.array([[0.0, 1], [np.nan, 1]]), [{0}, {1}])
    with pytest.raises(ConfigError, match="one query or more"):
        recall(np.zeros((0, 3)), [])


def test_opposites_by_hand():
    assert opposites_accuracy(np.array([2.0, 1, 3, 0]), np.array([1.0, 2, 3, -1])) == (1 + 0 + 0.5 + 1) / 4
    weighed = opposites_accuracy(np.array([1.0, 1, 1]), np.array([0.0, 2, 2]), np.array([1.0, 0.5, 0.5]))
    assert weighed == 0.5
    with pytest.raises(DataError, match="NaN, first in pair 1"):
        opposites_accuracy(np.array([0.0, np.nan]), np.zeros(2))
    with pytest.raises(ConfigError, match=r"own \(2,\), opposite \(3,\)"):
        opposites_accuracy(np.zeros(2), np.zeros(3))
    with pytest.raises(ConfigError, match="one number a pair"):
        opposites_accuracy(np.zeros(0), np.zeros(0))
