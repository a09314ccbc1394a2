"""From a weights folder or a run back to one safetensors file in the naming of a public checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stvl.core.errors import WeightsError, nearest
from stvl.core.paths import AnyPath, on_disk, to_path
from stvl.models.dual import DualEncoderConfig
from stvl.models.presets import FAMILIES
from stvl.pretrained.convert import own_layout
from stvl.pretrained.folder import Item, folder_facts
from stvl.pretrained.provenance import origin_of, sha256_of
from stvl.pretrained.recognise import LAYOUTS, FamilyLayout
from stvl.pretrained.target import OPTIONAL, STEM, TIME, dtype_of
from stvl.rope.schemes import AxialRope, STRope
from stvl.weights.rules import Layout, Rule
from stvl.weights.source import Entry, open_source
from stvl.weights.unload import entries_of, unplan
from stvl.weights.writer import write_safetensors

_PROJECTIONS = ("video/projection/kernel", "video/projection/bias", "text/projection/kernel")
#: Schemes that turn a single frame as the image model does.
_IMAGE_ROPES = (STRope, AxialRope)


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        naming: a name of `LAYOUTS`; None for that of the checkpoint from which the folder was made.
        drop: leave out what has no place in the naming.
        overwrite: replace the file.
    """

    naming: str | None = None
    drop: bool = False
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an export wrote, or would write.

    Attributes:
        source: the weights folder or run.
        path: the file.
        naming: its layout.
        count: number of tensors.
        size: their bytes.
        dropped: what was left out -> why.
        sha256: hash of the file; empty after a dry run.
    """

    source: AnyPath
    path: Path
    naming: str
    count: int
    size: int
    dropped: Mapping[str, str]
    sha256: str = ""


def export(
    src: str | AnyPath, out: str | Path, options: ExportOptions = ExportOptions(), dry_run: bool = False
) -> Exported:
    """Write the part of a model that a public naming has a place for, bit by bit as it was in the source.

    A table P_t of zeros has no place and needs none. Everything else without a place (a P_t that was trained, projections
    into a space of another width, a tube of several frames) is refused, or left out with ``drop``.

    Args:
        src: a weights folder or a run folder.
        out: a ``.safetensors`` file.
        options: naming, and what may be left out.
        dry_run: check everything, write nothing.

    Raises:
        WeightsError: `src` is neither; an unknown naming or one of another family; something has no place; `out` exists.
    """
    src, out = to_path(src), on_disk(out, "an export is written on a disk")
    _refuse_place(out, options)
    if not src.exists():
        raise WeightsError(f"there is no folder {str(src)!r} to export")
    with contextlib.closing(open_source(src)) as source:
        found = own_layout(src, source)
        if found is None:
            raise WeightsError(
                f"{src} is no weights folder and no run: `stvl convert {src} --out DIR` makes one of it"
            )
        record = origin_of(folder_facts(src))
        layout = _naming(options.naming or record.get("layout"), src)
        if record.get("layout") != layout.layout.name:
            record = {}
        names = {rule.targets[0]: rule.source for rule in found.layout.rules}
        params = {path: source.entries[name] for path, name in names.items()}

        def read(path: str) -> np.ndarray:
            return source.read(names[path])

        still = TIME not in params or not read(TIME).any()
        rules, homeless = _fit(layout, params, found.model, record, still)
        if homeless and not options.drop:
            rows = "\n".join(f"  {name}: {why}" for name, why in homeless.items())
            raise WeightsError(
                f"{src} cannot go into the naming {layout.layout.name} as a whole:\n{rows}\nadd --drop to leave this out"
            )
        items = list(_items(dataclasses.replace(layout.layout, rules=tuple(rules)), params, read, record))
        size = sum(entry.nbytes for _, entry, _ in items)
        done = Exported(src, out, layout.layout.name, len(items), size, homeless)
        if dry_run:
            return done
        out.parent.mkdir(parents=True, exist_ok=True)
        # What torch programs look for before they read a file.
        write_safetensors(out, items, {"format": "pt"})
    return dataclasses.replace(done, sha256=sha256_of(out))


def _refuse_place(out: Path, options: ExportOptions) -> None:
    if out.suffix != ".safetensors":
        raise WeightsError(f"an export is a .safetensors file, found {out.name!r}")
    if out.is_dir():
        raise WeightsError(f"{out} is a folder: name a .safetensors file in it")
    if out.exists() and not options.overwrite:
        raise WeightsError(f"{out} exists already: choose another --export, or add --overwrite")


def _naming(name: str | None, src: AnyPath) -> FamilyLayout:
    if name is None or name.startswith("stvl/"):
        raise WeightsError(
            f"{src} does not say from which checkpoint it was made, so name a --naming{nearest('', LAYOUTS)}"
        )
    if name not in LAYOUTS:
        raise WeightsError(f"there is no naming {name!r}{nearest(name, LAYOUTS)}")
    return LAYOUTS[name]


def _fit(
    layout: FamilyLayout,
    params: Mapping[str, Entry],
    model: DualEncoderConfig,
    record: Mapping[str, Any],
    still: bool,
) -> tuple[list[Rule], dict[str, str]]:
    """Rules that can be filled, and everything that cannot go along, with the reason; `still` where P_t is all zeros."""
    held = {path for rule in layout.layout.rules for path in rule.targets}
    lost = sorted(held - set(params) - set(OPTIONAL))
    extra = sorted(set(params) - held - set(OPTIONAL))
    # A naming of an image tower alone leaves the text tower behind.
    towers = {path.split("/")[0] for path in held}
    extra_tower = [path for path in extra if "/" in path and path.split("/")[0] not in towers]
    extra = [path for path in extra if path not in extra_tower]
    if lost or extra:
        raise WeightsError(
            f"{model.video.title} is not of the family {layout.family}, so it has no form in {layout.layout.name}:\n"
            f"  only in the naming: {_few(lost)}\n  only in the model: {_few(extra)}"
        )
    homeless = {}
    if extra_tower:
        homeless["text/*"] = f"{layout.layout.name} holds no text tower"
    for path in OPTIONAL:
        if path in params and path not in held and not (path == TIME and still):
            homeless[path] = f"an image model has no {OPTIONAL[path]}"
        if path in held and path not in params and _source(layout, path) not in layout.optional:
            homeless[_source(layout, path)] = f"the model has no {OPTIONAL[path]}"
    if params[STEM].shape[0] > 1:
        homeless[STEM] = f"its tokens are {params[STEM].shape[0]} frames deep, an image has one"
    usual = record.get("embedding") or _usual_embedding(layout.family, model)
    if usual is not None and usual != model.embedding:
        for path in _PROJECTIONS:
            if path in params and path in held:
                homeless[path] = f"the shared space is {model.embedding} wide, that of the naming {usual}"
    rope = getattr(model.video, "rope", None)
    if rope is not None and not isinstance(rope, _IMAGE_ROPES):
        homeless["model.video.rope"] = (
            f"{type(rope).__name__} turns an image otherwise than {layout.kind} does"
        )
    rules = [
        rule
        for rule in layout.layout.rules
        if not homeless.keys() & set(rule.targets) and set(rule.targets) <= set(params)
    ]
    return rules, homeless


def _source(layout: FamilyLayout, path: str) -> str:
    return next((rule.source for rule in layout.layout.rules if path in rule.targets), path)


def _usual_embedding(family: str, model: DualEncoderConfig) -> int | None:
    """Width of the shared space of the published model of these sizes; None where there is none."""
    video = model.video
    for size in FAMILIES.get(family, {}).values():
        if (size.video.width, size.video.depth, size.video.patch) == (video.width, video.depth, video.patch):
            return size.embedding
    return None


def _few(names: list[str]) -> str:
    return (
        ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        if names
        else "nothing"
    )


def _items(
    layout: Layout,
    params: Mapping[str, Entry],
    reader: Callable[[str], np.ndarray],
    record: Mapping[str, Any],
) -> Iterator[Item]:
    """The tensors of a layout, in the dtypes that they had where the parameters came from."""
    usual, others, prefix = record.get("dtype"), record.get("other_dtypes", {}), record.get("prefix", "")
    # The wrapper of this one file; the layout knows the usual ones.
    layout = dataclasses.replace(layout, prefixes=(*layout.prefixes, *((prefix,) if prefix else ())))
    entries = {
        name: Entry(entry.shape, dtype_of(others.get(name) or usual or str(entry.dtype)))
        for name, entry in entries_of(layout, params, prefix).items()
    }
    return unplan(layout, {path: lambda path=path: reader(path) for path in params}, entries)
