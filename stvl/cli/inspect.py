"""``stvl inspect FILE|DIR``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from tyro.conf import Positional

from stvl.cli.main import parse_args

if TYPE_CHECKING:
    from stvl.weights.source import Entry, Source

_NUMBER = re.compile(r"(?:(?<=[./])|^)\d+(?=[./]|$)")


@dataclasses.dataclass
class Args:
    """Show the tensors of a checkpoint as a tree with shapes, dtypes and bytes, and which model they make."""

    src: Positional[str]
    """A file (.safetensors, .npz, .pt, .pth, .bin) or a folder (shards, Orbax, a run, a weights folder)."""
    json: bool = False
    """Print everything as JSON instead, one row a tensor."""
    verify: bool = False
    """Read every value: print the SHA-256, look for NaN and infinities, compare a weights folder with its own hash."""


def run(argv: list[str]) -> int:
    """Run the command."""
    args = parse_args(Args, argv, "inspect")
    from stvl.pretrained.convert import locate
    from stvl.weights.source import open_source

    path, _ = locate(args.src)
    with contextlib.closing(open_source(path)) as source:
        facts = _facts(path, source)
        if args.verify:
            facts |= _verified(path, source)
        if args.json:
            tensors = [_row(name, entry) for name, entry in source.entries.items()]
            print(json.dumps({**facts, "tensors": tensors}, indent=1))
            return 0
        for line in tree_lines(source.entries):
            print(line)
    print()
    for line in _summary(facts):
        print(line)
    return 0


def _facts(path: Any, source: Source) -> dict[str, Any]:
    """Which model a source holds, and totals; a source that no layout fits is not an error here."""
    from stvl.core.errors import StvlError
    from stvl.pretrained.convert import own_layout
    from stvl.pretrained.recognise import recognise

    kinds: dict[str, int] = {}
    for entry in source.entries.values():
        kinds[str(entry.dtype)] = kinds.get(str(entry.dtype), 0) + entry.nbytes
    facts: dict[str, Any] = {
        "path": str(path),
        "count": len(source.entries),
        "values": sum(int(np.prod(entry.shape, dtype=np.int64)) for entry in source.entries.values()),
        "bytes": sum(kinds.values()),
        "bytes_by_dtype": dict(sorted(kinds.items())),
        "metadata": dict(source.metadata),
    }
    try:
        found = own_layout(path, source) or recognise(source.entries)
    except StvlError as problem:
        return facts | {"layout": None, "unknown": str(problem)}
    return facts | {
        "layout": found.layout.name,
        "family": found.family,
        "size": found.size,
        "title": found.model.video.title,
        "image_size": found.model.video.image_size,
        "frames": found.frames,
        "embedding": found.model.embedding,
        "context": found.model.text.context,
    }


def _verified(path: Any, source: Source) -> dict[str, Any]:
    from stvl.core.errors import WeightsError
    from stvl.pretrained.folder import is_weights_folder, open_folder

    if path.is_dir() and is_weights_folder(path):
        open_folder(path).verify()
    for name in source.entries:
        array = source.read(name)
        if np.issubdtype(array.dtype, np.integer) or array.dtype == bool:
            continue
        if not np.isfinite(array).all():
            raise WeightsError(f"{path}: {name} holds NaN or infinities")
    return {"sha256": source.sha256()}


def _row(name: str, entry: Entry) -> dict[str, Any]:
    return {"name": name, "shape": list(entry.shape), "dtype": str(entry.dtype), "bytes": entry.nbytes}


def _summary(facts: Mapping[str, Any]) -> list[str]:
    kinds = ", ".join(f"{size_text(size)} of {kind}" for kind, size in facts["bytes_by_dtype"].items())
    lines = [f"{facts['count']} tensors, {facts['values']:,} values, {size_text(facts['bytes'])} ({kinds})"]
    if facts["layout"] is None:
        lines += ["no layout is known for these names:", f"  {facts['unknown']}"]
    else:
        lines += [
            f"this is {facts['size']} in the naming {facts['layout']}: {facts['title']}",
            f"{facts['image_size']} pixels, frames {facts['frames']}, context {facts['context']}, "
            f"shared space {facts['embedding']}",
        ]
    if "sha256" in facts:
        lines += ["all values are finite", f"sha256 {facts['sha256']}"]
    return lines


def tree_lines(entries: Mapping[str, Entry]) -> list[str]:
    """The tensors as an indented tree; numbered layers of one shape and dtype stand in one line with their count.

    Args:
        entries: shape and dtype by name; names are cut at slashes, or at dots where there are no slashes.
    """
    cut = "/" if any("/" in name for name in entries) else "."
    groups: dict[tuple[str, tuple[int, ...], str], list[int]] = {}
    for name, entry in entries.items():
        key = (_NUMBER.sub("{i}", name), tuple(entry.shape), str(entry.dtype))
        groups.setdefault(key, []).append(entry.nbytes)
    root: dict[Any, Any] = {}
    for (name, shape, kind), sizes in groups.items():
        *parents, last = name.split(cut)
        node = root
        for part in parents:
            node = node.setdefault(part + cut, {})
        times = f"{len(sizes)} x " if len(sizes) > 1 else ""
        text = f"{times}{kind} {'x'.join(map(str, shape)) or 'scalar'}"
        # One name may stand for tensors of several shapes.
        node.setdefault((last, text), sum(sizes))
    rows = list(_walk(root, 0))
    width = max((len(label) for label, _, _ in rows), default=0)
    middle = max((len(text) for _, text, _ in rows), default=0)
    return [f"{label:<{width}}  {text:<{middle}}  {size_text(size):>9}" for label, text, size in rows]


def _walk(node: dict[Any, Any], depth: int) -> list[tuple[str, str, int]]:
    rows = []
    for key, value in node.items():
        if isinstance(value, int):
            name, text = key
            rows.append(("  " * depth + name, text, value))
            continue
        label = key
        while len(value) == 1 and isinstance(next(iter(value.values())), dict):
            inner, value = next(iter(value.items()))
            label += inner
        below = _walk(value, depth + 1)
        leaf_size = sum(size for _, text, size in below if text)
        rows.append(("  " * depth + label, "", leaf_size))
        rows += below
    return rows


def size_text(size: int) -> str:
    """Bytes in words: ``1.71 GB`` (powers of ten)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} B"
