"""``stvl data check``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from stvl.cli.main import parse_args
from stvl.train.signals import Exit


@dataclasses.dataclass
class Args:
    """Decode the videos of a folder, or of a manifest CSV (path,start,end,text), and name the damaged ones."""

    path: Annotated[str, tyro.conf.Positional]
    """Folder of videos (its captions.csv or manifest.csv is checked too), or a CSV."""
    deep: bool = False
    """Decode every frame, not the first, middle and last of each clip."""
    workers: int = 2
    """Files that are decoded at a time."""


def run(argv: list[str]) -> int:
    """Run the command; 3 where a file is damaged."""
    args = parse_args(Args, argv, "data check")
    from stvl.data.check import check_folder, check_table
    from stvl.data.sets.manifest import read_manifest

    if Path(args.path).is_file():
        report = check_table(read_manifest(args.path), workers=args.workers, deep=args.deep)
    else:
        report = check_folder(args.path, workers=args.workers, deep=args.deep)
    for problem in report.bad:
        print(problem)
    print(f"{len(report.good)} files are good, {len({problem.path for problem in report.bad})} are damaged")
    return int(Exit.OK if report.ok else Exit.DAMAGED_DATA)
