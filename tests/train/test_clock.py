"""Where the seconds went, by a clock that only moves when told to."""

from __future__ import annotations

import pytest

from stvl.train.clock import PARTS, Clock, Work


class Hand:
    """A clock's hand, moved by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def spend(clock: Clock, hand: Hand, **parts: float) -> None:
    for name, seconds in parts.items():
        with clock.part(name):
            hand.seconds += seconds


def test_shares_and_speed_by_hand():
    hand = Hand()
    clock = Clock(Work(clips=32, ideal=0.25, executed=0.3), hand)
    spend(clock, hand, data_wait=0.5, host_to_device=0.25, compile=60.0, compute=3.0)
    clock.step()
    spend(clock, hand, checkpoint=0.25)
    clock.step()
    row = clock.row()
    # Four seconds for two steps; the compiler is not the steps' fault.
    assert row == pytest.approx(
        {
            "clips_per_second": 16.0,
            "step_seconds": 2.0,
            "data_wait": 0.125,
            "host_to_device": 0.0625,
            "compute": 0.75,
            "checkpoint": 0.0625,
            "compile_seconds": 60.0,
            "mfu": 0.125,
            "hfu": 0.15,
        }
    )


def test_each_row_starts_anew_and_the_summary_holds_all():
    hand = Hand()
    clock = Clock(Work(8, 0.1, 0.1), hand)
    spend(clock, hand, compute=6.0)
    clock.step()
    clock.row()
    spend(clock, hand, compute=1.0, evaluation=2.0)
    clock.step()
    row = clock.row()
    assert (row["step_seconds"], row["evaluation_seconds"]) == (1.0, 2.0) and "compile_seconds" not in row
    hand.seconds += 1.0
    assert clock.summary() == "10.0 s: compute 70.0%, evaluation 20.0%, other 10.0%"
    assert set(clock.total) == set(PARTS)


def test_a_row_without_a_step_of_its_own_repeats_the_last_speed():
    hand = Hand()
    clock = Clock(Work(8, 0.1, 0.1), hand)
    spend(clock, hand, compile=30.0, compute=2.0)
    clock.step()
    first = clock.row()
    spend(clock, hand, compute=0.001)
    assert clock.row() == {name: value for name, value in first.items() if name != "compile_seconds"}
    assert clock.summary() == "32.0 s: compile 93.7%, compute 6.3%"


def test_a_part_counts_when_its_block_fails():
    hand = Hand()
    clock = Clock(Work(8, 0.1, 0.1), hand)
    with pytest.raises(ValueError), clock.part("data_wait"):
        hand.seconds += 2.0
        raise ValueError
    assert clock.summary() == "2.0 s: data wait 100.0%"
