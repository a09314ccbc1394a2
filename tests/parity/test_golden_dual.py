"""CLIP text, logits, loss and gradients against frozen arrays of transformers, timm, torch and open_clip."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stvl.losses.infonce import InfoNCE, infonce
from stvl.models.clip_text import TextEncoder

from .compare import Arrays, TextSizes, VideoSizes, check, gap, part
from .mapping import text_block, text_tree, video_tree
from .models import dual_encoder, text_config
from .models import text_block as block_module

VIDEO, TEXT = VideoSizes(), TextSizes()
TEMPERATURE = 0.05


def encoder() -> TextEncoder:
    return TextEncoder(text_config(TEXT), TEXT.embedding)


@pytest.fixture(scope="module")
def tower(text: Arrays) -> dict[str, Any]:
    return text_tree(part(text, "weights"), TEXT.heads)


@pytest.fixture(scope="module")
def params(video: Arrays, tower: dict[str, Any]) -> dict[str, Any]:
    weights = part(video, "weights")
    return {"video": video_tree(weights, VIDEO.heads, weights["time"]), "text": tower}


def test_map_fills_every_parameter_and_no_other(tower: dict[str, Any]):
    wanted = jax.eval_shape(
        lambda: encoder().init(jax.random.key(0), jnp.zeros((1, TEXT.context), jnp.int32))
    )
    assert jax.tree.map(np.shape, tower) == jax.tree.map(lambda x: x.shape, nn.meta.unbox(wanted)["params"])


def test_text_block(text: Arrays):
    block = text_block(part(text, "weights"), 0, TEXT.heads)
    tokens = jnp.asarray(text["out/text/tokens"])
    out, _ = block_module(TEXT).apply({"params": block}, tokens, jnp.zeros(()), None, False)
    check("text block", out, text["out/text/block"])


def test_text_tower(text: Arrays, tower: dict[str, Any]):
    out = jax.jit(encoder().apply)({"params": tower}, jnp.asarray(text["in/ids"]))
    check("text tower", out, text["out/text/features"])


def test_text_tower_needs_no_padding(text: Arrays, tower: dict[str, Any]):
    ids = text["in/ids"]
    length = int(ids[0].argmax()) + 1
    assert length < TEXT.context
    out = jax.jit(encoder().apply)({"params": tower}, jnp.asarray(ids[:1, :length]))
    check("text tower, cut after the end", out, text["out/text/features"][:1])


def test_text_tower_with_another_gelu_is_found(text: Arrays, tower: dict[str, Any], monkeypatch: Any):
    exact = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: exact(x, approximate=True))
    out = jax.jit(encoder().apply)({"params": tower}, jnp.asarray(text["in/ids"]))
    assert gap(np.asarray(out), text["out/text/features"])[0] > 2e-5


def test_logits_and_loss(video: Arrays, text: Arrays, dual: Arrays, params: dict[str, Any]):
    model = dual_encoder(VIDEO, TEXT)
    found = jax.jit(model.apply)(
        {"params": params}, jnp.asarray(video["in/short"]), jnp.asarray(text["in/ids"])
    )
    np.testing.assert_allclose(np.linalg.norm(found.video, axis=-1), 1, atol=1e-6)
    check("logits", found.video @ found.text.T / TEMPERATURE, dual["out/dual/logits"])
    loss, metrics = InfoNCE(temperature=TEMPERATURE)(found.video, found.text)
    check("loss, mean of directions", loss, dual["out/dual/loss"])
    loss, _ = InfoNCE(temperature=TEMPERATURE, directions="sum")(found.video, found.text)
    check("loss, sum of directions", loss, dual["out/dual/loss_sum"])
    logits, right = dual["out/dual/logits"], np.arange(3)
    hits = [(logits.argmax(axis=axis) == right).mean() for axis in (0, 1)]
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(hits))


def test_gradients(video: Arrays, text: Arrays, dual: Arrays, params: dict[str, Any]):
    model, loss = dual_encoder(VIDEO, TEXT), InfoNCE(temperature=TEMPERATURE)

    def step(params: dict[str, Any]) -> jax.Array:
        found = jax.jit(model.apply)(
            {"params": params}, jnp.asarray(video["in/short"]), jnp.asarray(text["in/ids"])
        )
        return loss(found.video, found.text)[0]

    found = jax.jit(jax.grad(step))(jax.tree.map(jnp.asarray, params))
    golden = part(dual, "out/gradient")
    # The map is linear, so it carries gradients; what has no golden gradient is filled with zeros and not compared.
    filled = {
        name: {
            key: golden.get(f"{name}/{key}", np.zeros_like(a)) for key, a in part(arrays, "weights").items()
        }
        for name, arrays in (("video", video), ("text", text))
    }
    wanted = {
        "video": video_tree(filled["video"], VIDEO.heads, filled["video"]["time"]),
        "text": text_tree(filled["text"], TEXT.heads),
    }
    compared = 0
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        layers = (
            [(ours[i], theirs[i]) for i in range(2)]
            if "layers" in jax.tree_util.keystr(path)
            else [(ours, theirs)]
        )
        for a, b in layers:
            if np.any(b):
                check(f"gradient {jax.tree_util.keystr(path[-3:])}", a, b, 2e-5)
                compared += 1
    assert compared == len(golden)


@pytest.mark.parametrize("directions", ["mean", "sum"])
def test_loss_is_optax_cross_entropy_of_both_directions(directions: str):
    rng = np.random.default_rng(0)
    video, text = (rng.normal(size=(7, 5)).astype(np.float32) for _ in range(2))
    video, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (video, text))
    logits = video @ text.T / 0.07
    both = [
        optax.softmax_cross_entropy_with_integer_labels(x, np.arange(7)).mean() for x in (logits, logits.T)
    ]
    wanted = np.sum(both) * (0.5 if directions == "mean" else 1.0)
    found, _ = infonce(jnp.asarray(video), jnp.asarray(text), 1 / 0.07, directions)
    check(f"loss, optax, {directions}", found, wanted, 1e-6)
