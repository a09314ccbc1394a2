"""``stvl convert`` and ``stvl inspect`` from the command line, and what damaged files get to hear."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from stvl.cli.main import main
from stvl.pretrained.folder import open_folder
from stvl.weights.source import open_source
from tests.fixtures import TrainedRun, same
from tests.pretrained.twins import EMBEDDING, SIDE, WIDTH, State, eva02_shapes, save, state

TRUNK = "visual.trunk."


@pytest.fixture(scope="module")
def twin() -> State:
    return state(eva02_shapes(), np.float16)


@pytest.fixture(scope="module")
def twin_file(twin: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return save(tmp_path_factory.mktemp("twin") / "eva02.safetensors", twin)


def test_convert_says_what_it_did(twin_file, tmp_path, capsys):
    command = ["convert", str(twin_file), "--out", str(tmp_path / "w"), "--frames", "4", "--size", "96"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "EVA02 of width 128, depth 4, patch 12 at 48 px in the naming eva02-clip/open_clip" in out
    assert "-> EVA02-AT 128x4, patch 12, 96 pixels, frames 4, context 32, shared space 64" in out
    assert "resized: video/positions/space: places resampled to a grid of 8 x 8" in out
    assert "new: video/positions/time: P_t" in out
    assert f"ignored: {TRUNK}rope.bands" in out
    assert "note: rotary angles are computed for 8 x 8 places" in out
    assert f"written: {tmp_path / 'w'}" in out
    assert open_folder(tmp_path / "w").frames == 4
    assert main(command) == 1
    assert "is a weights folder already: choose another --out, or add --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_dry_run_prints_the_way_of_every_tensor(twin_file, tmp_path, capsys):
    assert main(["convert", str(twin_file), "--dry-run"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "mlp.fc1_g.weight" in line)
    assert line.split() == [
        f"{TRUNK}blocks.{{i}}.mlp.fc1_g.weight", "4", "x", "float16", "341x128", "->",
        "video/stack/layers/mlp/gate/kernel",
    ]  # fmt: skip
    assert f"taken: {len(eva02_shapes()) - 1} tensors" in out
    assert out.endswith("nothing was written (--dry-run)\n")
    assert main(["convert", str(twin_file), "--dry-run", "--out", str(tmp_path / "w")]) == 0
    assert list(tmp_path.iterdir()) == []


def test_export_gives_back_the_same_bits(twin, twin_file, tmp_path, capsys):
    assert main(["convert", str(twin_file), "--out", str(tmp_path / "w")]) == 0
    assert main(["convert", str(tmp_path / "w"), "--export", str(tmp_path / "out.safetensors")]) == 0
    assert f"{len(twin) - 1} tensors" in capsys.readouterr().out
    source = open_source(tmp_path / "out.safetensors")
    found = {name: source.read(name).tobytes() for name in source.entries}
    assert found == {name: array.tobytes() for name, array in twin.items() if "rope" not in name}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "give one of --out DIR and --export FILE.safetensors"),
        (["--out", "w", "--export", "x.safetensors"], "give one of --out DIR and --export"),
        (["--out", "w", "--drop"], "--naming and --drop belong to --export"),
        (["--export", "x.safetensors", "--frames", "4"], "it takes no --frames: convert first, then export"),
        (["--out", "w", "--preset", "eva02-at/l14"], "not eva02-at/l14"),
    ],
)
@pytest.mark.usefixtures("as_installed")
def test_options_that_contradict_each_other(argv, said, twin_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(twin_file), *argv]) == 1
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_becomes_a_weights_folder(tiny_run: TrainedRun, tmp_path, capsys):
    from stvl.train.encoders import load_run

    assert main(["convert", str(tiny_run.folder), "--out", str(tmp_path / "w")]) == 0
    assert "averaged parameters of the run 'tiny' at step 6" in capsys.readouterr().out
    folder, run = open_folder(tmp_path / "w"), load_run(tiny_run.folder)
    same(folder.load(), run.params)
    assert folder.model == tiny_run.experiment.model
    assert folder.transform == tiny_run.experiment.eval_transform
    assert folder.frames == tiny_run.experiment.loader.frames
    assert main(["convert", str(tiny_run.folder / "checkpoints/4"), "--out", str(tmp_path / "w4")]) == 0
    same(open_folder(tmp_path / "w4").load(), load_run(tiny_run.folder, step=4).params)
    out = tmp_path / "out.safetensors"
    words = ["convert", str(tiny_run.folder), "--export", str(out), "--naming", "eva02-clip/open_clip"]
    assert main(words) == 1
    assert "video/positions/time: an image model has no table P_t" in capsys.readouterr().err
    assert main([*words, "--drop"]) == 0
    source = open_source(out)
    tokens = source.read("text.token_embedding.weight")
    np.testing.assert_array_equal(tokens, np.asarray(run.params["text"]["tokens"]))


# stvl inspect


def test_inspect_prints_a_tree_with_blocks_in_one_line(twin_file, capsys):
    assert main(["inspect", str(twin_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert rows["fc1_g."] == [f"{size_of(4 * 341 * (WIDTH + 1) * 2)}", "kB"]
    weight = lines[lines.index(next(line for line in lines if line.strip().startswith("fc1_g."))) + 1]
    assert weight.split() == ["weight", "4", "x", "float16", "341x128", "349.18", "kB"]
    assert rows["logit_scale"] == ["float32", "scalar", "4", "B"]
    total = sum(int(np.prod(shape)) for shape in eva02_shapes().values())
    assert any(line.startswith(f"{len(eva02_shapes())} tensors, {total:,} values") for line in lines)
    assert (
        "this is EVA02 of width 128, depth 4, patch 12 at 48 px in the naming eva02-clip/open_clip"
        in lines[-2]
    )
    assert lines[-1] == f"{12 * SIDE} pixels, frames 1, context 32, shared space {EMBEDDING}"


def size_of(count: int) -> str:
    return f"{count / 1e3:.2f}"


def test_inspect_as_json(twin_file, capsys):
    assert main(["inspect", str(twin_file), "--json", "--verify"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {row["name"]: tuple(row["shape"]) for row in data["tensors"]} == eva02_shapes()
    assert data["layout"] == "eva02-clip/open_clip" and data["frames"] == 1
    assert data["bytes"] == sum(row["bytes"] for row in data["tensors"])
    assert len(data["sha256"]) == 64


def test_inspect_shows_the_tree_of_unknown_files_too(tmp_path, capsys):
    np.savez(
        tmp_path / "x.npz", **{"layers.0.w": np.zeros((2, 3)), "layers.1.w": np.zeros((2, 3), np.float32)}
    )
    assert main(["inspect", str(tmp_path / "x.npz")]) == 0
    out = capsys.readouterr().out
    assert "float64 2x3" in out and "float32 2x3" in out
    assert "no layout is known for these names:\n  no known layout" in out
    assert main(["inspect", str(tmp_path / "x.npz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layout"] is None


def test_inspect_knows_folders_and_runs_of_stvl(twin_file, tiny_run, tmp_path, capsys):
    assert main(["convert", str(twin_file), "--out", str(tmp_path / "w"), "--frames", "4"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "w"), "--verify"]) == 0
    out = capsys.readouterr().out
    assert "in the naming stvl/folder: EVA02-AT 128x4, patch 12" in out
    assert "all values are finite\nsha256 " in out
    weights = tmp_path / "w/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert main(["inspect", str(tmp_path / "w")]) == 0
    assert main(["inspect", str(tmp_path / "w"), "--verify"]) == 1
    assert "is not the expected file" in capsys.readouterr().err
    assert main(["inspect", str(tiny_run.folder)]) == 0
    assert "in the naming stvl/run: EVA02-AT 32x2, patch 8" in capsys.readouterr().out


def test_inspect_verify_finds_nan(twin, tmp_path, capsys):
    bad = save(tmp_path / "x.safetensors", {**twin, "logit_scale": np.full((), np.nan, np.float32)})
    assert main(["inspect", str(bad)]) == 0
    assert main(["inspect", str(bad), "--verify"]) == 1
    assert "logit_scale holds NaN or infinities" in capsys.readouterr().err


# Damaged files. Each mutation takes the bytes or the tensors of a good file.


def tensors(change: Callable[[State], Any]) -> Callable[[bytes, State, Path], None]:
    def make(data: bytes, twin: State, path: Path) -> None:
        copy = {name: array.copy() for name, array in twin.items()}
        change(copy)
        save(path, copy)

    return make


def raw(change: Callable[[bytes], bytes]) -> Callable[[bytes, State, Path], None]:
    return lambda data, twin, path: path.write_bytes(change(data)) and None


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes, State, Path], None]:
    def make(data: bytes, twin: State, path: Path) -> None:
        length = int.from_bytes(data[:8], "little")
        table = json.loads(data[8 : 8 + length])
        change(table)
        text = json.dumps(table).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return make


def put(name: str, array: np.ndarray) -> Callable[[State], None]:
    return lambda twin: twin.__setitem__(name, array)


def rename(old: str, new: str) -> Callable[[State], None]:
    return lambda twin: twin.__setitem__(new, twin.pop(old))


def fill(name: str, value: float) -> Callable[[State], None]:
    return lambda twin: twin[name].reshape(-1).__setitem__(0, value)


GATE = f"{TRUNK}blocks.1.mlp.fc1_g.weight"
HALF = np.float16
DAMAGES: dict[str, tuple[Callable[[bytes, State, Path], None], str]] = {
    "cut in the middle": (raw(lambda data: data[: len(data) // 2]), "is truncated"),
    "cut by a byte": (raw(lambda data: data[:-1]), "is truncated"),
    "cut in the header": (raw(lambda data: data[:100]), "is truncated, or no safetensors file"),
    "nothing": (raw(lambda data: b""), "is empty"),
    "four bytes": (raw(lambda data: data[:4]), "is truncated"),
    "a huge header": (raw(lambda data: (1 << 40).to_bytes(8, "little") + data[8:]), "its header would have"),
    "a header that is no JSON": (raw(lambda data: data[:9] + b"}" + data[10:]), "the header is no JSON"),
    "bytes at the end": (raw(lambda data: data + b"xyz"), "3 bytes at the end belong to no tensor"),
    "a failed download": (raw(lambda data: b"<html>404</html>"), "an HTML or XML page"),
    "a pointer of Git LFS": (
        raw(lambda data: b"version https://git-lfs.github.com/spec/v1\n"),
        "Git LFS pointer",
    ),
    "an unknown dtype": (header(lambda t: t[GATE].update(dtype="F17")), "unknown dtype"),
    "a negative shape": (header(lambda t: t[GATE].update(shape=[-1, 128])), "has the shape"),
    "a shape of other bytes": (header(lambda t: t[GATE].update(shape=[340, 128])), "data_offsets give it"),
    "overlapping tensors": (header(lambda t: t[GATE].update(data_offsets=[0, 87296])), "inside"),
    "a renamed tensor": (tensors(rename(GATE, f"{GATE}x")), f"{GATE}x"),
    "a missing tensor": (tensors(lambda twin: twin.pop(GATE)), GATE),
    "a tensor too many": (tensors(put("ema.decay", np.zeros(2, HALF))), "ema.decay"),
    "a missing layer": (
        tensors(lambda twin: [twin.pop(name) for name in list(twin) if ".blocks.1." in name]),
        f"{TRUNK}blocks.1.",
    ),
    "a transposed matrix": (tensors(lambda twin: put(GATE, twin[GATE].T.copy())(twin)), GATE),
    "a wrong width": (tensors(put(f"{TRUNK}norm.weight", np.ones(127, HALF))), f"{TRUNK}norm.weight"),
    "places of no square": (
        tensors(put(f"{TRUNK}pos_embed", np.ones((1, 16, WIDTH), HALF))),
        "which are no square",
    ),
    "NaN": (tensors(fill(GATE, np.nan)), GATE),
    "infinity": (tensors(fill("text.text_projection", np.inf)), "text.text_projection"),
    "whole numbers": (tensors(put(GATE, np.ones((341, WIDTH), np.int32))), GATE),
}


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_gets_one_clear_error_and_leaves_nothing(name, twin, twin_file, tmp_path, capsys):
    damage, said = DAMAGES[name]
    src = tmp_path / "damaged.safetensors"
    damage(twin_file.read_bytes(), twin, src)
    assert main(["convert", str(src), "--out", str(tmp_path / "deep/w"), "--frames", "4"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and said in captured.err
    assert "written" not in captured.out
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.safetensors"]


def test_there_are_twenty_damages_and_more():
    assert len(DAMAGES) >= 20


def test_a_pickle_is_never_run(tmp_path, capsys):
    # A protocol-2 pickle that would print, were it loaded.
    (tmp_path / "x.bin").write_bytes(b"\x80\x02cbuiltins\nprint\nX\x03\x00\x00\x00ran\x85R.")
    assert main(["convert", str(tmp_path / "x.bin"), "--out", str(tmp_path / "w")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


def test_bfloat16_on_request(twin_file, tmp_path):
    assert main(["convert", str(twin_file), "--out", str(tmp_path / "w"), "--dtype", "bfloat16"]) == 0
    kinds = {entry.dtype for entry in open_folder(tmp_path / "w").entries.values()}
    assert kinds == {np.dtype(ml_dtypes.bfloat16)}
