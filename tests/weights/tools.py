"""Small sources for the tests: in memory, and as bytes that can be spoilt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stvl.weights.readers.common import BaseSource
from stvl.weights.source import Entry
from stvl.weights.writer import write_safetensors


class Memory(BaseSource):
    """Arrays as a source; `seen` counts what was read."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__(Path("memory"))
        self.arrays = dict(arrays)
        self.entries = {name: Entry(array.shape, array.dtype) for name, array in arrays.items()}
        self.seen: list[str] = []

    def _read(self, name: str) -> np.ndarray:
        self.seen.append(name)
        return self.arrays[name]


def raw(table: Any, numbers: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any table, fit or not; text is taken as it is."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + numbers


def row(dtype: str, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def save(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> Path:
    items = [
        (name, Entry(array.shape, array.dtype), lambda array=array: array) for name, array in arrays.items()
    ]
    write_safetensors(path, items, metadata)
    return path


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal shapes, dtypes and bytes: NaN equals itself, 0 and -0 differ."""
    kind = left.shape == right.shape and left.dtype == right.dtype
    return kind and np.ascontiguousarray(left).tobytes() == np.ascontiguousarray(right).tobytes()
