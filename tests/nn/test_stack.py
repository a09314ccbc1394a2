"""Stacks: the scan is a loop, remat changes nothing, stochastic depth follows its key."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.errors import ConfigError
from stvl.nn.attention import SelfAttention
from stvl.nn.mlp import SwiGLU
from stvl.nn.stack import REMAT, Block, Stack
from stvl.ops.rotary import Rotary
from stvl.rope.schemes import AxialRope
from tests.fixtures import random_params

DEPTH, WIDTH = 3, 16
BLOCK = functools.partial(
    Block, functools.partial(SelfAttention, heads=2, sub_norm=True), functools.partial(SwiGLU, hidden=20)
)
X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5, WIDTH)), jnp.float32)
ROTARY = Rotary(
    jnp.asarray(AxialRope().coords(1, 2, 2), jnp.float32),
    jnp.asarray(AxialRope().frequencies(8), jnp.float32),
)


@functools.cache
def params() -> dict[str, Any]:
    return random_params(Stack(BLOCK, DEPTH), X, ROTARY)


def test_parameters_are_stacked_on_a_named_layer_axis():
    boxed = jax.eval_shape(Stack(BLOCK, DEPTH).init, jax.random.key(0), X, ROTARY)["params"]["layers"]
    kernel = boxed["attention"]["query"]["kernel"]
    assert kernel.names == ("layer", "width", "query_head", "head_width")
    assert kernel.value.shape == (DEPTH, WIDTH, 2, 8)


def test_every_layer_starts_from_its_own_numbers():
    small = functools.partial(
        Block, functools.partial(SelfAttention, heads=1), functools.partial(SwiGLU, hidden=2)
    )
    made = jax.jit(Stack(small, 2).init)(jax.random.key(0), jnp.zeros((1, 1, 4)))
    one, two = nn.unbox(made)["params"]["layers"]["mlp"]["up"]["kernel"]
    assert not np.array_equal(one, two)


def test_scan_is_a_loop_over_the_layers():
    expected = X
    block = jax.jit(lambda p, x: BLOCK().apply({"params": p}, x, jnp.zeros(()), ROTARY, False)[0])
    for layer in range(DEPTH):
        expected = block(jax.tree.map(lambda leaf, i=layer: leaf[i], params()["layers"]), expected)
    found = jax.jit(lambda p: Stack(BLOCK, DEPTH).apply({"params": p}, X, ROTARY))(params())
    np.testing.assert_allclose(found, expected, atol=1e-5)


@functools.cache
def loss_and_gradient(remat: str, unroll: int) -> tuple[float, Any]:
    stack = Stack(BLOCK, DEPTH, drop_path=0.3, remat=remat, unroll=unroll)

    def loss(p: Any) -> jax.Array:
        return jnp.square(
            stack.apply({"params": p}, X, ROTARY, True, rngs={"drop_path": jax.random.key(3)})
        ).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params())
    return float(value), gradient


@pytest.mark.parametrize(
    ("remat", "unroll"), [*((name, 1) for name in REMAT if name != "none"), ("none", DEPTH)]
)
def test_remat_and_unrolling_change_no_loss_and_no_gradient(remat, unroll):
    value, gradient = loss_and_gradient(remat, unroll)
    expected, slopes = loss_and_gradient("none", 1)
    assert value == pytest.approx(expected, rel=1e-6)
    for found, slope in zip(jax.tree.leaves(gradient), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-5)


def test_unknown_remat_policy_shows_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown remat policy 'dot' \(did you mean 'dots'\?\)"):
        Stack(BLOCK, 1, remat="dot").init(jax.random.key(0), X, ROTARY)


@functools.cache
def dropped(rate: float) -> Any:
    """A compiled ``(key, train) -> output`` of a stack with stochastic depth."""
    # Made here: first called while a function is traced, the cached parameters would be that trace's own.
    stack, tree = Stack(BLOCK, DEPTH, drop_path=rate), params()

    def run(key: jax.Array, train: bool) -> jax.Array:
        return stack.apply({"params": tree}, X, ROTARY, train, rngs={"drop_path": key})

    return jax.jit(run, static_argnums=1)


def test_stochastic_depth_is_a_function_of_its_key():
    run, key = dropped(0.5), jax.random.key(0)
    assert np.array_equal(run(key, True), run(jax.random.key(0), True))
    assert not np.array_equal(run(key, True), run(jax.random.fold_in(key, 1), True))


def test_stochastic_depth_is_off_in_evaluation_and_without_a_key():
    silent = jax.jit(lambda tree: Stack(BLOCK, DEPTH, drop_path=0.5).apply({"params": tree}, X, ROTARY, True))
    quiet = silent(params())
    assert np.array_equal(dropped(0.5)(jax.random.key(0), False), quiet)
    assert np.array_equal(dropped(0.0)(jax.random.key(0), True), quiet)


def test_a_dropped_branch_is_zero_and_a_kept_one_is_scaled():
    block = BLOCK()
    layer = {"params": jax.tree.map(lambda leaf: leaf[0], params()["layers"])}
    wide = jnp.tile(X[:1], (64, 1, 1))
    run = jax.jit(
        lambda rate: block.apply(layer, wide, rate, ROTARY, True, rngs={"drop_path": jax.random.key(0)})[0]
    )
    kept, half = np.asarray(run(jnp.float32(0))), np.asarray(run(jnp.float32(0.5)))
    untouched = (half == np.asarray(wide)).all((1, 2))
    # Both branches fall away for a quarter of the samples.
    assert 0.1 < untouched.mean() < 0.45
    assert not (kept == np.asarray(wide)).all((1, 2)).any()
    # A sample that kept its attention branch alone moved by twice that branch.
    own = layer["params"]
    inner = nn.LayerNorm(epsilon=1e-6).apply({"params": own["attention_norm"]}, X[:1])
    branch = block.attention().apply({"params": own["attention"]}, inner, ROTARY)
    assert np.isclose(half - np.asarray(wide), 2 * np.asarray(branch), atol=1e-4).all((1, 2)).any()
