"""Order: a permutation of every epoch, keyed, and the same however many share the work."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvl.core.errors import DataError
from stvl.data.order import host_rows, sample_index, sample_rng, substitute_index

FROZEN_0 = [2, 5, 6, 1, 7, 3, 0, 8, 4, 9]
FROZEN_7 = [7, 8, 4, 2, 5, 3, 9, 1, 6, 0]


@given(st.integers(1, 300), st.integers(0, 2**63), st.integers(0, 5))
def test_every_epoch_holds_every_row_once(size, seed, epoch):
    drawn = [sample_index(epoch * size + place, size, seed) for place in range(size)]
    assert sorted(drawn) == list(range(size))


def test_without_shuffle_the_order_is_the_table():
    assert [sample_index(position, 3, 0, shuffle=False) for position in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_the_order_is_fixed_for_good():
    """These numbers must never change: saved runs resume by them."""
    assert [sample_index(position, 10, 0) for position in range(10)] == FROZEN_0
    assert [sample_index(position, 10, 7) for position in range(10, 20)] == FROZEN_7


def test_epochs_and_seeds_differ():
    def epoch(number, seed):
        return [sample_index(number * 50 + place, 50, seed) for place in range(50)]

    orders = [epoch(number, seed) for number in range(3) for seed in range(3)]
    assert len({tuple(order) for order in orders}) == 9


def test_places_are_even():
    """Over many epochs each row comes first about equally often, and neighbours in the table do not stay neighbours."""
    size, epochs = 11, 3300
    first = np.bincount([sample_index(epoch * size, size, 5) for epoch in range(epochs)], minlength=size)
    # 300 expected, standard deviation 16.5: five of them.
    assert abs(first - 300).max() < 83
    order = np.array([sample_index(place, 2000, 5) for place in range(2000)])
    assert abs(np.corrcoef(np.arange(2000), order)[0, 1]) < 0.1
    assert (np.abs(np.diff(order)) == 1).sum() < 12


def test_sample_numbers_depend_on_the_key_alone():
    draws = {
        key: tuple(sample_rng(*key).random(3))
        for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0, 1)]
    }
    assert len(set(draws.values())) == 5
    assert tuple(sample_rng(0, 1, 0).random(3)) == draws[0, 1, 0]


def test_substitutes_are_keyed_and_in_the_table():
    drawn = [substitute_index(position, 7, 3, attempt) for position in range(50) for attempt in range(4)]
    assert set(drawn) == set(range(7))
    assert drawn == [
        substitute_index(position, 7, 3, attempt) for position in range(50) for attempt in range(4)
    ]
    assert len({substitute_index(9, 1000, 3, attempt) for attempt in range(10)}) > 8


@given(st.integers(1, 8), st.integers(1, 6))
def test_hosts_join_to_the_batch(count, share):
    rows = [row for index in range(count) for row in host_rows(count * share, index, count)]
    assert rows == list(range(count * share))


def test_what_has_no_order():
    with pytest.raises(DataError, match="empty table"):
        sample_index(0, 0, 0)
    with pytest.raises(DataError, match="found -1"):
        sample_index(-1, 5, 0)
    with pytest.raises(DataError, match="batch of 10 does not divide among 4 hosts"):
        host_rows(10, 0, 4)
    with pytest.raises(DataError, match=r"host index 4 is not in 0 \.\. 3"):
        host_rows(8, 4, 4)
