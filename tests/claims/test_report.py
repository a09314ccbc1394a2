"""Tables from given records, by hand-worked numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from stvl.claims.catalogue import CLAIMS
from stvl.claims.record import Record
from stvl.claims.report import Sheet, markdown, report
from stvl.claims.run import seeded
from stvl.claims.spec import Budget
from stvl.core.config import to_dict
from stvl.core.errors import ConfigError

CLAIM = CLAIMS["losses"]
ARMS = {arm.name: arm for arm in CLAIM.arms(Budget(), "world")}
WORLD = to_dict(CLAIM.world(Budget()))


def record(arm: str, seed: int, score: float, **changes: Any) -> Record:
    """A run whose metrics are all `score`."""
    fields: dict[str, Any] = {
        "claim": "losses",
        "arm": arm,
        "title": "as it was called then",
        "seed": seed,
        "steps": 400,
        "start": "pretrain",
        "metrics": dict.fromkeys(CLAIM.metrics | CLAIM.details, score),
        "chance": dict.fromkeys(CLAIM.metrics | CLAIM.details, 0.05),
        "training": {"last": {"equal": 0.25, "tau": score}, "rows": 10, "loss": []},
        "config": to_dict(seeded(ARMS[arm].experiment, seed)),
        "world": WORLD,
        "where": {"jax": "1.2.3", "commit": "abc"},
        "train_seconds": 20.0,
        "wall_seconds": 30.0,
    }
    return Record(**(fields | changes))


def three() -> list[Record]:
    """SMS beats MI-MM by 1, 2 and 3 points."""
    base = [record("mimm", seed, score) for seed, score in enumerate((0.50, 0.60, 0.70))]
    return base + [record("sms", seed, score) for seed, score in enumerate((0.51, 0.62, 0.73))]


def rows(sheet: Sheet) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in sheet.rows}


def test_means_and_spreads_stand_beside_chance():
    scores, *_ = report(CLAIM, three())
    assert scores.head == ("", *CLAIM.metrics.values(), "seeds")
    found = rows(scores)
    assert list(found) == [ARMS["mimm"].title, ARMS["sms"].title, "chance"]
    assert found[ARMS["mimm"].title] == ("60.0 ± 10.0",) * 2 + ("3",)
    assert found[ARMS["sms"].title] == ("62.0 ± 11.0",) * 2 + ("3",)
    assert found["chance"] == ("5.0",) * 2 + ("",)
    assert "6 runs, 3 minutes in all" in scores.notes[0] and "jax 1.2.3" in scores.notes[0]


def test_differences_are_paired_by_seed():
    _, differences, *_ = report(CLAIM, three())
    # Points 1, 2, 3: mean 2, half width 4.303 / sqrt 3 = 2.484.
    assert rows(differences) == {ARMS["sms"].title: ("+2.0 [-0.5, +4.5]",) * 2 + ("3",)}
    assert ARMS["mimm"].title in differences.title


def test_an_interval_without_zero_is_marked_and_missing_seeds_are_left_out():
    runs = [*three(), record("sms", 3, 0.99)]
    runs[3] = record("sms", 0, 0.52)
    _, differences, *_ = report(CLAIM, runs)
    # Points 2, 2, 3: mean 2.333, deviation 0.577, half width 4.303 * 0.577 / sqrt 3 = 1.434.
    assert rows(differences)[ARMS["sms"].title] == ("+2.3 [+0.9, +3.8]*",) * 2 + ("3",)


def test_details_stand_in_a_table_of_their_own():
    _, _, details, *_ = report(CLAIM, three())
    assert details.head == ("", *CLAIM.details.values(), "seeds")
    assert rows(details)[ARMS["sms"].title] == ("62.0 ± 11.0",) * 4 + ("3",)
    assert details.notes == ()


def test_one_seed_has_no_spread_and_no_interval():
    scores, differences, *_ = report(CLAIM, [record("mimm", 0, 0.5), record("sms", 0, 0.6)])
    assert rows(scores)[ARMS["sms"].title][0] == "60.0"
    assert rows(differences)[ARMS["sms"].title][0] == "+10.0"


def test_arms_that_are_not_compared_have_scores_only():
    scores, differences, *_ = report(CLAIM, [*three(), record("pretrain", 0, 0.4)])
    assert ARMS["pretrain"].title in rows(scores)
    assert ARMS["pretrain"].title not in rows(differences)


def test_diagnostics_and_every_run():
    *_, training, runs = report(CLAIM, three())
    found = dict(zip(training.head[1:], rows(training)[ARMS["sms"].title], strict=True))
    assert (found["equal, share"], found["tau"], found["similarity of pairs"]) == ("0.250", "0.620", "")
    assert (found["steps"], found["seconds a run"]) == ("400", "30")
    assert runs.rows[-1] == (ARMS["sms"].title, "2", *["73.00"] * 2)
    assert len(runs.rows) == 6


def test_markdown_holds_every_table():
    text = markdown(CLAIM, report(CLAIM, three()))
    assert text.startswith("## losses\n")
    assert text.count("| --- |") == 5
    assert f"| {ARMS['sms'].title} | +2.0 [-0.5, +4.5] |" in text


def test_runs_that_differ_in_more_than_the_seed_are_refused():
    other = dataclasses.replace(ARMS["sms"].experiment, steps=90)
    runs = [*three(), record("sms", 4, 0.5, config=to_dict(seeded(other, 4)))]
    with pytest.raises(ConfigError, match=r"'sms' with seeds 0 and 4 differ in more than the seed: steps"):
        report(CLAIM, runs)
    runs[-1] = record("sms", 4, 0.5, world=to_dict(CLAIM.world(Budget(videos=9))))
    with pytest.raises(ConfigError, match="differ in more than the seed: world"):
        report(CLAIM, runs)


def test_other_claims_and_nothing_are_refused():
    with pytest.raises(ConfigError, match="one record or more"):
        report(CLAIM, [])
    with pytest.raises(ConfigError, match="the record of sms is of the claim 'motion', not 'losses'"):
        report(CLAIM, [record("sms", 0, 0.5, claim="motion")])
