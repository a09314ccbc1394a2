"""CLIP's text tower (arXiv 2103.00020, Section 2.4), which the EVA02-CLIP models use as well."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from stvl.core.config import config
from stvl.core.errors import ConfigError
from stvl.nn.attention import SelfAttention
from stvl.nn.dense import Dense, LayerNorm, named
from stvl.nn.flops import block_flops
from stvl.nn.mlp import Activation, Mlp
from stvl.nn.sizes import check_heads
from stvl.nn.stack import Block, Stack
from stvl.ops.attention import Causal


@config
class ClipTextConfig:
    """Sizes of the text tower.

    Attributes:
        width, depth, heads: as in the video tower.
        context: number of positions; shorter texts are accepted.
        vocabulary: number of token ids.
        activation: ``gelu`` (open_clip, EVA02-CLIP) or ``quick_gelu`` (OpenAI's weights and what started from them).
        remat, unroll: as in the video tower.
    """

    width: int = 512
    depth: int = 12
    heads: int = 8
    context: int = 77
    vocabulary: int = 49408
    activation: Activation = "gelu"
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)

    def flops(self, context: int) -> int:
        """FLOPs of the blocks on one text, causal attention counted in full."""
        return self.depth * block_flops(context, self.width, 4 * self.width, 2)


class TextEncoder(nn.Module):
    """Causal pre-norm transformer; the feature is that of the end-of-text token, the largest id of a row.

    Attributes:
        config: sizes.
        embedding: width of the shared space.
        dtype: compute dtype.
        impl: attention backend, None for the best one.
    """

    config: ClipTextConfig
    embedding: int
    dtype: jnp.dtype = jnp.float32
    impl: str | None = None

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"], train: bool = False) -> Float[Array, "b o"]:
        cfg = self.config
        if ids.shape[1] > cfg.context:
            raise ConfigError(f"texts of {ids.shape[1]} tokens do not fit a context of {cfg.context}")
        tokens = self.param("tokens", named(nn.initializers.normal(0.02), "v d"), (cfg.vocabulary, cfg.width))
        place_init = named(nn.initializers.normal(0.01), ". d")
        places = self.param("positions", place_init, (cfg.context, cfg.width))
        x = (jnp.take(tokens, ids, axis=0) + places[: ids.shape[1]]).astype(self.dtype)
        x = Stack(self._block(), cfg.depth, 0.0, cfg.remat, cfg.unroll, name="stack")(x, None, train)
        end = jnp.argmax(ids, axis=-1)
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        x = LayerNorm(1e-5, dtype=jnp.float32, name="norm")(x)
        return Dense((self.embedding,), "d o", use_bias=False, dtype=jnp.float32, name="projection")(x)

    def _block(self) -> functools.partial[nn.Module]:
        cfg = self.config
        attention = functools.partial(
            SelfAttention, heads=cfg.heads, mask=Causal(), dtype=self.dtype, impl=self.impl
        )
        mlp = functools.partial(Mlp, hidden=4 * cfg.width, activation=cfg.activation, dtype=self.dtype)
        return functools.partial(Block, attention, mlp, eps=1e-5, dtype=self.dtype)
