"""A checkpoint as named tensors of known shape, read one at a time; `open_source` finds the reader by content."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from stvl.core.errors import WeightsError
from stvl.core.paths import AnyPath, on_disk, to_path

INDEX = ".index.json"
_ZIP, _PICKLE, _HDF5 = b"PK\x03\x04", b"\x80", b"\x89HDF"
_LFS = b"version https://git-lfs"
_FORMS = (
    "safetensors (one file, or a folder with an index), npz, torch .pt/.pth/.bin, and Orbax folders are read"
)
#: Readers of files map them into memory or jump about in them.
_LOCAL = "files of weights are read from a disk: copy it to one first (`gcloud storage cp`)"


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of a tensor before it is read.

    Attributes:
        shape: its axes.
        dtype: numpy's, or one of ml_dtypes (bfloat16, float8).
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


@runtime_checkable
class Source(Protocol):
    """An open checkpoint.

    Attributes:
        path: the file or folder.
        entries: shape and dtype by name, in the order of the file.
        metadata: what the file says about itself, and notes of the reader.
    """

    @property
    def path(self) -> AnyPath:
        """Named in errors."""
        ...

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What there is."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """What is said about it."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor, read from disk now.

        Raises:
            WeightsError: there is no such tensor, or its bytes cannot be read.
        """
        ...

    def sha256(self) -> str:
        """Hash of the file; of several files, the hash of their ``sha256sum`` listing in the order of names."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def open_source(path: str | AnyPath) -> Source:
    """Open a checkpoint; only its table of contents is read.

    ==================================================  =================================
    ``*.safetensors``                                   one file
    ``*.safetensors.index.json``, a folder with one     shards
    a folder with exactly one ``*.safetensors``         that file
    ``*.npz``                                           numpy's archive, without pickles
    ``*.pt``, ``*.pth``, ``*.bin``                      torch, weights only (extra ``torch``)
    an Orbax folder, a run folder of ``stvl train``     the newest whole checkpoint
    ==================================================  =================================

    The last row may lie in a bucket (``gs://BUCKET/...``).

    Raises:
        WeightsError: nothing is there, it is of no known form, or its table of contents is damaged.
        ConfigError: anything but an Orbax folder in a bucket.
    """
    path = to_path(path)
    try:
        if path.is_dir():
            return _open_folder(path)
        if path.is_file():
            return _open_file(on_disk(path, _LOCAL))
    except OSError as problem:
        raise WeightsError(f"{path} cannot be read: {problem}") from problem
    raise WeightsError(f"there is no file or folder {str(path)!r}")


def _open_file(path: Path) -> Source:
    from stvl.weights.readers.npz import NpzSource
    from stvl.weights.readers.safetensors_file import SafetensorsSource
    from stvl.weights.readers.shards import ShardedSource
    from stvl.weights.readers.torch_file import TorchSource

    if path.name.endswith(INDEX):
        return ShardedSource(path)
    form = _form(path)
    if path.suffix == ".safetensors":
        if form not in ("safetensors", ""):
            raise WeightsError(f"{path} is named .safetensors, but it holds {form}")
        return SafetensorsSource(path)
    if form == "safetensors":
        return SafetensorsSource(path)
    if form == "an npz archive":
        return NpzSource(path)
    if form == "a torch file":
        return TorchSource(path)
    if form:
        raise WeightsError(f"{path} holds {form}; {_FORMS}")
    found = "is empty" if not path.stat().st_size else "is of no known form (or damaged at its start)"
    raise WeightsError(f"{path} {found}; {_FORMS}")


def _form(path: Path) -> str:
    """What the first bytes of a file say; nothing where they say nothing."""
    with open(path, "rb") as file:
        head = file.read(256)
    if head.startswith(_LFS):
        return "only a Git LFS pointer: the weights were never downloaded (`git lfs pull`)"
    if head.lstrip()[:1] == b"<":
        return "an HTML or XML page, as a failed download leaves it"
    if head.startswith(_ZIP):
        return _zip_form(path)
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(_HDF5):
        return "HDF5"
    if head.startswith(_PICKLE):
        return "a torch file"
    return ""


def _zip_form(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as problem:
        raise WeightsError(f"{path} is a damaged or truncated zip archive: {problem}") from problem
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return "a torch file"
    if names and all(name.endswith(".npy") for name in names):
        return "an npz archive"
    shown = ", ".join(names[:4]) or "nothing"
    return f"a zip archive that is neither npz nor torch (inside: {shown})"


def _open_folder(path: AnyPath) -> Source:
    from stvl.weights.readers.orbax import OrbaxSource, find_state
    from stvl.weights.readers.safetensors_file import SafetensorsSource
    from stvl.weights.readers.shards import ShardedSource

    indices = sorted(path.glob(f"*.safetensors{INDEX}"))
    if len(indices) == 1:
        return ShardedSource(on_disk(indices[0], _LOCAL))
    files = sorted(path.glob("*.safetensors"))
    if not indices and len(files) == 1:
        return SafetensorsSource(on_disk(files[0], _LOCAL))
    if indices or files:
        names = ", ".join(item.name for item in [*indices, *files][:8])
        raise WeightsError(f"{path} holds several weights, name one of them: {names}")
    state = find_state(path)
    if state is not None:
        return OrbaxSource(state)
    names = sorted(item.name + "/" * item.is_dir() for item in path.iterdir())
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    raise WeightsError(f"{path} holds no weights: it has {shown or 'nothing'}; {_FORMS}")
