"""The rows of an evaluation that each process takes; the exchange itself runs in tests/launch/test_survival.py."""

from __future__ import annotations

import numpy as np
import pytest

import stvl.eval.share as share
from stvl.eval.share import Interrupted, joined, own_rows, shared


@pytest.mark.parametrize(("total", "processes"), [(7, 1), (7, 2), (8, 3), (100, 7), (5, 5)])
def test_blocks_hold_every_row_once_in_order(total, processes):
    found = []
    for process in range(processes):
        with shared(process, processes):
            rows = own_rows(total)
        assert len(rows) in (total // processes, -(-total // processes))
        found += rows
    assert found == list(range(total))


def test_few_rows_are_not_split():
    with shared(2, 3):
        assert own_rows(2) == range(2)


def test_alone_all_rows_are_done_here():
    found = joined(4, lambda rows: {"square": np.array([row**2 for row in rows])})
    assert found["square"].tolist() == [0, 1, 4, 9]
    with pytest.raises(Interrupted):
        joined(4, stopped)


def stopped(rows: range) -> dict[str, np.ndarray]:
    raise Interrupted("stop")


def exchange(monkeypatch: pytest.MonkeyPatch, others: list[np.ndarray]) -> list[np.ndarray]:
    """Stand in for the other processes of three: what they bring to each exchange, in order; and what this one sent."""
    sent: list[np.ndarray] = []

    def gather(array: np.ndarray) -> np.ndarray:
        sent.append(np.asarray(array))
        return np.stack([np.asarray(array), *np.asarray(others.pop(0), array.dtype)])

    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", gather)
    return sent


def test_rows_of_three_are_put_together_bit_by_bit(monkeypatch):
    # 64-bit numbers that f32 cannot hold; blocks of 2, 3 and 3 rows, so the first one is padded.
    whole = (np.arange(16, dtype=np.float64).reshape(8, 2) + 1) / 3
    padded = [np.ascontiguousarray(whole[first:last]).view(np.uint8) for first, last in ((2, 5), (5, 8))]
    sent = exchange(monkeypatch, [np.ones((2, 1)), np.stack(padded)])
    with shared(0, 3):
        found = joined(8, lambda rows: {"x": whole[rows.start : rows.stop]})["x"]
    assert found.dtype == np.float64 and (found == whole).all()
    assert [array.shape for array in sent] == [(1,), (3, 16)]


def test_one_that_is_stopped_stops_all(monkeypatch):
    exchange(monkeypatch, [np.array([[1], [0]])])
    with shared(0, 3), pytest.raises(Interrupted):
        joined(8, lambda rows: {"x": np.zeros(len(rows))})
    sent = exchange(monkeypatch, [np.ones((2, 1))])
    with shared(0, 3), pytest.raises(Interrupted):
        joined(8, stopped)
    # It tells the others before it leaves.
    assert sent[0].tolist() == [0]
    assert share.own_rows(3) == range(3)
