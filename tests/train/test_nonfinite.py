"""Steps that were passed over: counted over a window, written down, and too many of them refused."""

from __future__ import annotations

import json
import math

import pytest

from stvl.train.nonfinite import NonFinite, NonFiniteLoss, unsound

BAD = {"loss": math.nan, "grad_norm": 1.0, "accuracy": 0.5}


@pytest.mark.parametrize(
    ("loss", "norm", "said"),
    [
        (1.0, 2.0, ""),
        (math.nan, 2.0, "loss is nan"),
        (math.inf, math.nan, "loss is inf"),
        (1.0, math.inf, "gradient's norm is inf"),
    ],
)
def test_what_makes_a_step_unsound(loss, norm, said):
    assert unsound({"loss": loss, "grad_norm": norm}) == said


def test_steps_leave_the_window_after_a_hundred():
    found = NonFinite(limit=2, file=None, steps=[1, 50])
    # 1 is exactly a hundred steps before 101.
    found.take(101, BAD, ["a"])
    assert found.steps == [50, 101]
    with pytest.raises(
        NonFiniteLoss, match=r"loss of step 149 is nan; ids of its batch: b, c\. It is number 3 in 100"
    ):
        found.take(149, BAD, ["b", "c"])


def test_a_step_that_is_run_again_counts_once():
    found = NonFinite(limit=1, file=None, steps=[7])
    assert found.take(7, BAD, ["a"]).startswith(
        "step 7 passed over: the loss is nan (1 of at most 1 in 100 steps)"
    )


def test_all_ids_are_written_and_few_are_said(tmp_path):
    ids = [f"clip{number}" for number in range(20)]
    said = NonFinite(limit=1, file=tmp_path / "bad.jsonl").take(3, BAD, ids)
    assert said.endswith("its clips: clip0, clip1, clip2, clip3, clip4, clip5, clip6, clip7 and 12 more")
    assert json.loads((tmp_path / "bad.jsonl").read_text()) == {
        "step": 3,
        "loss": "nan",
        "grad_norm": "1.0",
        "ids": ids,
    }


def test_no_step_is_allowed():
    with pytest.raises(NonFiniteLoss, match=r"loss of step 3 is nan; ids of its batch: a\.$"):
        NonFinite(limit=0, file=None).take(3, BAD, ["a"])
