"""torch's own files through the reader: values, wrappers, and pickles that are refused; resizes against torch's."""

from __future__ import annotations

import argparse
import collections
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from stvl.core.errors import WeightsError
from stvl.weights.resize import resample_places, resample_times, resize_matrix
from stvl.weights.source import Entry, open_source

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("torch_installed")]


def state() -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    weight = torch.randn(3, 4)
    return {
        "a.weight": weight,
        "a.tied": weight,
        "a.half": torch.randn(5).bfloat16(),
        "a.turned": torch.randn(4, 3).t(),
        "a.part": torch.randn(10, 2)[3:5],
        "a.steps": torch.tensor(7),
        "a.mask": torch.tensor([True, False]),
    }


def save(path: Path, found: Any, **options: Any) -> Path:
    import torch

    torch.save(found, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_values_and_dtypes(tmp_path: Path, zipped: bool):
    import torch

    tensors = state()
    if zipped:  # the format from before torch 1.6 has no float8
        tensors["a.small"] = torch.randn(5).to(torch.float8_e4m3fn)
    path = save(tmp_path / "x.bin", collections.OrderedDict(tensors), _use_new_zipfile_serialization=zipped)
    source = open_source(path)
    assert source.entries["a.half"] == Entry((5,), np.dtype(ml_dtypes.bfloat16))
    assert not zipped or source.entries["a.small"].dtype == ml_dtypes.float8_e4m3fn
    assert source.entries["a.steps"] == Entry((), np.dtype("i8"))
    assert source.metadata == {"torch_container": "the file itself"}
    for name, tensor in tensors.items():
        found = source.read(name)
        assert found.flags.c_contiguous
        assert found.shape == tuple(tensor.shape)
        assert np.array_equal(found.astype(np.float64), tensor.double().numpy())
    found = source.read("a.weight")
    found[:] = 0
    assert source.read("a.weight").any()  # a copy, not the file
    source.close()
    with pytest.raises(WeightsError, match="is closed"):
        source.read("a.weight")


def wrappers() -> dict[str, tuple[Any, str, str]]:
    """A file's content, where the model is in it, and the note."""
    import torch

    good, other = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    adam = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}
    return {
        "state_dict": ({"state_dict": good, "epoch": 5}, "state_dict", ""),
        "namespace": ({"state_dict": good, "args": argparse.Namespace(lr=1e-3, name=None)}, "state_dict", ""),
        "optimizer": ({"model": good, "optimizer": adam, "scaler": {"scale": torch.ones(1)}}, "model", ""),
        "average": ({"ema": other, "model": good}, "model", "'model' was taken, not 'ema'"),
        "only an average": ({"ema": good, "epoch": 1}, "ema", ""),
        "unknown beside an average": (
            {"mine": good, "model_ema": other},
            "mine",
            "'mine' was taken, not 'model_ema'",
        ),
        "two known": (
            {"model": other, "state_dict": good},
            "state_dict",
            "'state_dict' was taken, not 'model'",
        ),
        "deeper": ({"checkpoint": {"model": good}}, "checkpoint/model", ""),
        "tensor beside": (
            {"state_dict": good, "best": torch.tensor(0.5)},
            "state_dict",
            "'state_dict' was taken, not 'the file itself'",
        ),
        "flat with an average": (
            {**good, "ema": other},
            "the file itself",
            "'the file itself' was taken, not 'ema'",
        ),
        "plain beside tensors": ({**good, "_version": 2}, "the file itself", ""),
    }


@pytest.mark.parametrize("case", [
    "state_dict", "namespace", "optimizer", "average", "only an average", "unknown beside an average", "two known", "deeper",
    "tensor beside", "flat with an average", "plain beside tensors",
])  # fmt: skip
def test_the_model_is_found_in_its_wrapper(tmp_path: Path, case: str):
    content, place, note = wrappers()[case]
    source = open_source(save(tmp_path / "x.pth", content))
    assert list(source.entries) == ["w"]
    assert source.read("w").tolist() == [1, 1]
    assert source.metadata["torch_container"] == place
    assert source.metadata.get("torch_note", "") == note
    assert source.metadata.get("torch_ignored", "") == ("_version" if case == "plain beside tensors" else "")


class Code:
    """A pickle that makes a folder when it is run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def spoilt(case: str, folder: Path) -> Any:
    import torch

    good = {"w": torch.ones(2)}
    return {
        "code": {"state_dict": good, "x": Code(folder / "ran")},
        "code in the arguments": {"state_dict": good, "args": argparse.Namespace(x=Code(folder / "ran"))},
        "a module": torch.nn.Linear(2, 3),
        "two unknown": {"teacher": good, "student": good},
        "towers apart": {"model": {"visual": good, "text": good}},
        "a list": [torch.ones(2)],
        "numbers": {"epoch": 3},
        "sparse": {"w": torch.eye(3).to_sparse()},
    }[case]


MESSAGES = {
    "code": r"runs code when it is read, which is refused: it asks for (posix|nt|os)\.mkdir; .*safetensors",
    "code in the arguments": r"is refused: it asks for (posix|nt|os)\.mkdir",
    "a module": r"is refused: it asks for torch\.nn\.modules\.linear\.Linear",
    "two unknown": r"several dicts of tensors \('teacher', 'student'\)",
    "towers apart": r"several dicts of tensors \('model/visual', 'model/text'\)",
    "a list": "holds a list, expected a dict of tensors",
    "numbers": r"holds no dict of tensors \(inside: epoch\)",
    "sparse": "'w' is a tensor of torch.float32, torch.sparse_coo",
}


@pytest.mark.parametrize("case", MESSAGES)
def test_refused(tmp_path: Path, case: str):
    path = save(tmp_path / "x.pt", spoilt(case, tmp_path))
    with pytest.raises(WeightsError, match=MESSAGES[case]):
        open_source(path)
    assert not (tmp_path / "ran").exists()


def test_programs_and_damaged_files(tmp_path: Path):
    import torch

    torch.jit.trace(torch.nn.Linear(2, 3), torch.ones(1, 2)).save(tmp_path / "jit.pt")
    with pytest.raises(WeightsError, match=r"is a TorchScript program, not weights .*torch\.jit\.load"):
        open_source(tmp_path / "jit.pt")
    whole = save(tmp_path / "x.pt", state()).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"cut\.pt is a damaged or truncated zip archive"):
        open_source(tmp_path / "cut.pt")
    old = save(tmp_path / "old.pt", state(), _use_new_zipfile_serialization=False).read_bytes()
    (tmp_path / "cut.pt").write_bytes(old[: len(old) // 2])
    with pytest.raises(WeightsError, match=r"cut\.pt is damaged, or no file of weights"):
        open_source(tmp_path / "cut.pt")


def test_a_torch_that_runs_code_in_spite_of_weights_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    path = save(tmp_path / "x.pt", state())
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(WeightsError, match=r"is read with torch 2\.6 or newer, found 2\.5\.1\+cpu"):
        open_source(path)


@pytest.mark.parametrize(
    ("old", "new"), [((16, 16), (24, 24)), ((24, 24), (16, 16)), ((14, 14), (9, 13)), ((4, 4), (4, 5))]
)
def test_places_agree_with_torch(old: tuple[int, int], new: tuple[int, int]):
    import torch

    table = np.random.default_rng(0).normal(size=(old[0] * old[1], 6))
    grid = torch.from_numpy(table).reshape(1, *old, 6).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(grid, new, mode="bicubic", antialias=True, align_corners=False)
    found = resample_places(table, *new, source=old)
    np.testing.assert_allclose(found, want.permute(0, 2, 3, 1).reshape(-1, 6).numpy(), atol=1e-9)


@pytest.mark.parametrize("frames", [2, 3, 8, 16])
def test_times_agree_with_torch(frames: int):
    import torch

    table = np.random.default_rng(0).normal(size=(4, 6))
    grid = torch.from_numpy(table).T[None]
    want = torch.nn.functional.interpolate(grid, frames, mode="linear", align_corners=False)
    np.testing.assert_allclose(resample_times(table, frames), want[0].T.numpy(), atol=1e-12)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("old", "new"), [(14, 16), (16, 14), (8, 12), (12, 7)])
def test_matrices_without_antialias_agree_with_torch(old: int, new: int, method: str):
    import torch

    images = torch.eye(old, dtype=torch.float64).reshape(old, 1, old, 1).expand(old, 1, old, 2)
    want = torch.nn.functional.interpolate(images, (new, 2), mode=method, align_corners=False)[:, 0, :, 0].T
    np.testing.assert_allclose(resize_matrix(old, new, method, antialias=False), want.numpy(), atol=1e-9)
