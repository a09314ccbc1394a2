"""The video tower: what it shares with the image model, and what time changes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stvl.nn.attention
from stvl.core.errors import ConfigError
from stvl.models.eva02_at.module import EVA02ATConfig, VideoEncoder
from stvl.models.eva02_at.schemes import AnyRope, EachFrame
from stvl.ops.rotary import Rotary
from stvl.ops.rotary import rotate as rotate_heads
from stvl.rope.language import MRope, VideoRope, VRope
from stvl.rope.schemes import AxialRope, MixedRope, Rope1D, Split3DRope, STRope, TADRope
from tests.fixtures import random_params

MODES = ("learned", "rope", "both", "none")
CONFIG = EVA02ATConfig(width=32, depth=2, heads=2, patch=8, image_size=16, frames=4)
PLACES = CONFIG.side**2
VIDEO = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)


def config(mode: str = "both", **changes: Any) -> EVA02ATConfig:
    return dataclasses.replace(CONFIG, temporal_positions=mode, **changes)


@functools.cache
def params(time: float = 0.0) -> dict[str, Any]:
    """Parameters of ``both``, biases included, with a random P_t of that size."""
    made = random_params(VideoEncoder(CONFIG, 8), jnp.zeros((1, 4, 16, 16, 3)), seed=1, scale=0.2)
    made["positions"]["time"] *= 5 * time
    return made


@functools.cache
def encoder(cfg: EVA02ATConfig, dtype: str = "float32") -> Any:
    """A compiled ``(params, video) -> features``."""
    model = VideoEncoder(cfg, 8, jnp.dtype(dtype))
    return jax.jit(lambda p, video: model.apply({"params": p}, video))


def features(cfg: EVA02ATConfig, video: np.ndarray = VIDEO, time: float = 0.0) -> np.ndarray:
    return np.asarray(encoder(cfg)(params(time), video))


@pytest.mark.parametrize("mode", ["both", "rope", "learned"])
def test_one_frame_gives_the_image_model(mode):
    image = features(config("none"), VIDEO[:, :1])
    assert np.array_equal(features(config(mode), VIDEO[:, :1]), image)
    assert not np.allclose(image[0], image[1], atol=1e-3)


class Spy:
    """Stands for the attention op and keeps the turned queries and keys of the layers that it sees."""

    def __init__(self) -> None:
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, q: Any, k: Any, v: Any, *, rotary: Rotary, mask: Any, impl: Any) -> Any:
        turned = rotate_heads(q, rotary), rotate_heads(k, rotary)
        jax.debug.callback(lambda *qk: self.seen.append(tuple(map(np.asarray, qk))), *turned)
        return v


def attention_inputs(
    monkeypatch: pytest.MonkeyPatch, mode: str, video: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Turned q and k (b n h e) of the first layer."""
    spy = Spy()
    monkeypatch.setattr(stvl.nn.attention, "attention", spy)
    one = jax.tree.map(lambda leaf: leaf[:1], params()["stack"])
    model = VideoEncoder(config(mode, depth=1), 8)
    jax.block_until_ready(model.apply({"params": {**params(), "stack": one}}, jnp.asarray(video)))
    jax.effects_barrier()
    return spy.seen[0]


def test_zero_time_gives_every_frame_the_image_models_attention_inputs(monkeypatch):
    image = [attention_inputs(monkeypatch, "none", VIDEO[:, t : t + 1]) for t in range(4)]
    clip = attention_inputs(monkeypatch, "learned", VIDEO)
    moving = attention_inputs(monkeypatch, "both", VIDEO)
    for part in range(2):
        np.testing.assert_array_equal(clip[part][:, 0], image[0][part][:, 0])
        for t in range(4):
            frame = slice(1 + t * PLACES, 1 + (t + 1) * PLACES)
            np.testing.assert_allclose(clip[part][:, frame], image[t][part][:, 1:], atol=1e-5)
            same = np.allclose(moving[part][:, frame], image[t][part][:, 1:], atol=1e-3)
            assert same == (t == 0)


def test_without_temporal_positions_the_order_of_frames_does_not_matter():
    shuffled = VIDEO[:, [2, 0, 3, 1]]
    np.testing.assert_allclose(features(config("none"), shuffled), features(config("none")), atol=1e-5)
    # P_t at zero, as it starts, tells nothing either.
    np.testing.assert_allclose(features(config("learned"), shuffled), features(config("learned")), atol=1e-5)


@pytest.mark.parametrize(("mode", "time"), [("rope", 0.0), ("both", 0.0), ("both", 1.0), ("learned", 1.0)])
def test_temporal_positions_see_the_order_of_frames(mode, time):
    reversed_ = VIDEO[:, ::-1].copy()
    changed = features(config(mode), reversed_, time) - features(config(mode), VIDEO, time)
    assert np.abs(changed).max() > 1e-3


def test_only_modes_with_a_table_have_one():
    for mode in MODES:
        video = jnp.zeros((1, 4, 16, 16, 3))
        shapes = jax.eval_shape(VideoEncoder(config(mode), 8).init, jax.random.key(0), video)["params"]
        assert ("time" in shapes["positions"]) == (mode in ("learned", "both"))


def test_longer_clips_read_the_table_in_between():
    longer = np.concatenate([VIDEO, VIDEO], axis=1)
    assert np.isfinite(features(config("both"), longer, 1.0)).all()


def test_tubes_halve_the_frames():
    cfg = config("both", tube=2)
    shapes = jax.eval_shape(VideoEncoder(cfg, 8).init, jax.random.key(0), jnp.zeros((1, 4, 16, 16, 3)))[
        "params"
    ]
    assert shapes["positions"]["time"].value.shape == (2, 32)
    assert shapes["stem"]["kernel"].value.shape == (2, 8, 8, 3, 32)


def test_uint8_frames_are_normalised_inside():
    mean, std = np.array(CONFIG.mean), np.array(CONFIG.std)
    floats = ((VIDEO / 255 - mean) / std).astype(np.float32)
    np.testing.assert_allclose(features(CONFIG, floats), features(CONFIG), atol=1e-5)


def test_bf16_is_close_and_ends_in_f32():
    plain = features(CONFIG, time=1.0)
    half = encoder(CONFIG, "bfloat16")(params(1.0), VIDEO)
    assert half.dtype == jnp.float32
    assert np.abs(np.asarray(half) - plain).max() < 0.05 * np.abs(plain).max()
    shapes = jax.eval_shape(
        VideoEncoder(CONFIG, 8, jnp.bfloat16).init, jax.random.key(0), jnp.zeros((1, 4, 16, 16, 3))
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


WRONG = [
    ({"width": 30, "heads": 4}, "width 30 cannot be divided into 4 heads"),
    ({"image_size": 20}, "image_size 20 is no multiple of patch 8"),
    ({"width": 36, "heads": 2}, r"divisible by 4, found 18 \(nearest: 16 or 20\)"),
    ({"width": 36, "heads": 2, "temporal_positions": "none"}, "STRope .*divisible by 4, found 18"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_frames_of_another_size_are_refused():
    with pytest.raises(ConfigError, match="set image_size to the size of the frames"):
        VideoEncoder(CONFIG, 8).init(jax.random.key(0), jnp.zeros((1, 4, 24, 24, 3)))


def test_mlp_width_is_two_thirds_of_four_widths():
    assert (config(width=768, heads=12).mlp_hidden, config(width=1024, heads=16).mlp_hidden) == (2048, 2730)


ROPES: dict[str, AnyRope] = {
    "split": Split3DRope(shares=(2, 3, 3)),
    "1d": Rope1D(),
    "tad": TADRope(),
    "mrope": MRope(sections=(2, 3, 3)),
    "vrope": VRope(),
    "videorope": VideoRope(sections=(2, 3, 3)),
}


@pytest.mark.parametrize("name", ROPES)
def test_any_scheme_that_sees_time_turns_the_tower(name: str):
    rope = ROPES[name]
    image = features(config("none", rope=rope), VIDEO[:, :1])
    np.testing.assert_array_equal(features(config("rope", rope=rope), VIDEO[:, :1]), image)
    shuffled = VIDEO[:, [2, 0, 3, 1]]
    still, moving = config("none", rope=rope), config("rope", rope=rope)
    np.testing.assert_allclose(features(still, shuffled), features(still), atol=1e-5)
    assert np.abs(features(moving, shuffled) - features(moving)).max() > 3e-4
    assert np.abs(features(moving) - features(config("rope"))).max() > 3e-4


def test_st_rope_at_time_zero_has_the_angles_of_the_image_model():
    still, axial = EachFrame(scheme=STRope()), AxialRope()
    angles = still.coords(3, 4, 5, prefix=2) @ still.frequencies(16)
    np.testing.assert_array_equal(angles, axial.coords(3, 4, 5, prefix=2) @ axial.frequencies(16))


def test_split_rope_at_time_zero_leaves_its_pairs_for_time_alone():
    still = EachFrame(scheme=Split3DRope(shares=(2, 3, 3)))
    angles = still.coords(2, 3, 3, prefix=0) @ still.frequencies(16)
    assert not angles[:, :2].any()
    assert angles[:, 2:].any()


@pytest.mark.parametrize("rope", [AxialRope(), MixedRope()])
def test_a_scheme_of_space_alone_is_refused_as_a_sense_of_time(rope: AnyRope):
    with pytest.raises(ConfigError, match=r"Rope turns all frames alike, .*'both'.* set it to 'learned'"):
        config("both", rope=rope)
    assert config("learned", rope=rope).scheme == EachFrame(scheme=rope)


def test_a_projection_has_a_bias_where_it_is_asked_for():
    video = jnp.zeros((1, 4, 16, 16, 3))
    for bias in (False, True):
        module = VideoEncoder(config(projection_bias=bias), 8)
        shapes = jax.eval_shape(module.init, jax.random.key(0), video)["params"]
        assert ("bias" in shapes["projection"]) is bias
