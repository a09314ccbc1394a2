"""``stvl embed``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from stvl.cli.main import parse_args
from stvl.cli.runs import load_model

if TYPE_CHECKING:
    from stvl.data.records import ClipTable


@dataclasses.dataclass
class Args:
    """Embed whole videos, the clips of a manifest, images or texts into an .npz file of unit vectors."""

    out: str
    """File to write."""
    run: str | None = None
    """Run folder of the model; default: the newest under runs/."""
    weights: str | None = None
    """Weights folder of the model instead, as `stvl convert` writes it; its source's own preprocessing is used."""
    videos: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--video",))] = ()
    """Video files, each embedded as one clip."""
    images: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--image",))] = ()
    """Image files, each embedded as a clip of one frame."""
    manifest: str | None = None
    """CSV with path,start,end,text: one embedding a row."""
    text: tuple[str, ...] = ()
    """Texts."""
    frames: int | None = None
    """Frames a clip; default: as in training, or the weights folder's. Learned temporal positions are resampled linearly."""


def run(argv: list[str]) -> int:
    """Run the command."""
    args = parse_args(Args, argv, "embed")
    from stvl.core.errors import ConfigError
    from stvl.data.sets.manifest import read_manifest
    from stvl.eval.embed import embed_table, save_npz, text_embeddings
    from stvl.eval.images import embed_images

    if sum(map(bool, (args.videos, args.images, args.manifest, args.text))) != 1:
        raise ConfigError(
            "give one of --videos FILE ..., --images FILE ..., --manifest CSV and --text TEXT ..."
        )
    if args.images and args.frames not in (None, 1):
        raise ConfigError(f"images are clips of one frame: leave --frames {args.frames} out")
    encoders, _ = load_model(args.run, args.weights, frames=1 if args.images else args.frames)
    if args.text:
        made = text_embeddings(encoders, list(args.text))
    elif args.images:
        made = embed_images(encoders, args.images)
    else:
        table = read_manifest(args.manifest) if args.manifest else _whole(args.videos)
        made = embed_table(encoders, table)
    save_npz(args.out, made)
    print(f"{made.embeddings.shape[0]} embeddings of width {made.embeddings.shape[1]}: {args.out}")
    return 0


def _whole(videos: tuple[str, ...]) -> ClipTable:
    from stvl.data.decode import PyAVDecoder
    from stvl.data.records import Clip, ClipTable

    decoder = PyAVDecoder()
    clips = tuple(
        Clip(id=path, path=path, start=0.0, end=decoder.probe(path).duration, text=Path(path).stem, row=row)
        for row, path in enumerate(videos, 1)
    )
    return ClipTable(clips, "the command line")
