"""CLIP's plain ViT turned to video by joint attention and learned temporal positions."""

from __future__ import annotations

import functools
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from stvl.core.config import config
from stvl.nn.attention import SelfAttention
from stvl.nn.dense import Dense, LayerNorm
from stvl.nn.flops import block_flops, stem_flops
from stvl.nn.mlp import Activation, Mlp
from stvl.nn.pixels import CLIP_MEAN, CLIP_STD, TubeEmbed, normalise
from stvl.nn.positions import PositionTables, with_class_token
from stvl.nn.sizes import check_heads, check_patches
from stvl.nn.stack import Block, Stack


@config
class ViTConfig:
    """Sizes and options of CLIP's image tower (arXiv 2103.00020, Section 2.4) and of AVION's video tower (2309.16669).

    Attributes:
        width, depth, heads: as in `EVA02ATConfig`; the MLP is four widths wide.
        patch: patch side in pixels.
        image_size: side of the square frames in pixels.
        frames: length of the learned table P_t; clips of other lengths resample it linearly.
        temporal_positions: ``learned`` = P_t, at zero in the beginning; ``none`` = nothing tells the frames apart.
        activation: ``gelu`` (open_clip, AVION) or ``quick_gelu`` (OpenAI's weights).
        eps: epsilon of all norms: 1e-5 in CLIP, 1e-6 in AVION.
        drop_path, remat, unroll, mean, std: as in `EVA02ATConfig`.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    image_size: int = 224
    frames: int = 4
    temporal_positions: Literal["learned", "none"] = "learned"
    activation: Activation = "gelu"
    eps: float = 1e-5
    drop_path: float = 0.0
    remat: str = "none"
    unroll: int = 1
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        check_patches(self.image_size, self.patch)

    @property
    def side(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch

    @property
    def title(self) -> str:
        """Family and sizes in words, for cards and messages."""
        return f"CLIP ViT {self.width}x{self.depth}, patch {self.patch}"

    def flops(self, frames: int) -> int:
        """FLOPs of one clip up to the last block."""
        places = self.side**2 * frames
        blocks = self.depth * block_flops(places + 1, self.width, 4 * self.width, 2)
        return stem_flops(places, 1, self.patch, self.width) + blocks

    def tower(self, embedding: int, dtype: DTypeLike, impl: str | None) -> nn.Module:
        """The module of these sizes: frames to features of width `embedding`."""
        return ViTEncoder(self, embedding, jnp.dtype(dtype), impl)


class ViTEncoder(nn.Module):
    """Joint space-time encoder: ``(b t y x 3)`` frames to ``(b o)`` features of the class token.

    ``z0 = norm([class; patches] + P_xy + P_t)``: P_t is added before CLIP's first norm, as in AVION. One frame and
    P_t = 0 give CLIP's image tower.

    Attributes:
        config: sizes.
        embedding: width of the shared space.
        dtype: compute dtype.
        impl: attention backend, None for the best one.
    """

    config: ViTConfig
    embedding: int
    dtype: jnp.dtype = jnp.float32
    impl: str | None = None

    @nn.compact
    def __call__(self, video: Num[Array, "b t y x c"], train: bool = False) -> Float[Array, "b o"]:
        cfg = self.config
        x = normalise(video, cfg.mean, cfg.std)
        x = TubeEmbed(cfg.width, cfg.patch, use_bias=False, dtype=self.dtype, name="stem")(x)
        table = cfg.frames if cfg.temporal_positions == "learned" else 0
        x = PositionTables((cfg.side, cfg.side), table, self.dtype, name="positions")(x)
        x = LayerNorm(cfg.eps, dtype=self.dtype, name="input_norm")(with_class_token(self, x))
        x = Stack(self._block(), cfg.depth, cfg.drop_path, cfg.remat, cfg.unroll, name="stack")(
            x, None, train
        )
        token = LayerNorm(cfg.eps, dtype=jnp.float32, name="norm")(x[:, 0])
        return Dense((self.embedding,), "d o", use_bias=False, dtype=jnp.float32, name="projection")(token)

    def _block(self) -> functools.partial[nn.Module]:
        cfg = self.config
        attention = functools.partial(SelfAttention, heads=cfg.heads, dtype=self.dtype, impl=self.impl)
        mlp = functools.partial(Mlp, hidden=4 * cfg.width, activation=cfg.activation, dtype=self.dtype)
        return functools.partial(Block, attention, mlp, eps=cfg.eps, dtype=self.dtype)
