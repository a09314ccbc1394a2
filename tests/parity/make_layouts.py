"""Writes the golden arrays of the weight layouts: a tiny file in each public naming, inputs, and what it computes.

Regenerate in an environment of its own (stvl and jax are not needed), from the root of the repository:

    pip install timm transformers open_clip_torch jaxtyping
    python -m tests.parity.make_layouts

EVA02-CLIP and CLIP come from open_clip and timm, EVA-CLIP's naming from timm's own converter of it, transformers' from
transformers, AVION and LaViLa from the twin of `public_twin`. Outputs are those of f64 runs.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import public_twin
from .compare import GOLDEN, Arrays, TextSizes, token_ids
from .public_models import (
    hf_activations,
    open_clip_activations,
    open_clip_model,
    randomise,
    tiny_clip,
    tiny_eva02,
    tiny_hf,
)
from .public_weights import TINY, avion, eva_clip, lavila
from .twin import tensors

Made = tuple[Arrays, Arrays]
#: open_clip's models whose names and shapes are kept: the published sizes.
PUBLISHED = ("EVA02-B-16", "EVA02-L-14", "EVA02-L-14-336", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """A clip of uint8 frames, and texts; image models take the first frame."""
    rng = np.random.default_rng(31)
    clip = rng.integers(0, 256, (2, TINY.frames, TINY.image, TINY.image, 3), np.uint8)
    sizes = TextSizes(context=TINY.context, vocabulary=TINY.vocabulary)
    return clip, token_ids(sizes, 3, seed=32)


def _open_clip(model: Any, seed: int) -> Made:
    clip, ids = inputs()
    state = randomise(model, seed)
    # The file's own tensors, before the model goes to f64.
    state = {name: array.copy() for name, array in state.items()}
    return state, open_clip_activations(model.double(), clip[:, 0], ids)


def eva_clip_through_timm() -> Made:
    """EVA-CLIP's names, which timm's own filter turns into those of its model."""
    import torch
    from timm.models.eva import checkpoint_filter_fn

    state, model = eva_clip(seed=42), tiny_eva02()
    clip, ids = inputs()
    given = {name: torch.from_numpy(array) for name, array in state.items()}
    image = checkpoint_filter_fn(
        {n: a for n, a in given.items() if n.startswith("visual.")}, model.visual.trunk
    )
    model.visual.trunk.load_state_dict(image, strict=True)
    text = {name.removeprefix("text."): a for name, a in given.items() if name.startswith("text.")}
    model.text.load_state_dict(text, strict=True)
    return state, open_clip_activations(model.double(), clip[:, 0], ids)


def _hf() -> Made:
    clip, ids = inputs()
    model = tiny_hf("quick_gelu")
    state = {name: array.copy() for name, array in randomise(model, 45).items()}
    return state, hf_activations(model.double(), clip[:, 0], ids)


def _twin(state: Arrays, run: Callable[..., dict[str, Any]], *options: bool) -> Made:
    clip, ids = inputs()
    found = run(tensors(state), clip, ids, *options)
    return state, {name: value.detach().numpy() for name, value in found.items()}


#: File -> layout, what makes it.
MAKERS: dict[str, tuple[str, Callable[[], Made]]] = {
    "eva02_open_clip": ("eva02-clip/open_clip", lambda: _open_clip(tiny_eva02(), 41)),
    "eva02_eva_clip": ("eva02-clip/eva-clip", eva_clip_through_timm),
    "clip_open_clip": ("vit-clip/open_clip", lambda: _open_clip(tiny_clip(), 43)),
    "clip_custom_text": ("vit-clip/custom-text", lambda: _open_clip(tiny_clip(True, custom_text=True), 44)),
    "clip_hf": ("vit-clip/hf", _hf),
    "avion_plain": ("avion/plain", lambda: _twin(avion(46, False, False), public_twin.avion, False)),
    "avion_released": (
        "avion/fast-conv1-flash-attn",
        lambda: _twin(avion(47, True, True), public_twin.avion, True),
    ),
    "lavila": ("timesformer/lavila", lambda: _twin(lavila(48), public_twin.lavila)),
}


def published_names() -> Arrays:
    """``name shape`` of every tensor of open_clip's published sizes."""
    import torch

    out = {}
    for name in PUBLISHED:
        with torch.device("meta"):
            state = open_clip_model(name, "meta").state_dict()
        lines = [f"{key} {' '.join(map(str, tensor.shape))}".strip() for key, tensor in state.items()]
        out[name] = np.array(lines)
    return out


def versions() -> np.ndarray:
    """``name version`` of everything that made the arrays."""
    from importlib.metadata import version

    names = ("torch", "timm", "transformers", "open_clip_torch", "numpy")
    return np.array([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])


def build(name: str) -> Arrays:
    """One golden file."""
    clip, ids = inputs()
    layout, make = MAKERS[name]
    state, outputs = make()
    out: Arrays = {"in/clip": clip, "in/ids": ids, "layout": np.array(layout), "versions": versions()}
    # Random weights are values of half precision; what a model brings itself (position_ids) keeps its dtype.
    for key, array in state.items():
        half = array.astype(np.float16)
        exact = array.dtype == np.float32 and np.array_equal(half.astype(np.float32), array)
        out[f"weights/{key}"] = half if exact else array
    return out | {f"out/{key}": array.astype(np.float32) for key, array in outputs.items()}


def main(folder: Path = GOLDEN) -> None:
    """Write the files and say how large they are."""
    for name in MAKERS:
        np.savez_compressed(folder / f"layout_{name}.npz", **build(name))
        print(f"layout_{name}.npz: {(folder / f'layout_{name}.npz').stat().st_size / 1000:.0f} kB")
    np.savez_compressed(folder / "layout_names.npz", **published_names())
    print(f"layout_names.npz: {(folder / 'layout_names.npz').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
