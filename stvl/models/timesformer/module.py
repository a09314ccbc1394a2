"""The video tower of LaViLa: CLIP's ViT with an attention over time in front of each attention over space."""

from __future__ import annotations

import functools
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from stvl.core.config import config
from stvl.nn.dense import Dense, LayerNorm
from stvl.nn.divided import DividedAttention, DividedBlock
from stvl.nn.flops import divided_flops, stem_flops
from stvl.nn.mlp import Activation, Mlp
from stvl.nn.pixels import CLIP_MEAN, CLIP_STD, TubeEmbed, normalise
from stvl.nn.positions import PositionTables, with_class_token
from stvl.nn.sizes import check_heads, check_patches
from stvl.nn.stack import Stack


@config
class TimeSformerConfig:
    """Sizes and options of the divided space-time tower (Frozen in Time, arXiv 2104.00650; LaViLa, arXiv 2212.04501).

    Attributes:
        width, depth, heads: as in `EVA02ATConfig`; the MLP is four widths wide.
        patch: patch side in pixels.
        image_size: side of the square frames in pixels.
        frames: length of the learned table P_t; clips of other lengths resample it linearly.
        temporal_positions: ``learned`` = P_t, at zero in the beginning; ``none`` = nothing tells the frames apart.
        activation: ``gelu`` or ``quick_gelu`` (LaViLa, which starts from OpenAI's weights).
        input_norm: CLIP's norm before the first block, and a patch embedding without a bias; False is Frozen in Time's own
            ViT, without that norm and with that bias.
        eps: epsilon of the norms of blocks and output; the input norm has 1e-5 in LaViLa.
        drop_path, remat, unroll, mean, std: as in `EVA02ATConfig`.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    image_size: int = 224
    frames: int = 4
    temporal_positions: Literal["learned", "none"] = "learned"
    activation: Activation = "quick_gelu"
    input_norm: bool = True
    eps: float = 1e-6
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
        return f"TimeSformer {self.width}x{self.depth}, patch {self.patch}"

    def flops(self, frames: int) -> int:
        """FLOPs of one clip up to the last block."""
        blocks = self.depth * divided_flops(frames, self.side**2, self.width, 4 * self.width)
        return stem_flops(self.side**2 * frames, 1, self.patch, self.width) + blocks

    def tower(self, embedding: int, dtype: DTypeLike, impl: str | None) -> nn.Module:
        """The module of these sizes: frames to features of width `embedding`."""
        return TimeSformerEncoder(self, embedding, jnp.dtype(dtype), impl)


class TimeSformerEncoder(nn.Module):
    """Divided space-time encoder: ``(b t y x 3)`` frames to ``(b o)`` features of the class token.

    The attention over time starts with an out-projection of zero, so that the tower starts as the image model on which
    it stands: each frame attends within itself, and the class token to all frames.

    Attributes:
        config: sizes.
        embedding: width of the shared space.
        dtype: compute dtype.
        impl: attention backend, None for the best one.
    """

    config: TimeSformerConfig
    embedding: int
    dtype: jnp.dtype = jnp.float32
    impl: str | None = None

    @nn.compact
    def __call__(self, video: Num[Array, "b t y x c"], train: bool = False) -> Float[Array, "b o"]:
        cfg = self.config
        x = normalise(video, cfg.mean, cfg.std)
        x = TubeEmbed(cfg.width, cfg.patch, use_bias=not cfg.input_norm, dtype=self.dtype, name="stem")(x)
        table = cfg.frames if cfg.temporal_positions == "learned" else 0
        frames = x.shape[1]
        x = PositionTables((cfg.side, cfg.side), table, self.dtype, name="positions")(x)
        x = with_class_token(self, x)
        if cfg.input_norm:
            x = LayerNorm(1e-5, dtype=self.dtype, name="input_norm")(x)
        stack = Stack(self._block(frames), cfg.depth, cfg.drop_path, cfg.remat, cfg.unroll, name="stack")
        token = LayerNorm(cfg.eps, dtype=jnp.float32, name="norm")(stack(x, None, train)[:, 0])
        return Dense((self.embedding,), "d o", use_bias=False, dtype=jnp.float32, name="projection")(token)

    def _block(self, frames: int) -> functools.partial[nn.Module]:
        cfg = self.config
        divided = functools.partial(
            DividedAttention, heads=cfg.heads, frames=frames, dtype=self.dtype, impl=self.impl
        )
        time = functools.partial(divided, along="time", silent=True)
        space = functools.partial(divided, along="space")
        mlp = functools.partial(Mlp, hidden=4 * cfg.width, activation=cfg.activation, dtype=self.dtype)
        return functools.partial(DividedBlock, time, space, mlp, eps=cfg.eps, dtype=self.dtype)
