"""Pickled arrays are read as data; everything else in a pickle is refused and nothing of it runs."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from stvl.core.errors import DataError
from stvl.eval.pickled import read_pickled_array

ARRAYS = {
    "float64": np.arange(6.0).reshape(2, 3),
    "columns first, big endian": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
    "booleans": np.array([[True, False]]),
    "empty": np.zeros((0, 3), np.float32),
    "larger than a frame": np.random.default_rng(0).random((300, 101)),
    "high bytes": np.arange(256, dtype=np.uint8).reshape(16, 16),
}


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_from_every_protocol(tmp_path, name, protocol):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(ARRAYS[name], protocol=protocol))
    found = read_pickled_array(path)
    np.testing.assert_array_equal(found, ARRAYS[name])
    assert found.dtype == ARRAYS[name].dtype and found.shape == ARRAYS[name].shape


def test_an_array_as_numpy_1_names_it(tmp_path):
    data = pickle.dumps(ARRAYS["float64"], protocol=2)
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "a.pkl").write_bytes(old)
    np.testing.assert_array_equal(read_pickled_array(tmp_path / "a.pkl"), ARRAYS["float64"])


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_runs(tmp_path, protocol):
    target, path = tmp_path / "harm", tmp_path / "a.pkl"
    for value in (Harmful(target), np.array([Harmful(target)], object), [Harmful(target)]):
        path.write_bytes(pickle.dumps(value, protocol=protocol))
        with pytest.raises(DataError, match=r"a.pkl is not read: .*nothing in it is run"):
            read_pickled_array(path)
        assert not target.exists()
    # The harm is real: Python's own loader does it.
    pickle.loads(pickle.dumps(Harmful(target), protocol=protocol))
    assert target.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "it holds the instruction EMPTY_DICT"),
        (3, "it holds int, no array"),
        ((np.zeros(2), np.zeros(2)), "it holds tuple, no array"),
        (np.array(["x"]), "of type 'U1', not of numbers"),
        (np.array([1j]), "of type 'c16', not of numbers"),
        (np.dtype("f4"), "it holds numpy.dtype, no array"),
    ],
)
def test_other_pickles_are_named(tmp_path, value, message):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol=4))
    with pytest.raises(DataError, match=message):
        read_pickled_array(tmp_path / "a.pkl")


def test_damaged_files(tmp_path):
    path = tmp_path / "a.pkl"
    data = pickle.dumps(ARRAYS["float64"], protocol=4)
    for broken in (b"", data[:-1], data[:40], b"no pickle", data[: len(data) // 2]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.pkl"):
            read_pickled_array(path)
    # A shape that does not fit the bytes.
    path.write_bytes(data.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"))
    with pytest.raises(DataError, match=r"shape \(2, 4\) and type float64 needs 64 bytes, it has 48"):
        read_pickled_array(path)
    with pytest.raises(DataError, match=r"there is no such file"):
        read_pickled_array(tmp_path / "none.pkl")
