"""``stvl claims list | run NAME | report [NAME]``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from stvl.cli.main import console, parse_args
from stvl.core.paths import on_disk


@dataclasses.dataclass
class Args:
    """Reproduce what papers claim on the toy world: list the claims, run one, or print the tables of what was run."""

    what: Annotated[Literal["list", "run", "report"], tyro.conf.Positional]
    """list, run or report."""
    name: Annotated[str, tyro.conf.Positional] = ""
    """Claim; `report` without one takes all that were run."""
    out: str = "runs/claims"
    """Folder of the toy world and of one JSON a run; a finished run is not repeated."""
    seeds: tuple[int, ...] = ()
    """Seeds; default: the claim's own."""
    arms: tuple[str, ...] = ()
    """Arms to run, and those that they start from; default: all."""
    steps: int | None = None
    """Steps of every run, for a try; default: the claim's own."""
    videos: int | None = None
    """Training videos of the toy world, for a try; default: the claim's own."""
    markdown: str | None = None
    """File to write the report to as Markdown."""


def run(argv: list[str]) -> int:
    """Run the command."""
    args = parse_args(Args, argv, "claims")
    on_disk(args.out, "records of claims are kept on a disk")
    return {"list": _list, "run": _run, "report": _report}[args.what](args)


def _list(args: Args) -> int:
    from rich.table import Table

    from stvl.claims.catalogue import CLAIMS
    from stvl.claims.spec import Budget

    table = Table("claim", "question", "arms", "steps", "seeds")
    for claim in CLAIMS.values():
        arms = claim.arms(Budget(), "world")
        steps = sum(arm.experiment.steps for arm in arms) * len(claim.seeds)
        names = ", ".join(arm.name for arm in arms)
        table.add_row(claim.name, claim.question, names, f"{steps:,}", ", ".join(map(str, claim.seeds)))
    console().print(table)
    return 0


def _run(args: Args) -> int:
    from stvl.claims.catalogue import claim
    from stvl.claims.run import Runner
    from stvl.claims.spec import Budget

    chosen = claim(args.name)
    runner = Runner(chosen, args.out, Budget(steps=args.steps, videos=args.videos), _say)
    runner.run(args.seeds, args.arms)
    return _report(args)


def _say(text: str) -> None:
    print(text, flush=True)


def _report(args: Args) -> int:
    from rich.table import Table

    from stvl.claims.catalogue import CLAIMS, claim
    from stvl.claims.record import read_records
    from stvl.claims.report import markdown, report
    from stvl.core.errors import DataError
    from stvl.eval.result import atomic_write

    out = Path(args.out)
    names = [claim(args.name).name] if args.name else [name for name in CLAIMS if (out / name).is_dir()]
    if not names:
        raise DataError(f"{out} holds no claim that was run: `stvl claims run NAME --out {out}`")
    parts = []
    for name in names:
        sheets = report(claim(name), read_records(out / name))
        for sheet in sheets:
            table = Table(title=sheet.title, title_justify="left")
            for number, head in enumerate(sheet.head):
                table.add_column(head, justify="right" if number else "left")
            for row in sheet.rows:
                table.add_row(*row)
            console().print(table)
            for note in sheet.notes:
                print(note)
        parts.append(markdown(claim(name), sheets))
    if args.markdown:
        text = "\n".join(parts)
        atomic_write(args.markdown, lambda file: file.write(text.encode()))
        print(f"written: {args.markdown}")
    return 0
