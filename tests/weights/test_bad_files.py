"""Spoilt indices, archives and folders: each is refused with an error that says why; nothing in them is run."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stvl.core.errors import WeightsError
from stvl.weights.source import open_source

from .tools import save

F4 = np.dtype("f4")


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


SHARDS = {
    "a.safetensors": {"x": np.ones(2, F4)},
    "b.safetensors": {"y": np.zeros(3, F4), "z": np.ones(1, F4)},
}
GOOD = {"x": "a.safetensors", "y": "b.safetensors", "z": "b.safetensors"}
INDICES: dict[str, tuple[object, str]] = {
    "missing shard": (
        {**GOOD, "z": "c.safetensors"},
        r"names the shard 'c.safetensors' for 'z' .* it is not there",
    ),
    "wrong shard": (
        {**GOOD, "z": "a.safetensors"},
        "says that 'z' is in 'a.safetensors': it is in 'b.safetensors'",
    ),
    "no such key": ({**GOOD, "w": "a.safetensors"}, "says that 'w' is in 'a.safetensors': it is in none"),
    "key not listed": (
        {"x": "a.safetensors", "y": "b.safetensors"},
        "does not list 'z', which is in 'b.safetensors'",
    ),
    "path out of the folder": (
        {**GOOD, "x": "../a.safetensors"},
        "puts 'x' into '../a.safetensors', expected the name",
    ),
    "absolute path": ({**GOOD, "x": "/a.safetensors"}, "puts 'x' into '/a.safetensors', expected the name"),
    "numbers": ({"x": 3}, "is no index: it needs a weight_map"),
    "a list": ([], "is no index: it needs a weight_map"),
    "nothing": ({}, "is an index of no tensors"),
}


def shards(folder: Path, weight_map: object) -> Path:
    for name, arrays in SHARDS.items():
        save(folder / name, arrays)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


@pytest.mark.parametrize("case", INDICES)
def test_a_spoilt_index(tmp_path: Path, case: str):
    weight_map, message = INDICES[case]
    shards(tmp_path, weight_map)
    with pytest.raises(WeightsError, match=message):
        open_source(tmp_path)


def test_spoilt_shards(tmp_path: Path):
    path = shards(tmp_path, GOOD)
    save(tmp_path / "a.safetensors", {"x": np.ones(2, F4), "y": np.ones(3, F4)})
    with pytest.raises(WeightsError, match=r"'y' is in two shards, 'a.safetensors' and 'b.safetensors'"):
        open_source(path)
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"a\.safetensors is empty"):
        open_source(tmp_path)
    path.write_text('{"weight_map": {"x": "a", "x": "b"}}')
    with pytest.raises(WeightsError, match=r"index\.json is no JSON: 'x' comes twice"):
        open_source(path)


def objects(path: Path) -> None:
    # Written as numpy would with pickles allowed; the pickle in it makes a folder when it is run.
    header = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117)
        + b"\n"
    )
    code = b"cos\nmkdir\n(S'" + os.fsencode(path.parent / "ran") + b"'\ntR."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header + code)


def bomb(path: Path) -> None:
    header = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,)}".ljust(117)
        + b"\n"
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header + bytes(16))


def flipped(path: Path) -> None:
    """An array with one byte of its numbers changed, which the archive's checksum tells."""
    np.savez(path, a=np.arange(100.0))
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(data)


def members(**texts: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in texts.items():
                archive.writestr(name.replace("__", "."), text)

    return make


def twice(path: Path) -> None:
    np.savez(path, a=np.ones(1))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.npy", archive.read("a.npy"))


OTHERS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "npz of objects": ("x.npz", objects, r"'a' holds Python objects \(a pickle\)"),
    "npz that claims terabytes": (
        "x.npz",
        bomb,
        r"'a' takes 399999999996 bytes as float32 .* the archive holds 16",
    ),
    "npz with a flipped bit": ("x.npz", flipped, "'a' is damaged: Bad CRC-32"),
    "npz of text": ("x.npz", lambda path: np.savez(path, a=np.array(["no"])), "'a' is <U2, expected numbers"),
    "npz with a name twice": ("x.npz", twice, "holds 'a' twice"),
    "npz without headers": ("x.npz", members(a__npy=b"nothing of numpy"), "'a' is damaged: the magic string"),
    "a zip of something else": (
        "x.npz",
        members(notes__txt=b"hello"),
        r"neither npz nor torch \(inside: notes.txt\)",
    ),
    "a cut zip": (
        "x.npz",
        lambda path: put(path, b"PK\x03\x04" + bytes(40)),
        "damaged or truncated zip archive",
    ),
    "npz named safetensors": (
        "x.safetensors",
        lambda path: (
            np.savez(path.with_suffix(".npz"), a=np.ones(1)),
            path.with_suffix(".npz").rename(path),
        ),
        "is named .safetensors, but it holds an npz archive",
    ),
    "HDF5": ("x.h5", lambda path: put(path, b"\x89HDF\r\n\x1a\n" + bytes(20)), "holds HDF5; safetensors"),
    "random bytes": ("x.pt", lambda path: put(path, bytes(range(1, 60))), "is of no known form"),
    "nothing there": ("x.pt", lambda path: None, "there is no file or folder"),
    "an empty folder": ("x", lambda path: path.mkdir(), "holds no weights: it has nothing"),
    "a folder of other things": (
        "x",
        lambda path: (path.mkdir(), (path / "notes.txt").write_text("hello"), (path / "sub").mkdir()),
        "holds no weights: it has notes.txt, sub/",
    ),
    "a folder of several files": (
        "x",
        lambda path: (path.mkdir(), save(path / "a.safetensors", {}), save(path / "b.safetensors", {})),
        "holds several weights, name one of them: a.safetensors, b.safetensors",
    ),
    "a run without a finished checkpoint": (
        "x",
        lambda path: (path / "checkpoints" / "7").mkdir(parents=True),
        r"holds no finished checkpoint \(there are: 7\)",
    ),
    "a damaged Orbax folder": (
        "x",
        lambda path: (path.mkdir(), (path / "_METADATA").write_text("{}")),
        "cannot be read by Orbax",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_spoilt_files(tmp_path: Path, case: str):
    name, spoil, message = OTHERS[case]
    path = tmp_path / name
    spoil(path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(WeightsError, match=message) as caught:
        source = open_source(path)
        [source.read(name) for name in source.entries]
    assert str(tmp_path) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
