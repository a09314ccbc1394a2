"""Published sizes of open_clip in full, block by block: random weights, f32, image and text towers.

    pytest -m "torch and slow" tests/parity/test_weights_full.py -s

prints two tables a model. B/16 takes 2 GB of memory, L/14 5 GB.
"""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from stvl.models.activations import activations
from stvl.models.dual import DualEncoder
from stvl.pretrained.convert import convert
from stvl.pretrained.folder import open_folder
from stvl.pretrained.recognise import recognise

from .compare import Arrays, gap
from .layouts import run
from .public_models import open_clip_activations, open_clip_model, randomise

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.usefixtures("torch_installed")]


def table(title: str, ours: Arrays, theirs: Arrays) -> dict[str, tuple[float, float]]:
    """Print and return the relative error and the cosine of every activation."""
    print(f"\n{title}\n{'name':<20} {'max abs error':>13} {'relative':>9} {'1 - cosine':>10}")
    out = {}
    for name, wanted in theirs.items():
        found = ours[name]
        assert found.shape == wanted.shape, name
        error, cosine = gap(found, wanted)
        worst = np.abs(found.astype(np.float64) - wanted).max()
        print(f"{name:<20} {worst:>13.2e} {error:>9.1e} {1 - cosine:>10.1e}")
        out[name] = error, cosine
    return out


@pytest.mark.parametrize("name", ["EVA02-B-16", "EVA02-L-14", "ViT-B-16", "ViT-L-14"])
def test_towers_of_open_clip(name: str, tmp_path: Path):
    """Once with the tensors in memory, once through `stvl convert` of the file that they were saved to."""
    pytest.importorskip("timm")
    pytest.importorskip("open_clip")
    from safetensors.numpy import save_file

    model = open_clip_model(name)
    state = randomise(model, seed=17)
    rng = np.random.default_rng(18)
    images = rng.integers(0, 256, (2, 224, 224, 3), np.uint8)
    ids = np.zeros((2, 77), np.int32)
    for row, length in zip(ids, (7, 77), strict=True):
        row[:length] = rng.integers(1, 49406, length)
        row[[0, length - 1]] = 49406, 49407
    theirs = open_clip_activations(model, images, ids)
    found = recognise(state)
    assert found.size == name
    # The model's own tensors are the state's; let go of what is not needed before the parameters are stacked.
    del model
    gc.collect()
    hold(table(f"{name}, f32, {found.layout.name}", run(found, state, images[:, None], ids), theirs))
    whole = {key: np.array(value, order="C") for key, value in state.items()}
    save_file(whole, tmp_path / "model.safetensors")
    del state, whole
    gc.collect()
    convert(tmp_path / "model.safetensors", tmp_path / "weights")
    folder = open_folder(tmp_path / "weights")
    ours = activations(DualEncoder(folder.model), folder.load(), images[:, None], ids)
    hold(table(f"{name}, f32, converted", ours, theirs))


def hold(gaps: dict[str, tuple[float, float]]) -> None:
    """The bounds of every block."""
    for key, (error, cosine) in gaps.items():
        assert error < 1e-4 and cosine >= 0.99999, f"{key}: relative error {error:.1e}, cosine {cosine:.7f}"
