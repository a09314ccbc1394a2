"""Records of a claim as tables: means and spreads, paired differences, diagnostics, every seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from stvl.claims.record import Record
from stvl.claims.spec import Budget, Claim
from stvl.claims.stats import paired, spread
from stvl.core.config import diff, from_dict
from stvl.core.errors import ConfigError

#: Fields of a record's experiment that may differ between its seeds.
_SEEDS = ("seed", "loader.seed")
#: What a report says of where the runs were made.
_WHERE = ("stvl", "commit", "jax", "jaxlib", "flax", "numpy", "av", "python", "machine", "backend", "cores")


@dataclasses.dataclass(frozen=True)
class Sheet:
    """One table: heading, column heads, rows of cells, lines below it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def report(claim: Claim, records: Sequence[Record]) -> tuple[Sheet, ...]:
    """The tables of a claim, from the records of one budget.

    Raises:
        ConfigError: no records, records of another claim, or runs of one arm that differ in more than the seed.
    """
    if not records:
        raise ConfigError(f"a report on {claim.name!r} needs one record or more")
    for record in records:
        if record.claim != claim.name:
            raise ConfigError(
                f"the record of {record.arm} is of the claim {record.claim!r}, not {claim.name!r}"
            )
    arms = _by_arm(claim, records)
    for name, line in arms.items():
        _refuse_mixture(name, list(line.runs.values()))
    title = "Test scores, %, mean ± standard deviation over seeds"
    sheets = [_scores(title, claim.metrics, arms, _facts(arms))]
    if claim.baseline in arms and len(arms) > 1:
        sheets.append(_differences(claim, arms))
    if claim.details:
        sheets.append(_scores("In detail, %, mean ± standard deviation over seeds", claim.details, arms))
    return (*sheets, _training(claim, arms), _seeds(claim, arms))


def markdown(claim: Claim, sheets: Sequence[Sheet]) -> str:
    """The tables as Markdown."""
    parts = [f"## {claim.name}\n"]
    for sheet in sheets:
        rows = [sheet.head, ("---", *["---:"] * (len(sheet.head) - 1)), *sheet.rows]
        body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        parts.append(f"**{sheet.title}**\n\n{body}\n")
        parts += [f"{note}\n" for note in sheet.notes]
    return "\n".join(parts)


@dataclasses.dataclass(frozen=True)
class _Lines:
    """What a table holds a row of: an arm's title now, whether it is compared, and its records by seed."""

    title: str
    compared: bool
    runs: dict[int, Record]


def _by_arm(claim: Claim, records: Sequence[Record]) -> dict[str, _Lines]:
    """Arm -> its line, in the claim's order; an arm that the claim no longer has comes last, under its old title."""
    found: dict[str, dict[int, Record]] = {}
    for record in sorted(records, key=lambda record: record.seed):
        found.setdefault(record.arm, {})[record.seed] = record
    known = {arm.name: arm for arm in claim.arms(Budget(), "world")}
    lines = {
        name: _Lines(arm.title, arm.compared, found[name]) for name, arm in known.items() if name in found
    }
    gone = {name: _Lines(next(iter(runs.values())).title, False, runs) for name, runs in found.items()}
    return lines | {name: line for name, line in gone.items() if name not in known}


def _refuse_mixture(name: str, runs: list[Record]) -> None:
    first = from_dict(runs[0].config)
    for other in runs[1:]:
        changes = [change for change in diff(first, from_dict(other.config)) if change[0] not in _SEEDS]
        if changes or other.world != runs[0].world:
            what = ", ".join(path for path, _, _ in changes) or "world"
            raise ConfigError(
                f"runs of {name!r} with seeds {runs[0].seed} and {other.seed} differ in more than the seed: {what}"
            )


def _scores(
    title: str, metrics: dict[str, str], arms: dict[str, _Lines], notes: tuple[str, ...] = ()
) -> Sheet:
    rows, chance = [], {}
    for line in arms.values():
        runs = list(line.runs.values())
        chance |= runs[0].chance
        cells = [_cell([run.metrics[key] for run in runs if key in run.metrics]) for key in metrics]
        rows.append((line.title, *cells, str(len(runs))))
    rows.append(("chance", *[f"{100 * chance[key]:.1f}" if key in chance else "" for key in metrics], ""))
    return Sheet(title, ("", *metrics.values(), "seeds"), tuple(rows), notes)


def _differences(claim: Claim, arms: dict[str, _Lines]) -> Sheet:
    base, rows = arms[claim.baseline], []
    for name, line in arms.items():
        if name == claim.baseline or not line.compared:
            continue
        seeds = [seed for seed in line.runs if seed in base.runs]
        cells = []
        for key in claim.metrics:
            pairs = [(line.runs[seed].metrics.get(key), base.runs[seed].metrics.get(key)) for seed in seeds]
            cells.append(
                _difference([(one, other) for one, other in pairs if one is not None and other is not None])
            )
        rows.append((line.title, *cells, str(len(seeds))))
    note = (
        "95 % intervals of the mean of paired differences, t distribution; * marks those without 0. They are of each cell "
        "alone, not of all cells together."
    )
    head = ("", *claim.metrics.values(), "pairs")
    return Sheet(f"Difference to {base.title}, points, same seed", head, tuple(rows), (note,))


def _difference(pairs: list[tuple[float, float]]) -> str:
    if not pairs:
        return ""
    found = paired([one for one, _ in pairs], [other for _, other in pairs])
    if math.isnan(found.half):
        return f"{100 * found.mean:+.1f}"
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]{'*' if found.clear else ''}"


def _training(claim: Claim, arms: dict[str, _Lines]) -> Sheet:
    rows = []
    for line in arms.values():
        runs = list(line.runs.values())
        cells = []
        for key in claim.diagnostics:
            values = [run.training["last"][key] for run in runs if key in run.training["last"]]
            cells.append(f"{spread(values).mean:.3f}" if values else "")
        seconds = spread([run.wall_seconds for run in runs]).mean
        rows.append((line.title, *cells, f"{runs[0].steps:,}", f"{seconds:.0f}"))
    count = max(run.training["rows"] for line in arms.values() for run in line.runs.values())
    head = ("", *claim.diagnostics.values(), "steps", "seconds a run")
    return Sheet(f"Training: means of the last {count} logged batches and over seeds", head, tuple(rows))


def _seeds(claim: Claim, arms: dict[str, _Lines]) -> Sheet:
    rows = []
    for line in arms.values():
        for seed, run in line.runs.items():
            cells = [f"{100 * run.metrics[key]:.2f}" if key in run.metrics else "" for key in claim.metrics]
            rows.append((line.title, str(seed), *cells))
    return Sheet("Every run, %", ("", "seed", *claim.metrics.values()), tuple(rows))


def _facts(arms: dict[str, _Lines]) -> tuple[str, ...]:
    """Versions and machines of all runs; several where they differ."""
    runs = [run for line in arms.values() for run in line.runs.values()]
    told = []
    for key in _WHERE:
        values = dict.fromkeys(run.where.get(key, "unknown") for run in runs)
        told.append(f"{key} {' and '.join(values)}")
    minutes = sum(run.wall_seconds for run in runs) / 60
    return (f"{len(runs)} runs, {minutes:.0f} minutes in all. " + ", ".join(told) + ".",)


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    found = spread(values)
    if found.count == 1:
        return f"{100 * found.mean:.1f}"
    return f"{100 * found.mean:.1f} ± {100 * found.deviation:.1f}"
