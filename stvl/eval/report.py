"""Several results side by side, and beside published rows: for each protocol one table of percents."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from stvl.core.errors import ConfigError, DataError
from stvl.core.paths import AnyPath, to_path
from stvl.eval.published import MIR, Published
from stvl.eval.result import Result

#: The keys of a flat file of ``stvl eval mir --similarity``.
MIR_KEYS = ("map.v2t", "map.t2v", "map.avg", "ndcg.v2t", "ndcg.t2v", "ndcg.avg")

#: What of a card stands in a report.
_FACTS = ("split", "clips", "frames", "views", "post_processing", "weights_sha256")


@dataclasses.dataclass(frozen=True)
class Line:
    """One row of a report: what it is called, where it comes from, its facts, its scores in [0, 1]."""

    name: str
    source: str
    facts: dict[str, Any]
    scores: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Table:
    """All lines of one protocol, published ones first, and the metrics that they have, in order."""

    protocol: str
    metrics: tuple[str, ...]
    lines: tuple[Line, ...]
    warnings: tuple[str, ...]


def read_result(path: str | AnyPath) -> Result:
    """A result of ``stvl eval``, or the six flat numbers of ``stvl eval mir --similarity``, which have no card.

    Raises:
        DataError: another file.
    """
    try:
        data = json.loads(to_path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as problem:
        raise DataError(f"{path} is not a result of stvl eval: {problem}") from problem
    if isinstance(data, dict) and set(data) == set(MIR_KEYS):
        try:
            scores = {key: float(data[key]) for key in MIR_KEYS}
        except (TypeError, ValueError) as problem:
            raise DataError(f"{path} is not a result of stvl eval: {problem}") from problem
        return Result(metrics=scores, baseline=dict.fromkeys(scores, 0.0), card={"protocol": MIR})
    return Result.from_json(path)


def report(results: dict[str, Result], rows: Sequence[Published] = ()) -> tuple[Table, ...]:
    """One table a protocol that a result is of, in the order of the results.

    Raises:
        ConfigError: no results.
    """
    if not results:
        raise ConfigError("a report needs one result or more")
    tables = []
    for protocol in dict.fromkeys(str(result.card.get("protocol")) for result in results.values()):
        beside = [row for row in rows if row.protocol == protocol]
        own = {name: result for name, result in results.items() if result.card.get("protocol") == protocol}
        metrics = dict.fromkeys(key for row in beside for key in row.percent)
        metrics |= dict.fromkeys(key for result in own.values() for key in result.metrics)
        lines = [
            Line(
                f"{row.method}, {row.setting}" if row.setting else row.method,
                row.source + (f" ({row.note})" if row.note else ""),
                {"trained_on": row.trained_on},
                {key: value / 100 for key, value in row.percent.items()},
            )
            for row in beside
        ]
        for name, result in own.items():
            facts = {key: result.card[key] for key in _FACTS if key in result.card}
            lines.append(
                Line(name, "here" if len(result.card) > 1 else "here, no card", facts, result.metrics)
            )
        tables.append(Table(protocol, tuple(metrics), tuple(lines), _differences(own)))
    return tuple(tables)


def _differences(results: dict[str, Result]) -> tuple[str, ...]:
    """What makes results of one protocol incomparable: other data, views or post-processing."""
    told = []
    for key in ("clips_sha256", "texts_sha256", "views", "post_processing", "questions_sha256"):
        values: dict[str, list[str]] = {}
        for name, result in results.items():
            if key in result.card:
                values.setdefault(str(result.card[key]), []).append(name)
        if len(values) > 1:
            groups = "; ".join(f"{', '.join(names)}: {value[:16]}" for value, names in values.items())
            told.append(f"{key} differs ({groups})")
    return tuple(told)


def markdown(tables: Sequence[Table]) -> str:
    """The report as Markdown."""
    parts = []
    for table in tables:
        head = ["", "trained on / facts", *table.metrics, "source"]
        rows = [head, ["---", "---", *["---:"] * len(table.metrics), "---"]]
        for line in table.lines:
            facts = line.facts.get("trained_on") or ", ".join(
                f"{key} {str(value)[:12]}" for key, value in line.facts.items() if key != "trained_on"
            )
            rows.append([line.name, facts, *percents(line, table.metrics), line.source])
        body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        notes = "".join(f"\n\nNot comparable: {warning}." for warning in table.warnings)
        parts.append(f"## {table.protocol}\n\nPercent.\n\n{body}{notes}\n")
    return "\n".join(parts)


def percents(line: Line, metrics: Sequence[str]) -> list[str]:
    """The scores of a line as cells, one decimal; empty where it has none."""
    return [f"{100 * line.scores[key]:.1f}" if key in line.scores else "" for key in metrics]
