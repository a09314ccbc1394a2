"""``stvl convert SRC --out DIR``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from stvl.cli.inspect import size_text
from stvl.cli.main import parse_args

if TYPE_CHECKING:
    from stvl.pretrained.convert import Report
    from stvl.pretrained.export import Exported

_SHOWN = 6


@dataclasses.dataclass
class Args:
    """Turn a checkpoint into a weights folder; or, with --export, a weights folder back into the source's naming."""

    src: Positional[str]
    """A file or folder; a run folder of `stvl train`; or owner/name[@revision][:file] on the Hugging Face hub."""
    out: Path | None = None
    """Weights folder to make."""
    export: Path | None = None
    """Write SRC (a weights folder or a run folder) to this .safetensors file in the naming of a public checkpoint."""
    naming: str | None = None
    """With --export: the naming, e.g. eva02-clip/open_clip; default: that of the checkpoint the folder was made from."""
    drop: bool = False
    """With --export: leave out parameters that have no place in the naming."""
    preset: str | None = None
    """FAMILY/SIZE that the source has to fit, e.g. eva02-at/b16; its other sizes are taken."""
    frames: int | None = None
    """Frames of a clip; more than 1 makes a video model of an image model."""
    size: int | None = None
    """Side of the frames in pixels; the table of places is resampled."""
    patch: int | None = None
    """Patch side in pixels; the patch kernel is resized."""
    tube: int | None = None
    """Frames in one token; the patch kernel is inflated."""
    context: int | None = None
    """Positions of the text tower, at most those of the source."""
    positions: Literal["learned", "rope", "both", "none"] | None = None
    """What tells frames apart; default for EVA-02 image weights with --frames: both."""
    times: Literal["linear", "zeros"] = "linear"
    """A table P_t of another length is interpolated, or starts at zero."""
    embedding: int | None = None
    """Width of the shared space; another one than the source's lets both projections start anew."""
    dtype: Literal["float32", "bfloat16", "float16", "source"] = "float32"
    """Of the stored parameters."""
    seed: int = 0
    """Of the parameters that start anew."""
    activation: Literal["gelu", "quick_gelu"] | None = None
    """Of the MLPs, where the names of the tensors cannot tell it."""
    heads: tuple[int, int] | None = None
    """Heads of the video and the text tower; default: those of the preset, or width / 64."""
    new_text: bool = False
    """Let the text tower start anew where the source is an image tower only."""
    sha256: str | None = None
    """What the source has to have; checked before it is read."""
    overwrite: bool = False
    """Replace a weights folder, or the file of --export."""
    dry_run: bool = False
    """Print what would be done with every tensor, and write nothing. Values are not read."""


def run(argv: list[str]) -> int:
    """Run the command."""
    args = parse_args(Args, argv, "convert")
    from stvl.core.errors import ConfigError

    if (args.out is not None) == (args.export is not None) and not (args.dry_run and args.out is None):
        raise ConfigError("give one of --out DIR and --export FILE.safetensors, or --out DIR with --dry-run")
    if args.export is None and (args.naming is not None or args.drop):
        raise ConfigError("--naming and --drop belong to --export FILE.safetensors")
    return _export(args) if args.export is not None else _convert(args)


def _convert(args: Args) -> int:
    from stvl.pretrained.convert import ConvertOptions, convert

    fields = {field.name for field in dataclasses.fields(ConvertOptions)}
    options = ConvertOptions(**{name: value for name, value in vars(args).items() if name in fields})
    report = convert(args.src, args.out, options, args.dry_run)
    for line in report_lines(report, full=args.dry_run):
        print(line)
    return 0


def _export(args: Args) -> int:
    from stvl.core.errors import ConfigError
    from stvl.pretrained.export import ExportOptions, export

    changes = (
        "preset",
        "frames",
        "size",
        "patch",
        "tube",
        "context",
        "positions",
        "embedding",
        "sha256",
        "activation",
        "heads",
    )
    given = [name for name in changes if getattr(args, name) is not None]
    if given:
        raise ConfigError(
            f"--export writes what is there, so it takes no --{given[0]}: convert first, then export"
        )
    assert args.export is not None
    options = ExportOptions(naming=args.naming, drop=args.drop, overwrite=args.overwrite)
    for line in export_lines(export(args.src, args.export, options, args.dry_run)):
        print(line)
    return 0


def report_lines(report: Report, full: bool) -> Iterator[str]:
    """What a conversion does; `full` with the way of every tensor."""
    found, contents = report.found, report.contents
    yield f"{report.source}: {found.size} in the naming {found.layout.name}"
    yield f"  sha256 {report.sha256}"
    yield (
        f"-> {contents.model.video.title}, {contents.model.video.image_size} pixels, frames {contents.frames}, "
        f"context {contents.model.text.context}, shared space {contents.model.embedding}, {size_text(report.size)}"
    )
    if full:
        width = max((len(row.source) for row in report.rows), default=0)
        for row in report.rows:
            shape = f"{row.count} x {row.dtype} {'x'.join(map(str, row.shape)) or 'scalar'}"
            yield f"  {row.source:<{width}}  {shape:<28} -> {', '.join(row.targets)}"
    yield f"  taken: {sum(row.count for row in report.rows)} tensors, {size_text(sum(row.size for row in report.rows))}"
    yield from _listed("resized", report.resized, full)
    yield from _listed("new", report.new, full)
    yield from _listed("ignored", report.ignored, full)
    for note in report.notes:
        yield f"  note: {note}"
    yield f"written: {report.folder.path}" if report.folder is not None else "nothing was written (--dry-run)"


def export_lines(done: Exported) -> Iterator[str]:
    """What an export did."""
    yield f"{done.source} in the naming {done.naming}: {done.count} tensors, {size_text(done.size)}"
    yield from _listed("dropped", done.dropped, True)
    if done.sha256:
        yield f"  sha256 {done.sha256}"
    yield f"written: {done.path}" if done.sha256 else "nothing was written (--dry-run)"


def _listed(title: str, rows: Mapping[str, str], full: bool) -> Iterator[str]:
    items = list(rows.items())
    shown = items if full else items[:_SHOWN]
    for name, why in shown:
        yield f"  {title}: {name}: {why}"
    if len(items) > len(shown):
        yield f"  {title}: ... and {len(items) - len(shown)} more (--dry-run lists all)"
