"""stvl against the live torch twin at sizes of its own, and the twin against the frozen arrays of timm."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.losses.infonce import InfoNCE
from stvl.models.clip_text import TextEncoder
from stvl.nn.attention import SelfAttention
from stvl.ops.rotary import Rotary
from stvl.rope.schemes import STRope

from . import twin
from .compare import Arrays, TextSizes, VideoSizes, check, part, text_weights, token_ids, video_weights
from .mapping import text_tree, video_block, video_tree
from .models import dual_encoder, text_config, video_encoder

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("torch_installed")]

VIDEO = VideoSizes(width=48, depth=2, heads=3, patch=3, image=18, frames=3, embedding=10)
TEXT = TextSizes(width=32, depth=3, heads=4, context=9, vocabulary=40, embedding=10)
MODES = ("both", "learned", "rope", "none")


def clips(rows: int, frames: int) -> np.ndarray:
    return np.random.default_rng(frames).integers(
        0, 256, (rows, frames, VIDEO.image, VIDEO.image, 3), np.uint8
    )


def parameters(weights: Arrays, mode: str) -> dict[str, Any]:
    return video_tree(weights, VIDEO.heads, weights["time"] if mode in ("both", "learned") else None)


@pytest.fixture(scope="module")
def weights() -> Arrays:
    return video_weights(VIDEO, seed=11)


def test_coordinates_and_rope():
    for frames in (1, 4, 16):
        angles = STRope().coords(frames, VIDEO.side, VIDEO.side) @ STRope().frequencies(VIDEO.head)
        turns = twin.phases(VIDEO, frames, time=True).numpy()
        check(f"rope, cosine, {frames} frames", np.cos(angles), turns.real, 1e-12)
        check(f"rope, sine, {frames} frames", np.sin(angles), turns.imag, 1e-12)


def test_attention(weights: Arrays):
    x = np.random.default_rng(2).normal(size=(2, 1 + 4 * VIDEO.side**2, VIDEO.width)).astype(np.float32)
    w, turns = twin.tensors(weights), twin.phases(VIDEO, 4, time=True)
    wanted = twin.video_attention(w, "blocks.1.attn", twin.tensors({"x": x})["x"], turns, VIDEO.heads)
    coords = jnp.asarray(STRope().coords(4, VIDEO.side, VIDEO.side), jnp.float32)
    rotary = Rotary(coords, jnp.asarray(STRope().frequencies(VIDEO.head), jnp.float32))
    params = {"params": video_block(weights, 1, VIDEO.heads)["attention"]}
    module = SelfAttention(VIDEO.heads, key_bias=False, sub_norm=True)
    found = jax.jit(module.apply)(params, jnp.asarray(x), rotary)
    check("attention", found, wanted.detach().numpy())


@pytest.mark.parametrize("frames", [1, 4, 16])
@pytest.mark.parametrize("mode", MODES)
def test_tower(weights: Arrays, mode: str, frames: int):
    clip = clips(2, frames)
    wanted = twin.video_tower(twin.tensors(weights), clip, VIDEO, mode)
    params = {"params": parameters(weights, mode)}
    found = jax.jit(video_encoder(VIDEO, mode).apply)(params, jnp.asarray(clip))
    check(f"tower, {mode}, {frames} frames", found, wanted.detach().numpy())


def test_text_tower():
    weights, ids = text_weights(TEXT, seed=12), token_ids(TEXT, rows=4, seed=13)
    wanted = twin.text_tower(twin.tensors(weights), ids, TEXT)
    params = {"params": text_tree(weights, TEXT.heads)}
    found = jax.jit(TextEncoder(text_config(TEXT), TEXT.embedding).apply)(params, jnp.asarray(ids))
    check("text tower", found, wanted.detach().numpy())


@pytest.mark.slow
def test_logits_loss_and_every_gradient(weights: Arrays):
    text, ids, clip = text_weights(TEXT, seed=12), token_ids(TEXT, rows=4, seed=13), clips(4, 4)
    video_w, text_w = twin.tensors(weights), twin.tensors(text)
    features = twin.video_tower(video_w, clip, VIDEO, "both"), twin.text_tower(text_w, ids, TEXT)
    logits, wanted = twin.contrast(*features, temperature=0.07)
    wanted.backward()
    model = dual_encoder(VIDEO, TEXT)

    def step(params: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        found = model.apply({"params": params}, jnp.asarray(clip), jnp.asarray(ids))
        return InfoNCE(temperature=0.07)(found.video, found.text)[0], found.video @ found.text.T / 0.07

    params = {"video": parameters(weights, "both"), "text": text_tree(text, TEXT.heads)}
    (loss, scores), found = jax.jit(jax.value_and_grad(step, has_aux=True))(jax.tree.map(jnp.asarray, params))
    check("logits", scores, logits.detach().numpy())
    check("loss", loss, wanted.detach().numpy())
    # The map is linear, so it carries gradients. The twin's own gradients in f32 are up to 2.4e-5 from those in f64.
    video_g, text_g = ({name: p.grad.numpy() for name, p in w.items()} for w in (video_w, text_w))
    expected = {"video": parameters(video_g, "both"), "text": text_tree(text_g, TEXT.heads)}
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        if name.endswith("['text']['stack']['layers']['attention']['key']['bias']"):
            # One shift of all keys moves all scores of a query alike: the true gradient is zero.
            np.testing.assert_allclose(ours, 0.0, atol=1e-6)
        else:
            check(f"gradient {name}", ours, theirs, 1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clip", ["short", "long"])
def test_twin_is_timm(video: Arrays, mode: str, clip: str):
    found = twin.video_tower(twin.tensors(part(video, "weights")), video[f"in/{clip}"], VideoSizes(), mode)
    source = "video" if clip == "short" else "long"
    check(
        f"twin and timm, {mode}, {clip}", found.detach().numpy(), video[f"out/{source}/{mode}/features"], 2e-6
    )


def test_twin_is_transformers(text: Arrays):
    found = twin.text_tower(twin.tensors(part(text, "weights")), text["in/ids"], TextSizes())
    check("twin and transformers", found.detach().numpy(), text["out/text/features"], 2e-6)
