"""docs/claims.md prints tables that follow from the runs that it prints, for the claims as they are."""

from __future__ import annotations

import re

import pytest

from stvl.claims.catalogue import CLAIMS
from stvl.claims.spec import Budget
from stvl.claims.stats import paired, spread
from tests.fixtures import ROOT

PAGE = (ROOT / "docs/claims.md").read_text(encoding="utf-8")
#: Runs are printed with two decimals, tables with one.
ROUNDING = 0.06


def part(name: str) -> str:
    return re.split(r"^## ", PAGE.split(f"\n## {name}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def table(name: str, title: str) -> list[dict[str, str]]:
    """Rows of the table below a bold title, by their heads."""
    lines = part(name).split(f"**{title}")[1].splitlines()
    body = lines[2 : 2 + next(i for i, line in enumerate(lines[2:]) if not line.startswith("|"))]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body]
    return [dict(zip(["arm", *head[1:]], row, strict=True)) for row in rows]


def runs(name: str) -> dict[str, dict[int, dict[str, str]]]:
    """Arm's title -> seed -> its printed scores."""
    found: dict[str, dict[int, dict[str, str]]] = {}
    for row in table(name, "Every run"):
        found.setdefault(row["arm"], {})[int(row["seed"])] = row
    return found


def titles(name: str) -> list[str]:
    return [arm.title for arm in CLAIMS[name].arms(Budget(), "world")]


each = pytest.mark.parametrize("name", CLAIMS)


@each
def test_the_page_has_the_claims_arms_in_order(name):
    printed = [row["arm"] for row in table(name, "Test scores")]
    assert printed[-1] == "chance"
    assert printed[:-1] == [title for title in titles(name) if title in printed]
    assert list(runs(name)) == printed[:-1]


@each
def test_means_and_spreads_follow_from_the_runs(name):
    every, checked = runs(name), 0
    for row in table(name, "Test scores")[:-1]:
        for head in CLAIMS[name].metrics.values():
            values = [float(run[head]) for run in every[row["arm"]].values() if run[head]]
            if not values:
                assert row[head] == ""
                continue
            mean, _, deviation = row[head].partition(" ± ")
            assert abs(float(mean) - spread(values).mean) < ROUNDING, (row["arm"], head)
            if len(values) > 1:
                assert abs(float(deviation) - spread(values).deviation) < ROUNDING, (row["arm"], head)
            checked += 1
        assert int(row["seeds"]) == len(every[row["arm"]])
    assert checked >= len(CLAIMS[name].metrics) * 4


@each
def test_differences_follow_from_the_runs(name):
    every = runs(name)
    base = every[
        next(arm.title for arm in CLAIMS[name].arms(Budget(), "world") if arm.name == CLAIMS[name].baseline)
    ]
    rows = table(name, "Difference to")
    assert len(rows) >= 4
    for row in rows:
        own = every[row["arm"]]
        for head in CLAIMS[name].metrics.values():
            seeds = [seed for seed in own if seed in base and own[seed][head] and base[seed][head]]
            if len(seeds) < 2:
                continue
            found = paired([float(own[s][head]) for s in seeds], [float(base[s][head]) for s in seeds])
            mean, low, high = map(float, re.findall(r"[+-]\d+\.\d", row[head]))
            # The half width of two pairs is nine deviations: rounded runs move it by more.
            slack = ROUNDING + 0.01 * (13 if len(seeds) == 2 else 3)
            assert abs(mean - found.mean) < ROUNDING, (row["arm"], head)
            assert abs(low - found.low) < slack and abs(high - found.high) < slack, (row["arm"], head)
            assert row[head].endswith("*") == (low > 0 or high < 0) or 0.0 in (low, high)
