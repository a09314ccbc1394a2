"""EVA-02 and EVA02-AT against frozen arrays of timm's EVA-02: coordinate, rope, attention, block, tower.

timm knows no video: clips run through timm's own blocks, with token tables and ST-RoPE angles written out by hand.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.nn.dense import LayerNorm
from stvl.nn.pixels import TubeEmbed, normalise
from stvl.nn.positions import PositionTables
from stvl.ops.rotary import Rotary, rotate
from stvl.rope.schemes import AxialRope, STRope

from .compare import MEAN, STD, Arrays, VideoSizes, check, gap, part
from .mapping import half_split, video_block, video_tree
from .models import video_attention, video_encoder
from .models import video_block as block_module

SIZES = VideoSizes()
MODES = ("both", "learned", "rope", "none")


def rotary(scheme: AxialRope | STRope, frames: int) -> Rotary:
    coords = scheme.coords(frames, SIZES.side, SIZES.side, prefix=1)
    return Rotary(jnp.asarray(coords, jnp.float32), jnp.asarray(scheme.frequencies(SIZES.head), jnp.float32))


def tree(arrays: Arrays, mode: str) -> dict[str, Any]:
    weights = part(arrays, "weights")
    return video_tree(weights, SIZES.heads, weights["time"] if mode in ("both", "learned") else None)


def features(arrays: Arrays, mode: str, frames: np.ndarray, **fields: Any) -> np.ndarray:
    model = video_encoder(SIZES, mode, **fields)
    return np.asarray(jax.jit(model.apply)({"params": tree(arrays, mode)}, jnp.asarray(frames)))


def first_norm(arrays: Arrays, tokens: np.ndarray) -> jax.Array:
    params = video_block(part(arrays, "weights"), 0, SIZES.heads)["attention_norm"]
    return LayerNorm(1e-6).apply({"params": params}, jnp.asarray(tokens))


@pytest.mark.parametrize("mode", MODES)
def test_map_fills_every_parameter_and_no_other(video: Arrays, mode: str):
    frames = jnp.zeros((1, SIZES.frames, SIZES.image, SIZES.image, 3), jnp.uint8)
    model = video_encoder(SIZES, mode)
    wanted = jax.eval_shape(lambda: model.init(jax.random.key(0), frames))
    wanted = jax.tree.map(lambda x: x.shape, nn.meta.unbox(wanted)["params"])
    assert jax.tree.map(np.shape, tree(video, mode)) == wanted


def test_coordinates(video: Arrays):
    coords = AxialRope().coords(1, SIZES.side, SIZES.side, prefix=0)
    check("coordinate, timm grid", coords, video["out/image/coords"], 1e-6)


@pytest.mark.parametrize(
    ("source", "scheme", "frames"), [("image", AxialRope(), 1), ("video", STRope(), SIZES.frames)]
)
def test_angles(video: Arrays, source: str, scheme: AxialRope | STRope, frames: int):
    angles = scheme.coords(frames, SIZES.side, SIZES.side, prefix=0) @ scheme.frequencies(SIZES.head)
    # timm's own angles are f32.
    check(f"rope, {source} sine", np.sin(angles), video[f"out/{source}/sin"], 2e-6)
    check(f"rope, {source} cosine", np.cos(angles), video[f"out/{source}/cos"], 2e-6)


def test_rotation(video: Arrays):
    order = half_split(SIZES.head)
    turned = rotate(jnp.asarray(video["out/image/q"][..., order]), rotary(AxialRope(), 1))
    check("rope, turned queries", turned, video["out/image/q_turned"][..., order])


def test_one_frame_of_st_rope_turns_as_the_image_model(video: Arrays):
    order = half_split(SIZES.head)
    turned = rotate(jnp.asarray(video["out/image/q"][..., order]), rotary(STRope(), 1))
    check("rope, ST-RoPE at t = 0", turned, video["out/image/q_turned"][..., order])


def test_st_rope_with_time_stopped_turns_every_frame_as_the_image_model(video: Arrays):
    order, frames = half_split(SIZES.head), 3
    coords, frequencies = rotary(STRope(), frames)
    stopped = Rotary(coords.at[:, 0].set(0.0), frequencies)
    first, rest = np.split(video["out/image/q"], [1], axis=1)
    turned = rotate(
        jnp.asarray(np.concatenate([first, np.tile(rest, (1, frames, 1, 1))], axis=1)[..., order]), stopped
    )
    wanted_first, wanted_rest = np.split(video["out/image/q_turned"], [1], axis=1)
    wanted = np.concatenate([wanted_first, np.tile(wanted_rest, (1, frames, 1, 1))], axis=1)[..., order]
    check("rope, ST-RoPE with t stopped", turned, wanted)


@pytest.mark.parametrize("source", ["image", "video"])
def test_tokens(video: Arrays, source: str):
    frames = video["in/short"][:1] if source == "video" else video["in/short"][:1, :1]
    params = tree(video, "both" if source == "video" else "rope")
    x = TubeEmbed(SIZES.width, SIZES.patch).apply(
        {"params": params["stem"]}, normalise(jnp.asarray(frames), MEAN, STD)
    )
    places = PositionTables((SIZES.side, SIZES.side), SIZES.frames if source == "video" else 0)
    x = places.apply({"params": params["positions"]}, x).reshape(1, -1, SIZES.width)
    check(f"stem, {source} tokens", x, video[f"out/{source}/tokens"][:, 1:])


@pytest.mark.parametrize("impl", ["reference", "xla"])
@pytest.mark.parametrize(
    ("source", "scheme", "frames"), [("image", AxialRope(), 1), ("video", STRope(), SIZES.frames)]
)
def test_attention(video: Arrays, source: str, scheme: AxialRope | STRope, frames: int, impl: str):
    params = video_block(part(video, "weights"), 0, SIZES.heads)["attention"]
    x = first_norm(video, video[f"out/{source}/tokens"])
    out = video_attention(SIZES, impl).apply({"params": params}, x, rotary(scheme, frames))
    check(f"attention, {source}, {impl}", out, video[f"out/{source}/attention"])


@pytest.mark.parametrize(
    ("source", "scheme", "frames"), [("image", AxialRope(), 1), ("video", STRope(), SIZES.frames)]
)
def test_block(video: Arrays, source: str, scheme: AxialRope | STRope, frames: int):
    params = video_block(part(video, "weights"), 0, SIZES.heads)
    tokens = jnp.asarray(video[f"out/{source}/tokens"])
    out, _ = block_module(SIZES).apply(
        {"params": params}, tokens, jnp.zeros(()), rotary(scheme, frames), False
    )
    check(f"block, {source}", out, video[f"out/{source}/block"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clip", ["short", "long"])
def test_tower_on_clips(video: Arrays, mode: str, clip: str):
    frames, source = video[f"in/{clip}"], "video" if clip == "short" else "long"
    check(
        f"tower, {mode}, {frames.shape[1]} frames",
        features(video, mode, frames),
        video[f"out/{source}/{mode}/features"],
    )


@pytest.mark.parametrize("mode", MODES)
def test_one_frame_is_the_image_model(video: Arrays, mode: str):
    still = dict(video) | {"weights/time": np.zeros_like(video["weights/time"])}
    out = features(still, mode, video["in/short"][:1, :1])
    check(f"tower, {mode}, image model", out, video["out/image/features"])


def test_tower_of_float_frames_takes_them_as_normalised(video: Arrays):
    frames = ((video["in/short"] / 255.0 - MEAN) / STD).astype(np.float32)
    check("tower, float frames", features(video, "both", frames), video["out/video/both/features"])


def test_tower_with_remat_and_unroll(video: Arrays):
    out = features(video, "both", video["in/short"], remat="full", unroll=2)
    check("tower, remat and unroll", out, video["out/video/both/features"])


def test_tower_in_bfloat16_keeps_the_direction(video: Arrays):
    model = video_encoder(SIZES, "both").clone(dtype=jnp.bfloat16)
    out = jax.jit(model.apply)({"params": tree(video, "both")}, jnp.asarray(video["in/short"]))
    check("tower, bfloat16", out, video["out/video/both/features"], 0.05)


# The ladder bites: each fault of the map or of the scheme leaves the tolerances by orders of magnitude.


def test_interleaved_columns_without_the_permutation_are_found(video: Arrays):
    params = video_block(part(video, "weights"), 0, SIZES.heads, rotary=False)["attention"]
    x = first_norm(video, video["out/image/tokens"])
    out = video_attention(SIZES).apply({"params": params}, x, rotary(AxialRope(), 1))
    assert gap(np.asarray(out), video["out/image/attention"])[0] > 0.01


@pytest.mark.parametrize(
    ("name", "other"),
    [("mlp.fc1_g", "mlp.fc1_x"), ("attn.q_proj", "attn.v_proj"), ("norm1", "norm2")],
)
def test_exchanged_weights_are_found(video: Arrays, name: str, other: str):
    faulty = dict(video)
    for kind in ("weight", "bias"):
        a, b = (f"weights/blocks.1.{part}.{kind}" for part in (name, other))
        faulty[a], faulty[b] = video[b], video[a]
    assert gap(features(faulty, "both", video["in/short"]), video["out/video/both/features"])[0] > 0.01


@pytest.mark.parametrize(
    "rope",
    [STRope(reference_grid=14.0), STRope(base_time=1000.0), STRope(base_space=1000.0)],
    ids=["grid", "time", "space"],
)
def test_another_rotary_scheme_is_found(video: Arrays, rope: STRope):
    out = features(video, "both", video["in/short"], rope=rope)
    assert gap(out, video["out/video/both/features"])[0] > 1e-3


def test_reversed_time_is_found(video: Arrays):
    for mode, least in (("both", 0.01), ("learned", 0.01), ("rope", 0.01)):
        out = features(video, mode, video["in/short"][:, ::-1].copy())
        assert gap(out, video[f"out/video/{mode}/features"])[0] > least, mode
    out = features(video, "none", video["in/short"][:, ::-1].copy())
    check("tower, none, reversed frames", out, video["out/video/none/features"])
