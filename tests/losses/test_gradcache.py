"""GradCache against one pass: the same loss and gradients with any loss, any number of chunks, and dropout."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.errors import ConfigError
from stvl.core.sharding import activation_sharding
from stvl.dist.mesh import RULES, MeshConfig, batch_sharding, make_mesh
from stvl.losses.gradcache import cached_value_and_grad
from stvl.losses.siglip import SigLIP
from stvl.losses.sms import SMS
from tests.losses.worked import batch, on_device

SIZE, WIDTH = 12, 8
KEY = jax.random.key(3)


class Towers(NamedTuple):
    video: Any
    text: Any
    temperature: Any
    bias: Any


def parameters() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    kernels = {name: jnp.asarray(rng.standard_normal((WIDTH, 5)), jnp.float32) for name in ("video", "text")}
    return {**kernels, "temperature": jnp.float32(0.3), "bias": jnp.float32(-1.0)}


def encode(params: Any, part: Any, key: Any, drop: float = 0.0) -> Towers:
    """Two layers with dropout, unit features, and two scalars that belong to the whole batch."""
    sides = []
    for number, name in enumerate(("video", "text")):
        x = part[name]
        kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - drop, x.shape)
        y = jnp.tanh((x * kept) @ params[name])
        sides.append(y / jnp.linalg.norm(y, axis=-1, keepdims=True))
    return Towers(*sides, params["temperature"], params["bias"])


def inputs() -> tuple[dict[str, Any], dict[str, Any]]:
    video, text, codes = batch(SIZE, WIDTH, seed=7)
    return {"video": jnp.asarray(video, jnp.float32), "text": jnp.asarray(text, jnp.float32)}, on_device(
        codes
    )


def criterion(loss: Any, codes: Any) -> Any:
    return lambda found: loss(found.video, found.text, found.temperature, bias=found.bias, labels=codes)


def same(one: Any, two: Any, tolerance: float = 1e-6) -> None:
    for mine, meant in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        scale = max(1.0, float(np.abs(meant).max()))
        assert np.abs(np.asarray(mine) - np.asarray(meant)).max() <= tolerance * scale


@pytest.mark.parametrize(("loss", "chunks"), [(SMS(), 1), (SMS(), 3), (SMS(), 12), (SigLIP(), 2)])
def test_agrees_with_one_pass(loss, chunks):
    data, codes = inputs()
    score = criterion(loss, codes)
    found = jax.jit(cached_value_and_grad(encode, score, chunks))(parameters(), data, KEY)
    whole = jax.value_and_grad(lambda params: score(encode(params, data, KEY)), has_aux=True)
    meant = jax.jit(whole)(parameters())
    same(found, meant)
    if type(loss) is SigLIP:
        assert all(np.abs(found[1][name]).max() > 1e-3 for name in parameters())


def test_dropout_falls_on_the_same_units_in_both_passes():
    data, codes = inputs()
    score, chunks = criterion(SMS(), codes), 3

    def dropping(params: Any, part: Any, key: Any) -> Towers:
        return encode(params, part, key, drop=0.4)

    def whole(params: Any) -> Any:
        # All chunks with the graph of each, joined in the order of the batch: what the cache stands for.
        parts = []
        for k in range(chunks):
            part = {name: x[k::chunks] for name, x in data.items()}
            parts.append(dropping(params, part, jax.random.fold_in(KEY, k)))
        video, text = (jnp.stack([part[side] for part in parts], 1).reshape(SIZE, -1) for side in (0, 1))
        return score(Towers(video, text, *parts[0][2:]))

    found = jax.jit(cached_value_and_grad(dropping, score, chunks))(parameters(), data, KEY)
    same(found, jax.jit(jax.value_and_grad(whole, has_aux=True))(parameters()))
    other = jax.jit(cached_value_and_grad(dropping, score, chunks))(parameters(), data, jax.random.key(4))
    assert float(other[0][0]) != float(found[0][0])


def test_agrees_where_the_batch_is_split_over_devices():
    data, codes = inputs()
    loss = SMS(impl="ring")
    mesh = make_mesh(MeshConfig(data=4), jax.devices()[:4])
    step = cached_value_and_grad(encode, criterion(loss, codes), 3)
    with activation_sharding(mesh, RULES):
        found = jax.jit(step)(parameters(), jax.device_put(data, batch_sharding(mesh)), KEY)
    meant = jax.jit(cached_value_and_grad(encode, criterion(SMS(), codes), 1))(parameters(), data, KEY)
    same(jax.device_get(found), jax.device_get(meant))


def test_chunks_that_do_not_divide_are_refused():
    data, codes = inputs()
    with pytest.raises(ConfigError, match=r"5 chunks do not divide an array of shape \(12, 8\)"):
        cached_value_and_grad(encode, criterion(SMS(), codes), 5)(parameters(), data, KEY)
    with pytest.raises(ConfigError, match="at least one chunk, found 0"):
        cached_value_and_grad(encode, criterion(SMS(), codes), 0)
