"""Writing safetensors tensor by tensor: the table first, for shapes are known before numbers are read."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from stvl.core.errors import WeightsError
from stvl.weights.readers.safetensors_file import DTYPES, HEADER_LIMIT, METADATA
from stvl.weights.source import Entry

#: A tensor's name, what it is, and what reads it when its turn comes.
Item = tuple[str, Entry, Callable[[], np.ndarray]]

_CODES = {dtype: code for code, dtype in DTYPES.items()}


def write_safetensors(
    path: str | Path, items: Iterable[Item], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; memory holds one tensor at a time, and the file appears whole or not at all.

    Wider elements come first, so that every tensor is aligned to its element; otherwise the order is that of `items`.

    Args:
        path: the file; one that is there is replaced at the end.
        items: name, shape and dtype, and a function that gives the array.
        metadata: strings about the file.

    Raises:
        WeightsError: a name comes twice, a dtype that the format does not have, an array of another shape or dtype than
            announced. Nothing is left behind.
    """
    path = Path(path)
    listed = sorted(items, key=lambda item: -item[1].dtype.itemsize)
    header = _header(path, listed, metadata or {})
    # No name made by tempfile: it would be readable by its owner only, and the rename keeps that.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(header)
            for name, entry, read in listed:
                _bytes(path, name, entry, read()).tofile(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def _header(path: Path, items: list[Item], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {}
    if metadata:
        table[METADATA] = dict(metadata)
    end = 0
    for name, entry, _ in items:
        if name in table or name == METADATA:
            raise WeightsError(
                f"{path}: {name!r} is written twice, or is a name that the format keeps for itself"
            )
        code = _CODES.get(entry.dtype.newbyteorder("<") if entry.dtype.byteorder == ">" else entry.dtype)
        if code is None:
            raise WeightsError(f"{path}: {name!r} is {entry.dtype}, which safetensors does not have")
        begin, end = end, end + entry.nbytes
        table[name] = {"dtype": code, "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise WeightsError(f"{path}: a header of {len(text)} bytes, {HEADER_LIMIT} are allowed")
    return len(text).to_bytes(8, "little") + text


def _bytes(path: Path, name: str, entry: Entry, array: np.ndarray) -> np.ndarray:
    if array.shape != entry.shape or array.dtype.newbyteorder("=") != entry.dtype.newbyteorder("="):
        raise WeightsError(
            f"{path}: {name!r} was announced as {entry.dtype} {entry.shape}, found {array.dtype} {array.shape}"
        )
    code = DTYPES[_CODES[entry.dtype.newbyteorder("<") if entry.dtype.byteorder == ">" else entry.dtype]]
    # A view of bytes, for dtypes of ml_dtypes have no buffer of their own.
    return np.ascontiguousarray(array).astype(code, copy=False).reshape(-1).view(np.uint8)
