"""Divided space-time attention (TimeSformer, arXiv 2102.05095) with a class token, and its block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.core.errors import ConfigError
from stvl.core.sharding import constrain
from stvl.nn.dense import Dense, LayerNorm
from stvl.nn.sizes import check_heads
from stvl.nn.stack import drop_path
from stvl.ops.attention import attention
from stvl.ops.rotary import Rotary


class DividedAttention(nn.Module):
    """``out(attention(q(x), k(x), v(x)))`` in which a patch sees the class token and the patches of its group.

    Tokens are ``1 + t * s``: the class token and then `frames` frames of s places. A group is the t patches of one place
    (``along = "time"``) or the s patches of one frame (``along = "space"``). The class token sees all tokens.

    Source: Frozen in Time, arXiv 2104.00650, Section 3.1, after TimeSformer, arXiv 2102.05095, Section 3.

    Attributes:
        heads: number of heads; must divide the width.
        frames: number of frames t.
        along: the axis of a group.
        silent: start the out-projection at zero, so that a new layer leaves an image model as it is.
        dtype: compute dtype.
        impl: attention backend, None for the best one.
    """

    heads: int
    frames: int
    along: Literal["time", "space"]
    silent: bool = False
    dtype: jnp.dtype = jnp.float32
    impl: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        check_heads(width, self.heads)
        if (x.shape[1] - 1) % self.frames:
            raise ConfigError(f"{x.shape[1]} tokens are no class token and {self.frames} equal frames")
        split = (self.heads, width // self.heads)
        q, k, v = (
            Dense(split, "d h e", dtype=self.dtype, name=name)(x) for name in ("query", "key", "value")
        )
        first = attention(q[:, :1], k, v, impl=self.impl)
        rest = attention(self._group(q), self._group(k, True), self._group(v, True), impl=self.impl)
        out = jnp.concatenate([first, self._ungroup(rest, x.shape[0])], axis=1)
        return Dense((width,), "h e d", inputs=2, dtype=self.dtype, zeros=self.silent, name="out")(out)

    def _group(self, x: Float[Array, "b n h e"], with_class: bool = False) -> Float[Array, "g m h e"]:
        """Patches by group, groups in the batch; with the class token in front of each where it is asked for."""
        batch, _, heads, width = x.shape
        patches = x[:, 1:].reshape(batch, self.frames, -1, heads, width)
        if self.along == "time":
            patches = patches.swapaxes(1, 2)
        if with_class:
            first = jnp.broadcast_to(x[:, None, :1], (batch, patches.shape[1], 1, heads, width))
            patches = jnp.concatenate([first, patches], axis=2)
        return patches.reshape(-1, *patches.shape[2:])

    def _ungroup(self, x: Float[Array, "g m h e"], batch: int) -> Float[Array, "b n h e"]:
        """Patches in the order of frames."""
        patches = x.reshape(batch, -1, *x.shape[1:])
        if self.along == "time":
            patches = patches.swapaxes(1, 2)
        return patches.reshape(batch, -1, *x.shape[2:])


class DividedBlock(nn.Module):
    """Time, then space, then the MLP, with the residuals of Frozen in Time.

    ``y = x + time(time_norm(x))``; ``x = x + drop(space(attention_norm(y)))``; ``x = x + drop(mlp(mlp_norm(x)))``: the
    space attention reads the output of the time attention, and its own output is added to the block's *input*
    (arXiv 2104.00650, Section 3.1 and Figure 3).

    Attributes:
        time, space: make the attention modules, given a name.
        mlp: makes the feed-forward module, given a name.
        eps: epsilon of the three norms.
        dtype: compute dtype.
    """

    time: Callable[..., nn.Module]
    space: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], drop_rate: Float[Array, ""], rotary: Rotary | None, train: bool
    ) -> tuple[Float[Array, "b n d"], None]:
        if rotary is not None:
            raise ConfigError("divided attention has no rotary positions")
        x = constrain(x, "b n")
        inner = LayerNorm(self.eps, dtype=self.dtype, name="time_norm")(x)
        timed = x + self.time(name="time")(inner)
        inner = LayerNorm(self.eps, dtype=self.dtype, name="attention_norm")(timed)
        x = x + drop_path(self, self.space(name="attention")(inner), drop_rate, train)
        inner = LayerNorm(self.eps, dtype=self.dtype, name="mlp_norm")(x)
        return x + drop_path(self, self.mlp(name="mlp")(inner), drop_rate, train), None
