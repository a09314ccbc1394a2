"""``stvl rope plot SCHEME``."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tyro.conf import Positional

from stvl.cli.main import parse_args


@dataclasses.dataclass
class Args:
    """Draw a rotary scheme: angle curves, and the scores of a grid of tokens for its centre token."""

    action: Positional[Literal["plot"]]
    """What to do: plot writes SCHEME-angles.png and SCHEME-scores.png."""
    scheme: Positional[str]
    """1d, tad, axial, qwen2-vl-vision, mixed, split, split-even, st, mrope, vrope or videorope."""
    head_width: int = 64
    """Width of a head."""
    frames: int = 8
    """Frames of tokens."""
    rows: int = 14
    """Rows of tokens."""
    columns: int = 14
    """Columns of tokens."""
    out: str = "."
    """Folder to write."""


def run(argv: list[str]) -> int:
    """Run the command."""
    args = parse_args(Args, argv, "rope")
    from stvl.rope.catalogue import scheme
    from stvl.rope.plot import PlotOptions, write_plots

    options = PlotOptions(
        head_width=args.head_width, frames=args.frames, rows=args.rows, columns=args.columns
    )
    for path in write_plots(scheme(args.scheme, args.head_width), args.scheme, args.out, options):
        print(path)
    return 0
