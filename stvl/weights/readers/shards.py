"""Weights in several safetensors files with an index that says which file holds which tensor."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from stvl.core.errors import WeightsError, nearest
from stvl.weights.readers.common import BaseSource, files_sha256
from stvl.weights.readers.safetensors_file import SafetensorsSource

_LIMIT = 100_000_000


class ShardedSource(BaseSource):
    """The shards of an index (``model.safetensors.index.json``).

    Args:
        path: the index; shards lie beside it.

    Raises:
        WeightsError: the index is no such table, a shard is missing or damaged, or index and shards disagree about where a
            tensor is.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        weight_map = _weight_map(path)
        self._shards: dict[str, SafetensorsSource] = {}
        with contextlib.ExitStack() as undo:
            for file in sorted(set(weight_map.values())):
                if not (path.parent / file).is_file():
                    names = [name for name, shard in weight_map.items() if shard == file]
                    raise WeightsError(
                        f"{path} names the shard {file!r} for {names[0]!r} and {len(names) - 1} others; it is not there"
                        f"{nearest(file, (item.name for item in path.parent.glob('*.safetensors')))}"
                    )
                self._shards[file] = SafetensorsSource(path.parent / file)
                undo.callback(self._shards[file].close)
            self._compare(weight_map)
            undo.pop_all()
        self._where = weight_map
        self.entries = {name: self._shards[file].entries[name] for name, file in weight_map.items()}
        self.metadata = {key: text for shard in self._shards.values() for key, text in shard.metadata.items()}

    def sha256(self) -> str:
        """Hash of the listing of the index and all shards."""
        files = [self.path, *(self.path.parent / file for file in self._shards)]
        return files_sha256(files, self.path.parent)

    def close(self) -> None:
        """Close all shards."""
        super().close()
        for shard in self._shards.values():
            shard.close()

    def _read(self, name: str) -> np.ndarray:
        return self._shards[self._where[name]].read(name)

    def _compare(self, weight_map: dict[str, str]) -> None:
        owner: dict[str, str] = {}
        for file, shard in self._shards.items():
            for name in shard.entries:
                if name in owner:
                    raise WeightsError(
                        f"{self.path}: {name!r} is in two shards, {owner[name]!r} and {file!r}"
                    )
                owner[name] = file
        for name, file in weight_map.items():
            if owner.get(name) != file:
                found = f"it is in {owner[name]!r}" if name in owner else "it is in none"
                raise WeightsError(f"{self.path} says that {name!r} is in {file!r}: {found}")
        for name, file in owner.items():
            if name not in weight_map:
                raise WeightsError(f"{self.path} does not list {name!r}, which is in {file!r}")


def _weight_map(path: Path) -> dict[str, str]:
    if path.stat().st_size > _LIMIT:
        raise WeightsError(f"{path} has {path.stat().st_size} bytes, an index has at most {_LIMIT}")
    try:
        found: Any = json.loads(path.read_bytes(), object_pairs_hook=_pairs)
    except (ValueError, RecursionError) as problem:
        raise WeightsError(f"{path} is no JSON: {problem}") from problem
    weight_map = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise WeightsError(f"{path} is no index: it needs a weight_map from tensors to file names")
    if not weight_map:
        raise WeightsError(f"{path} is an index of no tensors")
    for name, file in weight_map.items():
        # A shard is a plain name beside the index; a path could lead anywhere.
        if Path(file).name != file or "\\" in file or file in ("", ".", ".."):
            raise WeightsError(
                f"{path} puts {name!r} into {file!r}, expected the name of a file beside the index"
            )
    return weight_map


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} comes twice")
    return made
