"""``stvl data toy``."""

from __future__ import annotations

import dataclasses

from stvl.cli.main import parse_args
from stvl.data.toy import ToyOptions


@dataclasses.dataclass
class Args:
    """Render a procedural video world: H.264 files, EPIC-KITCHENS-100 and EgoMCQ annotations, a manifest."""

    out: str
    """Folder to write."""
    world: ToyOptions = dataclasses.field(default_factory=ToyOptions)
    """Size and difficulty."""
    overwrite: bool = False
    """Replace another toy world in that folder."""
    workers: int = 1
    """Processes that render."""


def run(argv: list[str]) -> int:
    """Run the command."""
    args = parse_args(Args, argv, "data toy")
    from stvl.data.toy import write_world

    print(write_world(args.out, args.world, overwrite=args.overwrite, workers=args.workers))
    return 0
