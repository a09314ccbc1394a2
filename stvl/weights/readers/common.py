"""What all readers share: hashes, names, and the way a source is closed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stvl.core.errors import WeightsError, nearest
from stvl.core.paths import AnyPath
from stvl.weights.source import Entry

_BLOCK = 1 << 20


class BaseSource:
    """A source over one path; readers add `_read`.

    Args:
        path: the file or folder, named in every error.
    """

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        self.entries: Mapping[str, Entry] = {}
        self.metadata: Mapping[str, str] = {}
        self.closed = False

    def read(self, name: str) -> np.ndarray:
        """One tensor, read from disk now."""
        if name not in self.entries:
            raise WeightsError(f"{self.path} has no tensor {name!r}{nearest(name, self.entries)}")
        if self.closed:
            raise WeightsError(f"{self.path} is closed; open it again to read {name!r}")
        return self._read(name)

    def sha256(self) -> str:
        """Hash of the file."""
        return file_sha256(self.path)

    def close(self) -> None:
        """Release the file; entries stay known."""
        self.closed = True

    def _read(self, name: str) -> np.ndarray:
        raise NotImplementedError


def file_sha256(path: AnyPath) -> str:
    """Hash of a file, read block by block."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    file: Any
    with path.open("rb", buffering=0) if isinstance(path, Path) else path.open("rb") as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def files_sha256(paths: Iterable[AnyPath], root: AnyPath) -> str:
    """Hash of several files: of the text that ``sha256sum`` prints for them, ordered by their names below `root`."""
    names = sorted((path.relative_to(root).as_posix(), path) for path in paths)
    listing = "".join(f"{file_sha256(path)}  {name}\n" for name, path in names)
    return hashlib.sha256(listing.encode()).hexdigest()
