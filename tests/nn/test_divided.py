"""Divided attention against attention with a mask over all tokens, which sees the same pairs."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.errors import ConfigError
from stvl.nn.divided import DividedAttention, DividedBlock
from stvl.nn.mlp import ACTIVATIONS, Mlp, quick_gelu
from stvl.nn.pixels import TubeEmbed
from stvl.ops.rotary import Rotary
from tests.fixtures import random_params

FRAMES, PLACES = 3, 4
X = jnp.asarray(np.random.default_rng(1).standard_normal((2, 1 + FRAMES * PLACES, 8)), jnp.float32)


def attention(along: Literal["time", "space"], **fields: Any) -> DividedAttention:
    return DividedAttention(heads=2, frames=FRAMES, along=along, **fields)


@pytest.mark.parametrize("along", ["time", "space"])
def test_a_token_is_moved_by_exactly_the_tokens_that_it_sees(along: Literal["time", "space"]):
    module = attention(along)
    params = {"params": random_params(module, X)}
    run = jax.jit(lambda x: module.apply(params, x))
    before = run(X)
    for source in range(X.shape[1]):
        moved = np.abs(np.asarray(run(X.at[:, source].add(1.0)) - before)).max(axis=(0, 2)) > 1e-6
        frame, place = divmod(source - 1, PLACES)
        group = {
            "time": [1 + t * PLACES + place for t in range(FRAMES)],
            "space": [1 + frame * PLACES + s for s in range(PLACES)],
        }[along]
        expected = range(X.shape[1]) if source == 0 else [0, *group]
        assert np.flatnonzero(moved).tolist() == sorted(expected)


def test_a_silent_layer_gives_zeros_and_learns():
    module = attention("time", silent=True)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), X))
    assert not np.asarray(jax.jit(module.apply)(params, X)).any()
    gradient = jax.jit(jax.grad(lambda p: jnp.square(module.apply(p, X) - 1).sum()))(params)["params"]
    assert np.abs(gradient["out"]["kernel"]).max() > 1e-3


def test_tokens_that_are_no_whole_frames_are_refused():
    with pytest.raises(ConfigError, match="12 tokens are no class token and 3 equal frames"):
        attention("time").init(jax.random.key(0), X[:, 1:])
    with pytest.raises(ConfigError, match="width 8 cannot be divided into 3 heads"):
        DividedAttention(heads=3, frames=FRAMES, along="time").init(jax.random.key(0), X)


def test_divided_blocks_take_no_rotation():
    block = DividedBlock(
        lambda name: attention("time", name=name), lambda name: attention("space", name=name), Mlp
    )
    rotary = Rotary(jnp.zeros((13, 1)), jnp.zeros((1, 2)))
    with pytest.raises(ConfigError, match="no rotary positions"):
        block.init(jax.random.key(0), X, jnp.zeros(()), rotary, False)


def test_activations_at_hand_worked_points():
    x = jnp.asarray([-1.0, 0.0, 2.0])
    # x * Phi(x), and x / (1 + exp(-1.702 x)).
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x), [-0.15865525, 0, 1.9544997], rtol=1e-5)
    np.testing.assert_allclose(ACTIVATIONS["quick_gelu"](x), [-0.15420423, 0, 1.9356592], rtol=1e-5)
    assert ACTIVATIONS["quick_gelu"] is quick_gelu


def test_the_mlp_has_the_activation_that_it_is_given():
    x = X[:, :3]
    outs = {}
    for name in ("gelu", "quick_gelu"):
        module = Mlp(hidden=16, activation=name)
        p = random_params(module, x)
        outs[name] = np.asarray(module.apply({"params": p}, x))
        inner = ACTIVATIONS[name](x @ p["up"]["kernel"] + p["up"]["bias"])
        np.testing.assert_allclose(outs[name], inner @ p["out"]["kernel"] + p["out"]["bias"], atol=1e-5)
    assert np.abs(outs["gelu"] - outs["quick_gelu"]).max() > 1e-3


def test_a_stem_without_a_bias_has_none():
    video = jnp.ones((1, 2, 4, 4, 3))
    assert set(TubeEmbed(5, 2, use_bias=False).init(jax.random.key(0), video)["params"]) == {"kernel"}
