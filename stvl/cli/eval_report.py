"""``stvl eval report``: results side by side and beside published rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from stvl.cli.main import console, parse_args


@dataclasses.dataclass
class ReportArgs:
    """Set results side by side, one table a protocol, beside the rows of papers."""

    results: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Result files of stvl eval."""
    beside: Annotated[tuple[str, ...], tyro.conf.arg(name="with")] = ()
    """Sources of published rows: eva02at."""
    markdown: str | None = None
    """File to write the report to as Markdown."""


def run(argv: list[str]) -> int:
    """Run the command."""
    args = parse_args(ReportArgs, argv, "eval report")
    from rich.table import Table

    from stvl.eval.published import published
    from stvl.eval.report import markdown, percents, read_result, report
    from stvl.eval.result import atomic_write

    names = _names(args.results)
    rows = [row for name in args.beside for row in published(name)]
    tables = report({names[path]: read_result(path) for path in args.results}, rows)
    for made in tables:
        table = Table("", title=f"{made.protocol}, %", title_justify="left")
        table.add_column("trained on")
        for metric in made.metrics:
            table.add_column(metric, justify="right")
        for line in made.lines:
            table.add_row(line.name, line.facts.get("trained_on", ""), *percents(line, made.metrics))
        console().print(table)
        for source in dict.fromkeys(line.source for line in made.lines if not line.source.startswith("here")):
            print(f"source: {source}")
        for warning in made.warnings:
            print(f"not comparable: {warning}")
    if args.markdown:
        text = markdown(tables)
        atomic_write(args.markdown, lambda file: file.write(text.encode()))
        print(f"written: {args.markdown}")
    return 0


def _names(paths: tuple[str, ...]) -> dict[str, str]:
    """A short name for each file: its stem, or as much of its path as tells it from the others."""
    stems = {path: Path(path).stem for path in paths}
    twice = len(set(stems.values())) < len(stems)
    return {path: path.removesuffix(".json") if twice else stems[path] for path in paths}
