"""Outputs of the parts of both towers: complete, in order, true, and free where nobody asks."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.models.activations import activations
from stvl.models.clip_text import ClipTextConfig
from stvl.models.dual import DualEncoder, DualEncoderConfig, VideoConfig
from stvl.models.eva02_at.module import EVA02ATConfig
from stvl.models.timesformer.module import TimeSformerConfig
from stvl.models.vit.module import ViTConfig
from tests.fixtures import random_params

SIZES: dict[str, Any] = {"width": 16, "depth": 3, "heads": 2, "patch": 4, "image_size": 8, "frames": 2}
TEXT = ClipTextConfig(width=16, depth=2, heads=2, context=8, vocabulary=50)
TOWERS = {
    "eva02-at": EVA02ATConfig(**SIZES),
    "vit, remat, unrolled": ViTConfig(**SIZES, remat="full", unroll=3),
    "timesformer": TimeSformerConfig(**SIZES),
}
CLIPS = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3), np.uint8)
IDS = np.array([[48, 5, 6, 49, 0, 0], [48, 7, 49, 0, 0, 0]], np.int32)
PARTS = ("stem", "embed", "blocks/0", "blocks/1", "blocks/2", "norm", "projection")


def made(video: VideoConfig) -> tuple[DualEncoder, Any]:
    model = DualEncoder(DualEncoderConfig(video=video, text=TEXT, embedding=6))
    return model, random_params(model, jnp.asarray(CLIPS), jnp.asarray(IDS))


@pytest.mark.parametrize("name", TOWERS)
def test_every_part_of_both_towers(name: str):
    model, params = made(TOWERS[name])
    found = activations(model, params, CLIPS, IDS)
    text = ("embed", "blocks/0", "blocks/1", "norm", "projection")
    assert list(found) == [f"video/{part}" for part in PARTS] + [f"text/{part}" for part in text]
    assert found["video/stem"].shape == (2, 2, 2, 2, 16)
    tokens = ("embed", "blocks/0", "blocks/1", "blocks/2")
    assert {found[f"video/{part}"].shape for part in tokens} == {(2, 9, 16)}
    assert found["video/norm"].shape == (2, 16)
    features = model.apply({"params": params}, jnp.asarray(CLIPS), jnp.asarray(IDS))
    for tower, wanted in (("video", features.video), ("text", features.text)):
        end = found[f"{tower}/projection"]
        np.testing.assert_allclose(end / np.linalg.norm(end, axis=1, keepdims=True), wanted, atol=1e-5)


@pytest.mark.parametrize("name", TOWERS)
def test_a_block_is_the_last_of_a_tower_that_ends_with_it(name: str):
    model, params = made(TOWERS[name])
    found = activations(model, params, video=CLIPS)
    assert not [part for part in found if part.startswith("text")]
    for depth in (1, 2):
        short = dataclasses.replace(model.config.video, depth=depth)
        stack = jax.tree.map(lambda leaf, depth=depth: leaf[:depth], params["video"]["stack"])
        cut = params | {"video": params["video"] | {"stack": stack}}
        ends = activations(DualEncoder(dataclasses.replace(model.config, video=short)), cut, video=CLIPS)
        assert f"video/blocks/{depth}" not in ends
        np.testing.assert_allclose(
            found[f"video/blocks/{depth - 1}"], ends[f"video/blocks/{depth - 1}"], atol=1e-5
        )
        assert np.abs(found[f"video/blocks/{depth}"] - ends[f"video/blocks/{depth - 1}"]).max() > 1e-2


def test_a_changed_block_is_the_first_that_differs():
    model, params = made(TOWERS["eva02-at"])
    before = activations(model, params, CLIPS)
    kernel = params["video"]["stack"]["layers"]["mlp"]["out"]["kernel"]
    params["video"]["stack"]["layers"]["mlp"]["out"]["kernel"] = kernel.at[1].multiply(2)
    after = activations(model, params, CLIPS)
    differ = [name for name in before if not np.array_equal(before[name], after[name])]
    assert differ[0] == "video/blocks/1"


def test_nothing_is_kept_where_nobody_asks():
    model, params = made(TOWERS["timesformer"])
    inputs = jnp.asarray(CLIPS), jnp.asarray(IDS)
    state = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    assert set(state) == {"params"}
    # The compiled program has one output a feature, and no stack of all blocks' tokens.
    text = jax.jit(lambda p, *x: model.apply({"params": p}, *x)).lower(params, *inputs).as_text()
    assert "tensor<2x6xf32>" in text
    assert "tensor<3x2x9x16xf32>" not in text
