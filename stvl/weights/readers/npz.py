"""numpy's archive of arrays, member by member, without pickles."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from stvl.core.errors import WeightsError
from stvl.weights.readers.common import BaseSource
from stvl.weights.source import Entry

_VERSIONS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
#: numpy writes dtypes that it does not know as raw bytes of their width; two-byte ones are bfloat16 in JAX's archives.
_RAW = {2: np.dtype(ml_dtypes.bfloat16)}
_BLOCK = 1 << 20
_DAMAGE = (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError, KeyError)


class NpzSource(BaseSource):
    """An ``.npz`` archive; slashes in its names stay.

    Args:
        path: the archive; the header of every member is read.

    Raises:
        WeightsError: no archive, a member that is no array of numbers, or one whose length is not what its header says.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._archive = zipfile.ZipFile(path)
        except _DAMAGE as problem:
            raise WeightsError(f"{path} is a damaged or truncated npz archive: {problem}") from problem
        try:
            self._members: dict[str, zipfile.ZipInfo] = {}
            self._order: dict[str, str] = {}
            entries: dict[str, Entry] = {}
            for info in self._archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name in entries:
                    raise WeightsError(f"{path} holds {name!r} twice")
                entries[name], self._order[name] = self._header(info, name)
                self._members[name] = info
            self.entries = entries
        except BaseException:
            self._archive.close()
            raise

    def close(self) -> None:
        """Close the archive."""
        super().close()
        self._archive.close()

    def _header(self, info: zipfile.ZipInfo, name: str) -> tuple[Entry, str]:
        where = f"{self.path}: {name!r}"
        with self._opened(info, where) as file:
            shape, fortran, dtype = _array_header(file, where)
            start = file.tell()
        if dtype.hasobject:
            raise WeightsError(
                f"{where} holds Python objects (a pickle), which are not read; save plain arrays"
            )
        if dtype.kind == "V" and dtype.names is None and dtype.itemsize in _RAW:
            dtype = _RAW[dtype.itemsize]
        if dtype.kind not in "fiub" and dtype not in _RAW.values():
            raise WeightsError(f"{where} is {dtype}, expected numbers")
        entry = Entry(shape, dtype.newbyteorder("="))
        # Sizes are compared before anything is inflated: a small archive may claim to hold terabytes.
        if entry.nbytes != info.file_size - start:
            raise WeightsError(
                f"{where} takes {entry.nbytes} bytes as {dtype} of shape {shape}, the archive holds {info.file_size - start}"
            )
        return entry, ("F" if fortran else "C") + (">" if dtype.byteorder == ">" else "<")

    def _read(self, name: str) -> np.ndarray:
        entry, info, where = self.entries[name], self._members[name], f"{self.path}: {name!r}"
        raw = np.empty(entry.nbytes, np.uint8)
        with self._opened(info, where) as file:
            _array_header(file, where)
            done = 0
            while block := file.read(_BLOCK):
                if done + len(block) > raw.size:
                    raise WeightsError(f"{where} is longer than its header says")
                raw[done : done + len(block)] = np.frombuffer(block, np.uint8)
                done += len(block)
        if done != raw.size:
            raise WeightsError(f"{where} is truncated: {done} of {raw.size} bytes")
        order, bytes_first = self._order[name]
        array = raw.view(entry.dtype)
        if bytes_first == ">":
            array = array.byteswap(inplace=True)
        if order == "F":
            return np.ascontiguousarray(array.reshape(entry.shape[::-1]).T)
        return array.reshape(entry.shape)

    @contextlib.contextmanager
    def _opened(self, info: zipfile.ZipInfo, where: str) -> Iterator[Any]:
        try:
            with self._archive.open(info) as file:
                yield file
        except WeightsError:
            raise
        except _DAMAGE as problem:
            raise WeightsError(f"{where} is damaged: {problem}") from problem


def _array_header(file: zipfile.ZipExtFile, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version not in _VERSIONS:
        raise WeightsError(f"{where} is of npy version {version}, expected 1.0 or 2.0")
    shape, fortran, dtype = _VERSIONS[version](file)
    if any(side < 0 for side in shape) or math.prod(shape) > 1 << 62:
        raise WeightsError(f"{where} has the shape {shape}")
    return tuple(int(side) for side in shape), bool(fortran), dtype
