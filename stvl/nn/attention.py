"""Multi-head self-attention with the options that the EVA-02 and CLIP towers differ in."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.nn.dense import Dense, LayerNorm
from stvl.nn.sizes import check_heads
from stvl.ops.attention import Mask, attention
from stvl.ops.rotary import Rotary


class SelfAttention(nn.Module):
    """``out(norm(attention(q(x), k(x), v(x))))`` with separate q, k and v projections.

    Attributes:
        heads: number of heads; must divide the width.
        key_bias: whether k has a bias (CLIP: yes, EVA-02: no; q and v always have one).
        sub_norm: LayerNorm on the attention output before the out-projection (sub-LN, EVA-02).
        eps: epsilon of that norm.
        mask: who may see whom; None is everybody.
        dtype: compute dtype.
        impl: attention backend, None for the best one.
    """

    heads: int
    key_bias: bool = True
    sub_norm: bool = False
    eps: float = 1e-6
    mask: Mask | None = None
    dtype: jnp.dtype = jnp.float32
    impl: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], rotary: Rotary | None = None) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        check_heads(width, self.heads)
        split = (self.heads, width // self.heads)
        q = Dense(split, "d h e", dtype=self.dtype, name="query")(x)
        k = Dense(split, "d h e", use_bias=self.key_bias, dtype=self.dtype, name="key")(x)
        v = Dense(split, "d h e", dtype=self.dtype, name="value")(x)
        out = attention(q, k, v, rotary=rotary, mask=self.mask, impl=self.impl)
        if self.sub_norm:
            out = LayerNorm(self.eps, "h e", self.dtype, name="norm")(out)
        return Dense((width,), "h e d", inputs=2, dtype=self.dtype, name="out")(out)
