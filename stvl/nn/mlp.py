"""The two feed-forward layers in use: SwiGLU with an inner norm (EVA-02) and the plain MLP (CLIP)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.nn.dense import Dense, LayerNorm

Activation = Literal["gelu", "quick_gelu"]


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x * Phi(x)``, exact."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x * sigmoid(1.702 x)``, the approximation that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


#: Activations by name.
ACTIVATIONS: Mapping[Activation, Callable[[Array], Array]] = MappingProxyType(
    {"gelu": gelu, "quick_gelu": quick_gelu}
)


class SwiGLU(nn.Module):
    """``out(norm(silu(gate(x)) * up(x)))`` (EVA-02, arXiv 2303.11331, Section 2.1; SwiGLU with sub-LN).

    Attributes:
        hidden: width of gate and up; EVA-02 uses ``int(d * 4 * 2 / 3)``.
        sub_norm: LayerNorm on the product before the out-projection.
        eps: epsilon of that norm.
        dtype: compute dtype.
    """

    hidden: int
    sub_norm: bool = True
    eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        gate = Dense((self.hidden,), "d f", dtype=self.dtype, name="gate")(x)
        up = Dense((self.hidden,), "d f", dtype=self.dtype, name="up")(x)
        inner = jax.nn.silu(gate) * up
        if self.sub_norm:
            inner = LayerNorm(self.eps, "f", self.dtype, name="norm")(inner)
        return Dense((x.shape[-1],), "f d", dtype=self.dtype, name="out")(inner)


class Mlp(nn.Module):
    """``out(act(up(x)))``.

    Attributes:
        hidden: width of the hidden layer; CLIP uses ``4 d``.
        activation: name of a function in `ACTIVATIONS`.
        dtype: compute dtype.
    """

    hidden: int
    activation: Activation = "gelu"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        inner = ACTIVATIONS[self.activation](Dense((self.hidden,), "d f", dtype=self.dtype, name="up")(x))
        return Dense((x.shape[-1],), "f d", dtype=self.dtype, name="out")(inner)
