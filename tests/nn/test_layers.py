"""Layers against the same arithmetic written in numpy."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvl.core.errors import ConfigError
from stvl.nn.attention import SelfAttention
from stvl.nn.dense import Dense, LayerNorm, named
from stvl.nn.mlp import Mlp, SwiGLU
from stvl.nn.pixels import TubeEmbed, normalise
from stvl.nn.positions import PositionTables, resample_matrix
from tests.contracts.attention import plain
from tests.fixtures import random_params


def made(module: nn.Module, *inputs: jax.Array, seed: int = 0) -> tuple[np.ndarray, dict]:
    """Output of `module`, and parameters that are all random, biases and scales too."""
    params = random_params(module, *inputs, seed=seed)
    out = jax.jit(lambda p: module.apply({"params": p}, *inputs))(params)
    return np.asarray(out, np.float64), jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def tokens(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(9).standard_normal(shape), jnp.float32)


def norm(x: np.ndarray, p: dict, eps: float = 1e-6, axes: int = 1) -> np.ndarray:
    over = tuple(range(-axes, 0))
    centred = x - x.mean(over, keepdims=True)
    return centred / np.sqrt(x.var(over, keepdims=True) + eps) * p["scale"] + p["bias"]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_dense_splits_and_joins_axes():
    x = tokens(2, 5, 6)
    out, p = made(Dense((3, 4), "d h e"), x)
    np.testing.assert_allclose(out, np.einsum("bnd,dhe->bnhe", x, p["kernel"]) + p["bias"], atol=1e-5)
    y = tokens(2, 5, 3, 4)
    out, p = made(Dense((6,), "h e d", inputs=2, use_bias=False), y)
    assert list(p) == ["kernel"]
    np.testing.assert_allclose(out, np.einsum("bnhe,hed->bnd", y, p["kernel"]), atol=1e-5)


def test_dense_names_its_axes_and_starts_with_unit_variance():
    boxed = Dense((8, 32), "d h e").init(jax.random.key(0), jnp.zeros((1, 256)))["params"]
    assert boxed["kernel"].names == ("width", "query_head", "head_width")
    assert boxed["bias"].names == ("query_head", "head_width")
    assert float(boxed["kernel"].value.var() * 256) == pytest.approx(1, abs=0.05)
    joined = Dense((256,), "h e d", inputs=2).init(jax.random.key(0), jnp.zeros((1, 8, 32)))["params"]
    assert float(joined["kernel"].value.var() * 256) == pytest.approx(1, abs=0.05)


def test_dense_computes_in_its_dtype_with_f32_parameters():
    module = Dense((4,), "d f", dtype=jnp.bfloat16)
    params = module.init(jax.random.key(0), tokens(2, 3))
    assert nn.unbox(params)["params"]["kernel"].dtype == jnp.float32
    assert module.apply(params, tokens(2, 3)).dtype == jnp.bfloat16


@pytest.mark.parametrize("axes", ["d", "h e"])
def test_layer_norm(axes):
    x = tokens(2, 5, 4, 6) * 3 + 1
    out, p = made(LayerNorm(1e-6, axes), x)
    np.testing.assert_allclose(out, norm(np.asarray(x, np.float64), p, axes=len(axes.split())), atol=1e-5)


def test_layer_norm_by_hand():
    params = {"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}
    # mean 2, variance 1: (1 - 2) / sqrt(1 + 3) and (3 - 2) / sqrt(1 + 3).
    out = LayerNorm(eps=3.0).apply(params, jnp.asarray([1.0, 3.0]))
    np.testing.assert_allclose(out, [-0.5, 0.5])


def test_layer_norm_statistics_are_f32_for_bf16_inputs():
    x = jnp.asarray(1000 + np.arange(8.0) * 8, jnp.bfloat16)
    out = LayerNorm(1e-6, dtype=jnp.bfloat16).apply(
        {"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}, x
    )
    x64 = np.asarray(x, np.float64)
    np.testing.assert_allclose(np.asarray(out, np.float64), (x64 - x64.mean()) / x64.std(), atol=2e-2)


def test_swiglu():
    x = tokens(2, 3, 6)
    out, p = made(SwiGLU(hidden=10), x)
    gate = x @ p["gate"]["kernel"] + p["gate"]["bias"]
    inner = gate * sigmoid(gate) * (x @ p["up"]["kernel"] + p["up"]["bias"])
    expected = norm(inner, p["norm"]) @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_mlp_uses_the_exact_gelu():
    x = tokens(2, 3, 6)
    out, p = made(Mlp(hidden=10), x)
    inner = x @ p["up"]["kernel"] + p["up"]["bias"]
    inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    np.testing.assert_allclose(out, inner @ p["out"]["kernel"] + p["out"]["bias"], atol=1e-5)


@pytest.mark.parametrize(("key_bias", "sub_norm"), [(True, False), (False, True)])
def test_self_attention(key_bias, sub_norm):
    from stvl.ops.attention import Full

    x = tokens(2, 5, 8)
    out, p = made(SelfAttention(heads=2, key_bias=key_bias, sub_norm=sub_norm), x)
    assert ("bias" in p["key"]) == key_bias
    assert ("norm" in p) == sub_norm
    q, k, v = (
        np.einsum("bnd,dhe->bnhe", x, p[n]["kernel"]) + p[n].get("bias", 0) for n in ("query", "key", "value")
    )
    inner, _ = plain(q, k, v, np.zeros_like(q), Full())
    if sub_norm:
        inner = norm(inner, p["norm"], axes=2)
    np.testing.assert_allclose(
        out, np.einsum("bnhe,hed->bnd", inner, p["out"]["kernel"]) + p["out"]["bias"], atol=1e-4
    )


def test_self_attention_refuses_a_width_that_heads_do_not_divide():
    with pytest.raises(ConfigError, match="width 8 cannot be divided into 3 heads"):
        SelfAttention(heads=3).init(jax.random.key(0), tokens(1, 2, 8))


def test_normalise_takes_uint8_and_leaves_floats():
    video = jnp.asarray([[[[[0, 51, 255]]]]], jnp.uint8)
    out = normalise(video, (0.5, 0.2, 0.0), (0.5, 0.1, 2.0))
    np.testing.assert_allclose(np.asarray(out).ravel(), [-1, 0, 0.5], atol=1e-6)
    assert np.array_equal(normalise(out, (0.5,) * 3, (9.0,) * 3), out)


@pytest.mark.parametrize("tube", [1, 2])
def test_tube_embedding_is_a_strided_convolution(tube):
    video = tokens(2, 4, 6, 9, 3)
    out, p = made(TubeEmbed(width=5, patch=3, tube=tube), video)
    conv = jax.lax.conv_general_dilated(
        video,
        jnp.asarray(p["kernel"], jnp.float32),
        (tube, 3, 3),
        "VALID",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    assert out.shape == (2, 4 // tube, 2, 3, 5)
    np.testing.assert_allclose(out, np.asarray(conv) + p["bias"], atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4, 3), (1, 2, 5, 4, 3)])
def test_tube_embedding_refuses_a_remainder(shape):
    with pytest.raises(ConfigError, match="cannot be cut into tubes of 2 x 2 x 2"):
        TubeEmbed(width=4, patch=2, tube=2).init(jax.random.key(0), jnp.zeros(shape))


@given(length=st.integers(1, 40), table=st.integers(1, 40))
def test_resampling_is_an_average(length, table):
    matrix = resample_matrix(length, table)
    np.testing.assert_allclose(matrix.sum(1), 1)
    assert (matrix >= 0).all()
    # A symmetric table stays symmetric.
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)


def test_resampling_by_hand():
    assert np.array_equal(resample_matrix(4, 4), np.eye(4))
    assert resample_matrix(2, 4).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    assert resample_matrix(4, 2).tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]


def test_position_tables_add_place_and_time():
    x = tokens(2, 4, 2, 3, 5)
    out, p = made(PositionTables((2, 3), frames=4), x)
    expected = np.asarray(x) + p["space"].reshape(2, 3, 5) + p["time"][:, None, None]
    np.testing.assert_allclose(out, expected, atol=1e-6)
    shorter, p = made(PositionTables((2, 3), frames=4), x[:, :2])
    time = (p["time"][[0, 2]] + p["time"][[1, 3]]) / 2
    np.testing.assert_allclose(
        shorter, np.asarray(x[:, :2]) + p["space"].reshape(2, 3, 5) + time[:, None, None], atol=1e-6
    )


def test_time_starts_at_zero_and_may_be_left_out():
    x = tokens(1, 4, 2, 3, 5)
    params = nn.unbox(PositionTables((2, 3), frames=4).init(jax.random.key(0), x))["params"]
    assert (params["time"] == 0).all()
    assert set(nn.unbox(PositionTables((2, 3)).init(jax.random.key(0), x))["params"]) == {"space"}


def test_position_tables_refuse_another_grid():
    with pytest.raises(ConfigError, match="table of 2 x 3 places, the clip has 3 x 3: set image_size"):
        PositionTables((2, 3)).init(jax.random.key(0), tokens(1, 1, 3, 3, 5))


def test_a_misspelt_axis_is_refused():
    with pytest.raises(KeyError, match="z"):
        named(nn.initializers.zeros, "d z")
    with pytest.raises(KeyError, match="F"):
        jax.eval_shape(Dense((4,), "d F").init, jax.random.key(0), jnp.zeros((1, 2)))
