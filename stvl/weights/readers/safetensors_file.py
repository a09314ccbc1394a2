"""The safetensors format: a JSON table, then the numbers; read by seeking, so that memory holds one tensor at a time.

    u64, little endian: n | n bytes of JSON | numbers

The JSON maps names to ``{"dtype", "shape", "data_offsets": [begin, end]}`` and ``__metadata__`` to strings. Offsets count
from the end of the JSON; tensors cover the rest of the file without gap or overlap.

Source: https://huggingface.co/docs/safetensors (the section "Format").
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from stvl.core.errors import WeightsError, nearest
from stvl.weights.readers.common import BaseSource
from stvl.weights.source import Entry

#: The format's names for what an element is; numbers are little endian.
DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "C64": np.dtype("<c8"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
METADATA = "__metadata__"
HEADER_LIMIT = 100_000_000
_FIELDS = {"dtype", "shape", "data_offsets"}
_AXES, _ELEMENTS = 32, 1 << 62


class SafetensorsSource(BaseSource):
    """A safetensors file.

    Args:
        path: the file; its table is read and checked, and its length compared with it.

    Raises:
        WeightsError: the file is no safetensors, is truncated, or its table contradicts itself; the tensor is named.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = threading.Lock()
        # Unbuffered and not mapped: pages of a mapped file would count as this process's memory.
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by close)
        try:
            self._start, table = _read_table(path, self._file)
            self.metadata = _metadata(path, table.pop(METADATA, {}))
            size = path.stat().st_size - self._start
            places = {name: _place(path, name, row) for name, row in table.items()}
            _check_cover(path, {name: place for name, (_, place) in places.items()}, size)
        except BaseException:
            self._file.close()
            raise
        ordered = sorted(places.items(), key=lambda item: item[1][1])
        self.entries = {name: entry for name, (entry, _) in ordered}
        self._begin = {name: place[0] for name, (_, place) in ordered}

    def close(self) -> None:
        """Close the file."""
        super().close()
        self._file.close()

    def _read(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        raw = np.empty(entry.nbytes, np.uint8)
        view = memoryview(raw)  # type: ignore[arg-type] (numpy arrays are buffers)
        done = 0
        with self._lock:
            self._file.seek(self._start + self._begin[name])
            while done < len(view):
                count = self._file.readinto(view[done:])
                if not count:
                    raise WeightsError(
                        f"{self.path} ends inside {name!r}: {done} of {entry.nbytes} bytes; it changed since it was opened"
                    )
                done += count
        return raw.view(entry.dtype).reshape(entry.shape)


def _read_table(path: Path, file: Any) -> tuple[int, dict[str, Any]]:
    size = path.stat().st_size
    if size == 0:
        raise WeightsError(f"{path} is empty")
    if size < 8:
        raise WeightsError(f"{path} is truncated: {size} bytes, and the length of the header alone takes 8")
    length = int.from_bytes(file.read(8), "little")
    if length > HEADER_LIMIT:
        raise WeightsError(
            f"{path} is no safetensors file: its header would have {length} bytes, {HEADER_LIMIT} are allowed"
        )
    if length > size - 8:
        raise WeightsError(
            f"{path} is truncated, or no safetensors file: a header of {length} bytes, and {size - 8} bytes are left"
        )
    text = b""
    while len(text) < length and (block := file.read(length - len(text))):
        text += block
    if text[:1] != b"{":
        raise WeightsError(
            f"{path} is no safetensors file: its header starts with {text[:8]!r}, expected '{{'"
        )
    try:
        table = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except _Refused as problem:
        raise WeightsError(f"{path}: the header {problem}") from None
    except (ValueError, RecursionError) as problem:
        raise WeightsError(f"{path}: the header is no JSON: {problem}") from problem
    return 8 + length, table


class _Refused(Exception):
    """A part of the table that JSON allows and the format does not."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise _Refused(f"names {twice!r} twice")
    return made


def _no_constant(text: str) -> NoReturn:
    raise _Refused(f"holds {text}, which is no JSON")


def _metadata(path: Path, found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise WeightsError(f"{path}: {METADATA} maps strings to strings, found {_short(found)}")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _place(path: Path, name: str, row: Any) -> tuple[Entry, tuple[int, int]]:
    """One line of the table: what the tensor is, and where its bytes are."""
    where = f"{path}: {name!r}"
    try:
        name.encode()
    except UnicodeEncodeError:
        raise WeightsError(f"{where} is no name: it holds half a Unicode pair") from None
    if not isinstance(row, dict) or set(row) != _FIELDS:
        raise WeightsError(f"{where} is described by dtype, shape and data_offsets, found {_short(row)}")
    if not isinstance(row["dtype"], str) or row["dtype"] not in DTYPES:
        raise WeightsError(
            f"{where} has the unknown dtype {_short(row['dtype'])}{nearest(str(row['dtype']), DTYPES)}"
        )
    shape, offsets = row["shape"], row["data_offsets"]
    if not _whole(shape) or len(shape) > _AXES or math.prod(max(side, 1) for side in shape) > _ELEMENTS:
        raise WeightsError(f"{where} has the shape {_short(shape)}, expected a list of whole numbers from 0")
    if not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise WeightsError(
            f"{where} has the data_offsets {_short(offsets)}, expected [begin, end] with 0 <= begin <= end"
        )
    entry = Entry(tuple(shape), DTYPES[row["dtype"]])
    if entry.nbytes != offsets[1] - offsets[0]:
        raise WeightsError(
            f"{where} takes {entry.nbytes} bytes as {row['dtype']} of shape {entry.shape}, "
            f"data_offsets give it {offsets[1] - offsets[0]}"
        )
    return entry, (offsets[0], offsets[1])


def _check_cover(path: Path, places: Mapping[str, tuple[int, int]], size: int) -> None:
    """Tensors follow each other without gap or overlap, and end where the file ends."""
    end, before = 0, ""
    for name, (begin, stop) in sorted(places.items(), key=lambda item: item[1]):
        if begin < end:
            raise WeightsError(f"{path}: {name!r} begins at {begin}, inside {before!r}, which ends at {end}")
        if begin > end:
            raise WeightsError(f"{path}: {begin - end} bytes before {name!r} belong to no tensor")
        if stop > size:
            raise WeightsError(
                f"{path} is truncated: {name!r} ends at byte {stop} of the numbers, and the file has {size} of them"
            )
        end, before = stop, name
    if end < size:
        raise WeightsError(f"{path}: {size - end} bytes at the end belong to no tensor")
