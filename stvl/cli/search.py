"""``stvl search``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from stvl.cli.main import console, parse_args
from stvl.cli.runs import load_model


@dataclasses.dataclass
class Args:
    """Search videos by a sentence: windows of a folder's videos are embedded once, then ranked."""

    query: Annotated[str, tyro.conf.Positional]
    """What to look for."""
    build: str | None = None
    """Folder of videos to index."""
    index: str | None = None
    """Index file: read where --build is not given, written where it is."""
    run: str | None = None
    """Run folder of the model; default: the newest under runs/."""
    weights: str | None = None
    """Weights folder of the model instead, as `stvl convert` writes it."""
    window: float = 4.0
    """Length of a window in seconds."""
    stride: float = 2.0
    """Seconds between the starts of windows."""
    windows: str = "sliding"
    """sliding, manifest (the folder's CSV with path,start,end), or the path of such a CSV."""
    frames: int | None = None
    """Frames a window; default: as in training."""
    top: int = 5
    """How many hits to print."""
    sheet: str | None = None
    """PNG file for a contact sheet of the hits."""


def run(argv: list[str]) -> int:
    """Run the command."""
    args = parse_args(Args, argv, "search")
    from stvl.core.errors import ConfigError
    from stvl.eval.index import Index, build_index
    from stvl.eval.search import hits_table, search

    if args.build is None and args.index is None:
        raise ConfigError(
            "give --build FOLDER to index videos, or --index FILE to search an index written before"
        )
    encoders, _ = load_model(args.run, args.weights, frames=args.frames)
    if args.build is None:
        index = Index.load(args.index or "")
    else:
        index = build_index(encoders, args.build, args.window, args.stride, windows=args.windows)
        for path, reason in index.skipped:
            print(f"skipped {path}: {reason}")
        if args.index:
            index.save(args.index)
            print(f"index of {len(index)} windows: {args.index}")
    hits = search(index, encoders, args.query, args.top)
    console().print(hits_table(hits, args.query))
    if args.sheet:
        from stvl.eval.sheet import contact_sheet

        contact_sheet(args.sheet, hits, Path(index.folder), args.query)
        print(f"contact sheet: {args.sheet}")
    return 0
