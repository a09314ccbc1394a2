"""Weights folders of tiny random models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from stvl.data.augment import EvalTransform
from stvl.data.text import ClipTokenizer
from stvl.models.clip_text import ClipTextConfig
from stvl.models.dual import DualEncoder, DualEncoderConfig
from stvl.models.timesformer.module import TimeSformerConfig
from stvl.models.vit.module import ViTConfig
from stvl.pretrained.folder import Contents, WeightsFolder, example_inputs, items_of, write_folder
from tests.fixtures import CONTEXT, PATCH, SIZE, random_params, shrunk_model

_SIZES: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "patch": PATCH, "image_size": SIZE}

#: Family -> a video tower for one frame.
TOWERS: dict[str, Any] = {
    "EVA02-AT": shrunk_model(frames=1, temporal_positions="learned").video,
    "CLIP ViT": ViTConfig(**_SIZES, frames=1),
    "TimeSformer": TimeSformerConfig(**_SIZES, frames=1),
}


def model_of(tower: Any, **changes: Any) -> DualEncoderConfig:
    """A dual encoder with this video tower, `changes` made to it."""
    return DualEncoderConfig(
        video=dataclasses.replace(tower, **changes),
        text=ClipTextConfig(width=16, depth=1, heads=2, context=CONTEXT),
        embedding=16,
    )


def random_tree(model: DualEncoderConfig, seed: int = 0, scale: float = 0.3) -> dict[str, Any]:
    """Random parameters, with temporal positions of zero as every image model has them."""
    inputs = [jnp.zeros(shape.shape, shape.dtype) for shape in example_inputs(model)]
    made = dict(random_params(DualEncoder(model), *inputs, seed=seed, scale=scale))
    table = made["video"].get("positions", {}).get("time")
    if table is not None:
        made["video"]["positions"]["time"] = jnp.zeros_like(table)
    return made


def write(
    out: Path, model: DualEncoderConfig, params: dict[str, Any], frames: int = 1, **facts: Any
) -> WeightsFolder:
    """A weights folder with the preprocessing of a source that squashes."""
    size = model.video.image_size
    source = {"name": "a.safetensors", "sha256": "ab" * 32, "layout": "small/own"}
    told = {"family": "small", "size": "tiny", "source": source}
    contents = Contents(
        model,
        ClipTokenizer(context_length=model.text.context),
        EvalTransform(size=size, resize="squash"),
        frames,
        told | facts,
    )
    return write_folder(out, contents, items_of(params))


def clips(frames: int, batch: int = 2, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Noise."""
    return np.random.default_rng(seed).integers(0, 256, (batch, frames, size, size, 3), np.uint8)
