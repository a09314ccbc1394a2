"""``stvl embed``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from stvl.cli.main import parse_args
from stvl.cli.runs import newest_run


@dataclasses.dataclass
class Args:
    """Embed whole videos, the clips of a manifest, or texts into an .npz file of unit vectors."""

    out: str
    """File to write."""
    run: str | None = None
    """Run folder of the model; default: the newest under runs/."""
    videos: tuple[str, ...] = ()
    """Video files, each embedded as one clip."""
    manifest: str | None = None
    """CSV with path,start,end,text: one embedding a row."""
    text: tuple[str, ...] = ()
    """Texts."""
    frames: int | None = None
    """Frames a clip; default: as in training."""


def run(argv: list[str]) -> int:
    """Run the command."""
    args = parse_args(Args, argv, "embed")
    from stvl.core.errors import ConfigError
    from stvl.data.decode import PyAVDecoder
    from stvl.data.records import Clip, ClipTable
    from stvl.data.sets.manifest import read_manifest
    from stvl.eval.embed import embed_table, save_npz, text_embeddings
    from stvl.train.encoders import load_run

    if sum(map(bool, (args.videos, args.manifest, args.text))) != 1:
        raise ConfigError("give one of --videos FILE ..., --manifest CSV and --text TEXT ...")
    encoders = load_run(newest_run(args.run), frames=args.frames)
    if args.text:
        made = text_embeddings(encoders, list(args.text))
    elif args.manifest:
        made = embed_table(encoders, read_manifest(args.manifest))
    else:
        decoder = PyAVDecoder()
        clips = tuple(
            Clip(
                id=path, path=path, start=0.0, end=decoder.probe(path).duration, text=Path(path).stem, row=row
            )
            for row, path in enumerate(args.videos, 1)
        )
        made = embed_table(encoders, ClipTable(clips, "the command line"))
    save_npz(args.out, made)
    print(f"{made.embeddings.shape[0]} embeddings of width {made.embeddings.shape[1]}: {args.out}")
    return 0
