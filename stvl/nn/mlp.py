"""The two feed-forward layers in use: SwiGLU with an inner norm (EVA-02) and the plain GELU MLP (CLIP)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.nn.dense import Dense, LayerNorm


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
    """``out(gelu(up(x)))`` with the exact GELU.

    Attributes:
        hidden: width of the hidden layer; CLIP uses ``4 d``.
        dtype: compute dtype.
    """

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        inner = jax.nn.gelu(Dense((self.hidden,), "d f", dtype=self.dtype, name="up")(x), approximate=False)
        return Dense((x.shape[-1],), "f d", dtype=self.dtype, name="out")(inner)
