"""CLIP's ViT and TimeSformer as video towers: against numpy, against the image model, and against each other."""

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
from stvl.models.timesformer.module import TimeSformerConfig
from stvl.models.vit.module import ViTConfig
from tests.fixtures import random_params

from .masked_twin import tower

VIT = ViTConfig(width=24, depth=2, heads=3, patch=4, image_size=12, frames=4, activation="quick_gelu")
TIMESFORMER = TimeSformerConfig(width=24, depth=2, heads=3, patch=4, image_size=12, frames=4)
VIDEO = np.random.default_rng(0).integers(0, 256, (2, 4, 12, 12, 3), np.uint8)

Config = ViTConfig | TimeSformerConfig


@functools.cache
def params(cfg: Config) -> dict[str, Any]:
    return random_params(cfg.tower(8, jnp.float32, None), jnp.zeros((1, 4, 12, 12, 3)), seed=3)


@functools.cache
def encoder(cfg: Config, dtype: str = "float32") -> Any:
    """A compiled ``(params, video) -> features``."""
    module = cfg.tower(8, dtype, None)
    return jax.jit(lambda p, video: module.apply({"params": p}, video))


def features(cfg: Config, video: np.ndarray = VIDEO, p: dict[str, Any] | None = None) -> np.ndarray:
    return np.asarray(encoder(cfg)(params(cfg) if p is None else p, video))


def silent(p: dict[str, Any]) -> dict[str, Any]:
    """Time as it starts: P_t at zero, and the attention over time without an output."""
    p = dict(p) | {"positions": dict(p["positions"]) | {"time": jnp.zeros_like(p["positions"]["time"])}}
    layers = dict(p["stack"]["layers"])
    if "time" in layers:
        layers["time"] = dict(layers["time"]) | {"out": jax.tree.map(jnp.zeros_like, layers["time"]["out"])}
    return p | {"stack": {"layers": layers}}


CASES = {
    "vit": (VIT, False, 1e-5),
    "vit, gelu, AVION's eps": (dataclasses.replace(VIT, activation="gelu", eps=1e-3), False, 1e-3),
    "vit, no P_t": (dataclasses.replace(VIT, temporal_positions="none"), False, 1e-5),
    "timesformer": (TIMESFORMER, True, 1e-5),
    "timesformer, no input norm": (
        dataclasses.replace(TIMESFORMER, input_norm=False, activation="gelu", eps=1e-3),
        True,
        0.0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_towers_are_those_of_numpy(case: str):
    cfg, divided, input_eps = CASES[case]
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params(cfg))
    wanted = tower(cfg, wide, VIDEO, divided, input_eps)
    with jax.default_matmul_precision("highest"):
        found = features(cfg)
    assert np.abs(found - wanted).max() < 5e-6 * np.abs(wanted).max()
    assert wanted.std(0).min() > 1e-3


@pytest.mark.parametrize("cfg", [VIT, dataclasses.replace(TIMESFORMER, eps=1e-5)], ids=["vit", "timesformer"])
def test_one_frame_of_a_new_video_model_is_the_image_model(cfg: Config):
    image = dataclasses.replace(VIT, temporal_positions="none")
    p = silent(params(cfg))
    layers = {k: v for k, v in p["stack"]["layers"].items() if k not in ("time", "time_norm")}
    reference = p | {"positions": {"space": p["positions"]["space"]}, "stack": {"layers": layers}}
    found, wanted = features(cfg, VIDEO[:, :1], p), features(image, VIDEO[:, :1], reference)
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())
    assert not np.allclose(features(cfg, VIDEO[:, :1]), wanted, atol=1e-2)
    assert not np.allclose(features(cfg, VIDEO, p), wanted, atol=1e-2)


@pytest.mark.parametrize("cfg", [VIT, TIMESFORMER], ids=["vit", "timesformer"])
def test_time_starts_silent_and_only_the_table_sees_the_order_of_frames(cfg: Config):
    init = jax.jit(dataclasses.replace(cfg, depth=1).tower(8, jnp.float32, None).init)
    start = nn.unbox(init(jax.random.key(0), jnp.zeros((1, 4, 12, 12, 3))))["params"]
    assert not np.asarray(start["positions"]["time"]).any()
    if cfg is TIMESFORMER:
        time = start["stack"]["layers"]["time"]
        assert not np.asarray(time["out"]["kernel"]).any()
        assert np.asarray(time["value"]["kernel"]).any()
    shuffled = VIDEO[:, [2, 0, 3, 1]]
    started = silent(params(cfg))
    np.testing.assert_allclose(features(cfg, shuffled, started), features(cfg, VIDEO, started), atol=1e-5)
    assert np.abs(features(cfg, shuffled) - features(cfg)).max() > 1e-3


def test_while_time_is_silent_patches_see_their_own_frame_only():
    cfg = dataclasses.replace(TIMESFORMER, depth=1)

    def tokens(video: np.ndarray) -> np.ndarray:
        """What comes out of the first block (b n d)."""
        _, kept = cfg.tower(8, jnp.float32, None).apply(
            {"params": silent(params(cfg))},
            jnp.asarray(video),
            capture_intermediates=lambda part, _: part.name == "layers",
            mutable="intermediates",
        )
        return np.asarray(kept["intermediates"]["stack"]["layers"]["__call__"][0][0][0])

    changed = VIDEO.copy()
    changed[:, 3] = 255 - changed[:, 3]
    moved = np.abs(tokens(changed) - tokens(VIDEO)).max(axis=(0, 2))
    places = cfg.side**2
    assert (moved[1 : 1 + 3 * places] == 0).all()
    assert moved[0] > 1e-3
    assert (moved[1 + 3 * places :] > 1e-3).all()


@pytest.mark.parametrize(("cfg", "remat"), [(VIT, "none"), (TIMESFORMER, "full")], ids=["vit", "timesformer"])
def test_gradients_are_finite_and_reach_every_parameter(cfg: Config, remat: str):
    cfg = dataclasses.replace(cfg, remat=remat, drop_path=0.5)
    module = cfg.tower(8, jnp.float32, None)

    @jax.jit
    def gradients(p: dict[str, Any]) -> Any:
        key = {"drop_path": jax.random.key(1)}
        return jax.grad(lambda p: module.apply({"params": p}, jnp.asarray(VIDEO), True, rngs=key)[0].sum())(p)

    for path, leaf in jax.tree.leaves_with_path(gradients(params(cfg))):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        # A bias of all keys shifts every score of a query alike.
        assert np.abs(leaf).max() > (-1 if "'key']['bias'" in name else 1e-7), name


@pytest.mark.parametrize("cfg", [VIT, TIMESFORMER], ids=["vit", "timesformer"])
def test_bf16_is_close_and_ends_in_f32(cfg: Config):
    half = encoder(cfg, "bfloat16")(params(cfg), VIDEO)
    assert half.dtype == jnp.float32
    plain = features(cfg)
    assert np.abs(np.asarray(half) - plain).max() < 0.1 * np.abs(plain).max()


@pytest.mark.parametrize("cfg", [VIT, TIMESFORMER], ids=["vit", "timesformer"])
def test_clips_of_other_lengths_read_the_table_in_between(cfg: Config):
    longer = np.repeat(VIDEO, 2, axis=1)
    assert np.isfinite(features(cfg, longer)).all()
    assert not np.allclose(features(cfg, longer), features(cfg, longer[:, ::-1]), atol=1e-3)


@pytest.mark.parametrize("cls", [ViTConfig, TimeSformerConfig])
def test_sizes_that_do_not_fit_are_refused(cls: type):
    with pytest.raises(ConfigError, match="width 30 cannot be divided into 4 heads"):
        cls(width=30, heads=4)
    with pytest.raises(ConfigError, match="image_size 225 is no multiple of patch 16"):
        cls(image_size=225)
    with pytest.raises(ConfigError, match="set image_size to the size of the frames"):
        small = cls(width=24, depth=1, heads=3, patch=4, image_size=12)
        small.tower(8, jnp.float32, None).init(jax.random.key(0), jnp.zeros((1, 4, 16, 16, 3)))
