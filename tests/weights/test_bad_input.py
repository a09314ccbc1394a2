"""Spoilt files: each is refused with an error that says what is wrong with which tensor, and nothing is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stvl.core.errors import WeightsError
from stvl.weights.load import Target, plan_load, unplan
from stvl.weights.rules import Layout, Linear, Rule
from stvl.weights.source import Entry, open_source
from stvl.weights.writer import write_safetensors

from .tools import raw, row, save

F4 = np.dtype("f4")
ARRAYS = {
    "head.weight": np.arange(6, dtype=F4).reshape(2, 3),
    "head.bias": np.arange(2, dtype=F4),
    **{f"blocks.{i}.norm.weight": np.full(4, i, F4) for i in range(3)},
}
LAYOUT = Layout(
    "toy/layout",
    (
        Rule("head.weight", ("head/kernel",), (Linear(),)),
        Rule("head.bias", ("head/bias",)),
        Rule("blocks.{i}.norm.weight", ("layers/norm/scale",)),
    ),
)
TARGETS = {
    "head/kernel": Target((3, 2), F4),
    "head/bias": Target((2,), F4),
    "layers/norm/scale": Target((3, 4), F4),
}


def whole(folder: Path) -> bytes:
    return save(folder / "whole", ARRAYS).read_bytes()


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def table(path: Path, found: object, numbers: bytes = b"") -> None:
    put(path, raw(found, numbers))


def changed(**changes: np.ndarray | None) -> Callable[[Path], None]:
    """The whole file with other arrays; None takes one away. Two underscores stand for a dot."""
    made = dict(ARRAYS)
    for key, value in changes.items():
        name = key.replace("__", ".")
        made.pop(name, None)
        if value is not None:
            made[name] = value
    return lambda path: (save(path, made), None)[1]


def cut(where: float | int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        data = whole(path.parent)
        (path.parent / "whole").unlink()
        put(path, data[: where if isinstance(where, int) else int(len(data) * where)])

    return make


def edited(old: str, new: str) -> Callable[[Path], None]:
    """The whole file with a text of its table replaced by another of the same length."""

    def make(path: Path) -> None:
        data = whole(path.parent)
        (path.parent / "whole").unlink()
        assert len(old) == len(new)
        assert old.encode() in data
        put(path, data.replace(old.encode(), new.encode()))

    return make


NAN = np.array([0, np.nan], F4)
INF = np.array([[0, 1, 2], [3, -np.inf, np.inf]], F4)
FOUR = bytes(4)

#: What is done to a file, and what the error says.
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (lambda path: put(path, b""), "is empty"),
    "five bytes": (lambda path: put(path, bytes(5)), "truncated: 5 bytes"),
    "cut inside the table": (cut(60), "truncated, or no safetensors file: a header of .* bytes, and 52 bytes are left"),
    "cut inside the numbers": (cut(0.95), r"truncated: 'blocks.1.norm.weight' ends at byte 64 .* has 58"),
    "one byte short": (cut(-1), r"truncated: '.*' ends at byte 80 of the numbers, and the file has 79"),
    "bytes at the end": (
        lambda path: put(path, whole(path.parent) + b"xx") or (path.parent / "whole").unlink(),
        "2 bytes at the end belong to no tensor",
    ),
    "huge header": (lambda path: put(path, raw(b"{}", length=1 << 62)), "its header would have 4611686018427387904 bytes"),
    "header beyond the file": (lambda path: put(path, raw(b"{}", length=4000)), "a header of 4000 bytes, and 2 bytes"),
    "text named safetensors": (lambda path: put(path, b"my weights are elsewhere"), "its header would have .* bytes"),
    "Git LFS pointer": (
        lambda path: put(path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "only a Git LFS pointer",
    ),
    "a web page": (lambda path: put(path, b"<!DOCTYPE html><html>404</html>"), "an HTML or XML page"),
    "header is no JSON": (lambda path: put(path, raw(b"{'a': 1}")), "the header is no JSON"),
    "header is no UTF-8": (lambda path: put(path, raw(b'{"\xff": 1}')), "the header is no JSON"),
    "header is a list": (lambda path: put(path, raw(b"[1, 2]")), r"its header starts with b'\[1, 2\]'"),
    "header of a million brackets": (
        lambda path: put(path, raw(b'{"a":' + b"[" * 1_000_000)),
        "the header is no JSON",
    ),
    "NaN in the header": (lambda path: put(path, raw(b'{"a": NaN}')), "holds NaN, which is no JSON"),
    "a number of 5000 digits": (lambda path: put(path, raw(b'{"a": ' + b"9" * 5000 + b"}")), "the header is no JSON"),
    "duplicate key": (
        lambda path: put(path, raw(b'{"a": 1, "a": 2}')),
        "the header names 'a' twice",
    ),
    "metadata of numbers": (lambda path: table(path, {"__metadata__": {"n": 3}}), "__metadata__ maps strings to strings"),
    "metadata is a list": (lambda path: table(path, {"__metadata__": []}), "__metadata__ maps strings to strings"),
    "entry is a number": (lambda path: table(path, {"a": 3}), "'a' is described by dtype, shape and data_offsets"),
    "entry without a shape": (
        lambda path: table(path, {"a": {"dtype": "F32", "data_offsets": [0, 4]}}, FOUR),
        "'a' is described by dtype, shape and data_offsets",
    ),
    "entry with a field too many": (
        lambda path: table(path, {"a": {**row("F32", [1], 0, 4), "strides": [1]}}, FOUR),
        "'a' is described by dtype, shape and data_offsets",
    ),
    "unknown dtype": (
        lambda path: table(path, {"a": row("F33", [1], 0, 4)}, FOUR),
        r"'a' has the unknown dtype 'F33' \(did you mean 'F3?2?.*'\?\)",
    ),
    "dtype is a list": (lambda path: table(path, {"a": row([], [1], 0, 4)}, FOUR), "'a' has the unknown dtype"),  # type: ignore[arg-type]
    "negative offset": (lambda path: table(path, {"a": row("F32", [1], -4, 0)}, FOUR), r"'a' has the data_offsets \[-4,"),
    "offsets reversed": (lambda path: table(path, {"a": row("F32", [1], 4, 0)}, FOUR), r"'a' has the data_offsets \[4, 0\]"),
    "offsets are fractions": (lambda path: table(path, {"a": row("F32", [1], 0.0, 4.0)}, FOUR), "'a' has the data_offsets"),
    "offset is true": (lambda path: table(path, {"a": row("U8", [1], False, True)}, b"1"), "'a' has the data_offsets"),
    "negative side": (lambda path: table(path, {"a": row("F32", [-1, -1], 0, 4)}, FOUR), r"'a' has the shape \[-1, -1\]"),
    "shape is a number": (lambda path: table(path, {"a": row("F32", 1, 0, 4)}, FOUR), "'a' has the shape 1"),
    "shape overflows": (
        lambda path: table(path, {"a": row("F32", [1 << 40, 1 << 40, 0], 0, 0)}),
        "'a' has the shape",
    ),
    "shape does not fill the bytes": (
        lambda path: table(path, {"a": row("F32", [2], 0, 4)}, FOUR),
        r"'a' takes 8 bytes as F32 of shape \(2,\), data_offsets give it 4",
    ),
    "overlap": (
        lambda path: table(path, {"a": row("F32", [2], 0, 8), "b": row("F32", [1], 4, 8)}, bytes(8)),
        "'b' begins at 4, inside 'a', which ends at 8",
    ),
    "hole": (
        lambda path: table(path, {"a": row("F32", [1], 0, 4), "b": row("F32", [1], 8, 12)}, bytes(12)),
        "4 bytes before 'b' belong to no tensor",
    ),
    "hole at the start": (lambda path: table(path, {"a": row("F32", [1], 4, 8)}, bytes(8)), "4 bytes before 'a'"),
    "renamed key": (
        changed(head__bias=None, head__bais=ARRAYS["head.bias"]),
        r"(?s)left over in the file \(1\):\s+head.bais \(2,\) \(near 'head.bias', which is missing\).*"
        r"missing in the file \(1\):\s+head.bias for head/bias \(near 'head.bais', which is left over\)",
    ),
    "renamed in its bytes": (edited("head.weight", "haed.weight"), r"haed.weight \(2, 3\) \(near 'head.weight'"),
    "extra key": (changed(extra=np.ones(1, F4)), r"left over in the file \(1\):\s+extra \(1,\)"),
    "missing key": (changed(head__weight=None), r"missing in the file \(1\):\s+head.weight for head/kernel"),
    "missing layer": (
        changed(blocks__1__norm__weight=None),
        r"(?s)blocks.\{i\}: the file has 2 layers \(0, 2\), the model 3 \(0-2\); missing: 1.*blocks.1.norm.weight for",
    ),
    "layer too many": (
        changed(blocks__3__norm__weight=np.ones(4, F4)),
        r"(?s)too many: 3.*blocks.3.norm.weight \(4,\), the model has layers 0-2",
    ),
    "layer with a leading zero": (changed(blocks__01__norm__weight=np.ones(4, F4)), r"blocks.01.norm.weight \(4,\)"),
    "wrong shape": (
        changed(head__bias=np.ones(3, F4)),
        r"of another shape \(1\):\s+head.bias \(3,\) for head/bias: there it is \(3,\), the model has \(2,\)",
    ),
    "transposed": (
        changed(head__weight=np.ones((3, 2), F4)),
        r"head.weight \(3, 2\) for head/kernel: the model needs \(2, 3\)",
    ),
    "one layer of another shape": (changed(blocks__2__norm__weight=np.ones(5, F4)), r"blocks.2.norm.weight \(5,\)"),
    "integers": (changed(head__bias=np.ones(2, np.int32)), r"kind \(1\):\s+head.bias is int32, head/bias is float32"),
    "NaN": (changed(head__bias=NAN), r"head.bias holds NaN or infinities: 1 of 2 numbers, the first is nan at \(1,\)"),
    "infinity": (changed(head__weight=INF), r"head.weight holds NaN .*: 2 of 6 numbers, the first is -inf at \(1, 1\)"),
    "NaN in one layer": (
        changed(blocks__1__norm__weight=np.full(4, np.nan, F4)),
        "blocks.1.norm.weight holds NaN or infinities: 4 of 4",
    ),
}  # fmt: skip


def convert(path: Path, out: Path) -> None:
    """The way of a conversion: open, plan, write parameter by parameter."""
    source = open_source(path)
    try:
        plan = plan_load(LAYOUT, source, TARGETS)
        items = [
            (name, Entry(target.shape, target.dtype), lambda name=name: plan.read(name))
            for name, target in TARGETS.items()
        ]
        write_safetensors(out, items)
    finally:
        source.close()


@pytest.mark.parametrize("case", CASES)
def test_a_spoilt_file(tmp_path: Path, case: str):
    spoil, message = CASES[case]
    path, out = tmp_path / "source" / "model.safetensors", tmp_path / "out"
    path.parent.mkdir()
    out.mkdir()
    spoil(path)
    with pytest.raises(WeightsError, match=message) as caught:
        convert(path, out / "model.safetensors")
    assert str(path) in str(caught.value)
    assert list(out.iterdir()) == []


def test_the_whole_file_converts(tmp_path: Path):
    """The cases above fail for what was spoilt, not for the rest."""
    path = save(tmp_path / "a.safetensors", ARRAYS)
    convert(path, tmp_path / "b.safetensors")
    made = open_source(tmp_path / "b.safetensors")
    assert made.read("head/kernel").tolist() == ARRAYS["head.weight"].T.tolist()
    assert made.read("layers/norm/scale")[:, 0].tolist() == [0, 1, 2]
    params = {name: made.read(name) for name in made.entries}
    back = {name: read() for name, _, read in unplan(LAYOUT, params, open_source(path).entries)}
    assert back.keys() == ARRAYS.keys()
    assert all(np.array_equal(back[name], ARRAYS[name]) for name in back)


def test_long_lists_are_cut_with_their_count(tmp_path: Path):
    path = save(tmp_path / "x.safetensors", {**ARRAYS, **{f"more.{i}": np.ones(1, F4) for i in range(40)}})
    with pytest.raises(WeightsError, match=r"left over in the file \(40\)") as caught:
        plan_load(LAYOUT, open_source(path), TARGETS)
    assert len(re.findall(r"more\.\d+ \(1,\)", str(caught.value))) == 12
    assert "... and 28 more" in str(caught.value)
