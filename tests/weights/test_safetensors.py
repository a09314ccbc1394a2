"""The own safetensors reader and writer against the safetensors package, in both directions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from stvl.core.errors import WeightsError
from stvl.weights.readers.safetensors_file import DTYPES, SafetensorsSource
from stvl.weights.source import Entry, Source, open_source
from stvl.weights.writer import write_safetensors

from .tools import raw, row, same_bits, save

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    lambda x: x != "__metadata__"
)
KINDS = st.sampled_from(sorted(DTYPES))


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    """Any bits of any dtype."""
    dtype = DTYPES[draw(KINDS)]
    shape = draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    count = int(np.prod(shape)) * dtype.itemsize
    bits = np.frombuffer(draw(st.binary(min_size=count, max_size=count)), np.uint8)
    return (bits & 1).astype(bool).reshape(shape) if dtype.kind == "b" else bits.view(dtype).reshape(shape)


@given(
    arrays=st.dictionaries(NAMES, tensors(), max_size=5),
    metadata=st.dictionaries(NAMES, NAMES, max_size=2),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_bit_by_bit(
    tmp_path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]
):
    path = save(tmp_path / "x.safetensors", arrays, metadata)
    with contextlib.closing(SafetensorsSource(path)) as source:
        assert set(source.entries) == set(arrays)
        assert source.metadata == metadata
        for name, array in arrays.items():
            assert source.entries[name] == Entry(array.shape, array.dtype)
            assert same_bits(source.read(name), array)


@given(arrays=st.dictionaries(NAMES, tensors(), max_size=5))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_package_reads_what_is_written(tmp_path: Path, arrays: dict[str, np.ndarray]):
    path = save(tmp_path / "x.safetensors", arrays, {"format": "pt"})
    found = dict(safetensors.deserialize(path.read_bytes()))
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert DTYPES[found[name]["dtype"]] == array.dtype
        assert tuple(found[name]["shape"]) == array.shape
        assert bytes(found[name]["data"]) == np.ascontiguousarray(array).tobytes()


@given(
    arrays=st.dictionaries(
        NAMES,
        npst.arrays(
            st.sampled_from(["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]),
            npst.array_shapes(min_dims=0, max_dims=3, min_side=0),
        ),
        max_size=5,
    )
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_the_package_writes_is_read(tmp_path: Path, arrays: dict[str, np.ndarray]):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(arrays, path, {"format": "np"})
    with contextlib.closing(open_source(path)) as source:
        assert source.metadata == {"format": "np"}
        assert set(source.entries) == set(arrays)
        assert all(same_bits(source.read(name), array) for name, array in arrays.items())


def test_a_file_by_hand(tmp_path: Path):
    """Two numbers, laid out by the format's description."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"a": row("BF16", [2], 0, 4)}, bytes([0x80, 0x3F, 0x00, 0xC0])))
    source = open_source(path)
    assert isinstance(source, Source)
    assert source.entries == {"a": Entry((2,), np.dtype(ml_dtypes.bfloat16))}
    assert source.entries["a"].nbytes == 4
    assert source.read("a").astype(float).tolist() == [1.0, -2.0]
    assert source.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    source.close()
    with pytest.raises(WeightsError, match=r"x\.safetensors is closed"):
        source.read("a")
    with pytest.raises(WeightsError, match=r"has no tensor 'b' \(there are: a\)"):
        source.read("b")


def test_wide_elements_come_first_and_are_aligned(tmp_path: Path):
    arrays = {
        "odd": np.ones(3, np.int8),
        "wide": np.ones(2),
        "half": np.ones(5, ml_dtypes.bfloat16),
        "last": np.zeros(1),
    }
    data = save(tmp_path / "x.safetensors", arrays).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + length])
    assert list(table) == ["wide", "last", "half", "odd"]
    assert length % 8 == 0
    assert all(entry["data_offsets"][0] % arrays[name].itemsize == 0 for name, entry in table.items())


def test_arrays_that_are_not_contiguous_or_of_this_byte_order(tmp_path: Path):
    big = np.arange(6, dtype=">f4").reshape(2, 3)
    items = [
        ("t", Entry((3, 2), np.dtype("<f4")), lambda: big.T.astype("<f4")),
        ("b", Entry((2, 3), big.dtype), lambda: big),
    ]
    write_safetensors(tmp_path / "x.safetensors", items)
    with contextlib.closing(SafetensorsSource(tmp_path / "x.safetensors")) as source:
        assert source.read("t").tolist() == big.T.tolist()
        assert source.read("b").tolist() == big.tolist()


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path):
    path = save(tmp_path / "x.safetensors", {"a": np.ones(100)})
    with contextlib.closing(SafetensorsSource(path)) as source:
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size - 8)
        with pytest.raises(WeightsError, match=r"ends inside 'a': 792 of 800 bytes"):
            source.read("a")


def one(name: str, entry: Entry, array: np.ndarray):
    return [(name, entry, lambda: array)]


F4 = np.dtype("f4")
WRONG_WRITES = {
    "shape": (
        one("a", Entry((2,), F4), np.ones(3, F4)),
        r"'a' was announced as float32 \(2,\), found float32 \(3,\)",
    ),
    "dtype": (
        one("a", Entry((2,), F4), np.ones(2)),
        r"'a' was announced as float32 \(2,\), found float64 \(2,\)",
    ),
    "twice": (2 * one("a", Entry((2,), F4), np.ones(2, F4)), "'a' is written twice"),
    "kept name": (
        one("__metadata__", Entry((2,), F4), np.ones(2, F4)),
        "a name that the format keeps for itself",
    ),
    "no such dtype": (
        one("a", Entry((2,), np.dtype("c16")), np.ones(2, "c16")),
        "'a' is complex128, which safetensors",
    ),
}


@pytest.mark.parametrize("case", WRONG_WRITES)
def test_a_failed_write_leaves_nothing(tmp_path: Path, case: str):
    items, message = WRONG_WRITES[case]
    with pytest.raises(WeightsError, match=message):
        write_safetensors(tmp_path / "x.safetensors", items)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_reader_leaves_the_old_file(tmp_path: Path):
    path = save(tmp_path / "x.safetensors", {"a": np.ones(3)})
    before = path.read_bytes()

    def broken() -> np.ndarray:
        raise WeightsError("the source broke off")

    items = [*one("a", Entry((3,), np.dtype("f8")), np.zeros(3)), ("b", Entry((1,), F4), broken)]
    with pytest.raises(WeightsError, match="broke off"):
        write_safetensors(path, items)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
