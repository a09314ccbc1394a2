"""The text tower, the pair of towers, and the count of their FLOPs."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.errors import ConfigError
from stvl.models.clip_text import ClipTextConfig, TextEncoder
from stvl.models.dual import DualEncoder, DualEncoderConfig, unit
from stvl.models.eva02_at.module import EVA02ATConfig
from stvl.models.flops import block_flops, forward_flops, train_flops
from stvl.models.timesformer.module import TimeSformerConfig
from stvl.models.vit.module import ViTConfig
from stvl.nn.flops import divided_flops
from tests.fixtures import random_params

TEXT = ClipTextConfig(width=16, depth=2, heads=2, context=8, vocabulary=50)
VIDEO = EVA02ATConfig(width=16, depth=1, heads=2, patch=4, image_size=8, frames=2)
DUAL = DualEncoderConfig(video=VIDEO, text=TEXT, embedding=6)
IDS = np.array([[48, 5, 6, 49, 0, 0], [48, 7, 49, 0, 0, 0]], np.int32)


@functools.cache
def text() -> Any:
    """A compiled ``ids -> features`` with random parameters."""
    model = TextEncoder(TEXT, 6)
    p = random_params(model, jnp.asarray(IDS))
    return jax.jit(lambda ids: model.apply({"params": p}, ids))


def test_only_what_stands_before_the_end_counts():
    padded = IDS.copy()
    padded[0, 4:], padded[1, 3:] = 3, 4
    np.testing.assert_allclose(text()(padded), text()(IDS), atol=1e-6)
    changed = IDS.copy()
    changed[0, 2] = 9
    moved = np.abs(np.asarray(text()(changed) - text()(IDS))).max(1)
    assert moved[0] > 1e-2
    assert moved[1] == 0


def test_word_order_counts():
    swapped = IDS[:, [0, 2, 1, 3, 4, 5]]
    assert np.abs(np.asarray(text()(swapped) - text()(IDS)))[0].max() > 1e-3


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(ConfigError, match="texts of 9 tokens do not fit a context of 8"):
        TextEncoder(TEXT, 6).init(jax.random.key(0), jnp.zeros((1, 9), jnp.int32))


def test_text_width_must_divide_into_heads():
    with pytest.raises(ConfigError, match="width 16 cannot be divided into 3 heads"):
        dataclasses.replace(TEXT, heads=3)


@functools.cache
def dual(temperature: float | None) -> tuple[Any, Any]:
    model = DualEncoder(dataclasses.replace(DUAL, temperature=temperature))
    video = jnp.zeros((2, 2, 8, 8, 3), jnp.uint8)
    p = random_params(model, video, jnp.asarray(IDS))
    return p, jax.jit(lambda p, video, ids: model.apply({"params": p}, video, ids))


def test_features_are_unit_vectors_in_f32():
    p, run = dual(None)
    clips = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3), np.uint8)
    found = run(p, clips, IDS)
    assert found.temperature is None
    for side in (found.video, found.text):
        assert side.shape == (2, 6)
        assert side.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(side, axis=1), 1, atol=1e-6)


def test_learnable_temperature_starts_as_asked_and_is_clamped():
    model = DualEncoder(dataclasses.replace(DUAL, temperature=0.07))
    start = model.init(jax.random.key(0), method=lambda self: self.log_scale)["params"]["log_scale"]
    p, run = dual(0.07)
    clips = np.zeros((2, 2, 8, 8, 3), np.uint8)
    assert float(run({**p, "log_scale": start}, clips, IDS).temperature) == pytest.approx(0.07, rel=1e-5)
    p = {**p, "log_scale": jnp.asarray(9.0)}
    assert float(run(p, clips, IDS).temperature) == pytest.approx(0.01, rel=1e-5)


def test_unit_of_a_zero_vector_is_zero_with_a_finite_gradient():
    x = jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(unit(x), [[0, 0], [0.6, 0.8]], atol=1e-7)
    assert np.isfinite(jax.grad(lambda y: unit(y).sum())(x)).all()


def test_block_flops_by_hand():
    # 3 tokens of width 2, hidden 5: projections 2*3*4*4 = 96, scores 2*2*9*2 = 72, MLP 2*3*3*2*5 = 180.
    assert block_flops(3, 2, 5, 3) == 96 + 72 + 180


def test_divided_block_flops_by_hand():
    # 2 frames of 3 places: 7 tokens of width 2, hidden 5. Projections 2 * 2*7*4*4 = 448. Pairs seen: 6 patches * (1 + 2)
    # along time, 6 * (1 + 3) along space, the class token 7 twice: 56 pairs of 2 * 2 * 2 FLOPs. MLP 2*7*2*2*5 = 280.
    assert divided_flops(2, 3, 2, 5) == 448 + 56 * 8 + 280


@pytest.mark.parametrize("tower", [EVA02ATConfig, ViTConfig, TimeSformerConfig])
def test_forward_flops_agree_with_xla(tower: Any):
    # XLA counts a scan's body once, so the stack is one block deep.
    video = tower(width=128, depth=1, heads=2, patch=4, image_size=8, frames=2)
    cfg = dataclasses.replace(DUAL, video=video, text=dataclasses.replace(TEXT, width=128, depth=1))
    model = DualEncoder(cfg)
    inputs = jax.ShapeDtypeStruct((4, 2, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((4, 8), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))
    counted = jax.jit(model.apply).lower(shapes, *inputs).cost_analysis()["flops"]
    expected = 4 * sum(forward_flops(cfg, 2, 8).values())
    # XLA adds norms, softmax and the like, which matter at this size only.
    assert 0.9 * counted < expected < counted


def test_train_flops_are_three_forwards_and_the_similarities():
    towers = sum(forward_flops(DUAL, 2, 8).values())
    assert train_flops(DUAL, 2, 8, 10) == 30 * towers + 6 * 100 * 6


def test_b16_takes_17_5_billion_multiply_adds_an_image():
    # The figure of every ViT-B/16 at 224 pixels; SwiGLU at two thirds of the width costs what the plain MLP does.
    flops = forward_flops(DualEncoderConfig(video=EVA02ATConfig(), embedding=512), 1, 77)["video"]
    assert flops / 2 == pytest.approx(17.5e9, rel=0.02)


def test_divided_attention_is_cheaper_than_joint_attention_of_many_frames():
    joint, divided = (tower().flops(64) for tower in (ViTConfig, TimeSformerConfig))
    assert joint > 2 * divided
    # One frame has nothing to divide: the layers over time only add to it.
    assert ViTConfig().flops(1) < TimeSformerConfig().flops(1)
