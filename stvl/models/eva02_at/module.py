"""The EVA02-AT video tower."""

from __future__ import annotations

import functools
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from stvl.core.config import config
from stvl.core.errors import ConfigError
from stvl.models.eva02_at.schemes import AnyRope, EachFrame, sees_time
from stvl.nn.attention import SelfAttention
from stvl.nn.dense import Dense, LayerNorm
from stvl.nn.flops import block_flops, stem_flops
from stvl.nn.mlp import SwiGLU
from stvl.nn.pixels import CLIP_MEAN, CLIP_STD, TubeEmbed, normalise
from stvl.nn.positions import PositionTables, with_class_token
from stvl.nn.sizes import check_heads, check_patches
from stvl.nn.stack import Block, Stack
from stvl.ops.rotary import Rotary
from stvl.rope.schemes import RopeScheme, STRope


@config
class EVA02ATConfig:
    """Sizes and options of the video tower (EVA02-AT, arXiv 2506.14356, Section 3; EVA-02, arXiv 2303.11331).

    Attributes:
        width: token width d.
        depth: number of blocks.
        heads: number of heads; ``width / heads`` is the head width, 64 in all published sizes.
        patch: patch side in pixels.
        tube: frames in one token; 1 keeps image weights loadable.
        image_size: side of the square frames in pixels.
        frames: length of the learned table P_t (only where `temporal_positions` has one); clips of other lengths
            resample it linearly.
        temporal_positions: ``learned`` = P_t with the image model's 2-D rotary; ``rope`` = ST-RoPE without P_t;
            ``both`` = the paper's best; ``none`` = nothing tells the frames apart (a control).
        rope: the joint space-time scheme; where time has no rotation every frame takes its angles at time 0.
        projection_bias: whether the projection into the shared space has a bias, as in EVA-CLIP's image towers.
        drop_path: stochastic depth of the last block.
        remat: what the backward pass keeps, a name in `stvl.nn.stack.REMAT`.
        unroll: layers in one trip of the scan over layers.
        mean, std: normalisation of pixels in [0, 1].
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    tube: int = 1
    image_size: int = 224
    frames: int = 4
    temporal_positions: Literal["learned", "rope", "both", "none"] = "both"
    rope: AnyRope = STRope()
    projection_bias: bool = False
    drop_path: float = 0.0
    remat: str = "none"
    unroll: int = 1
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        check_patches(self.image_size, self.patch)
        self.rope.frequencies(self.width // self.heads)
        if self.temporal_positions in ("rope", "both") and not sees_time(self.rope):
            raise ConfigError(
                f"{type(self.rope).__name__} turns all frames alike, so temporal_positions = "
                f"{self.temporal_positions!r} would see no time: set it to 'learned' or 'none', or rope to STRope()"
            )

    @property
    def scheme(self) -> RopeScheme:
        """The rotary scheme in force: joint in space and time, or of space alone."""
        if self.temporal_positions in ("rope", "both"):
            return self.rope
        return EachFrame(scheme=self.rope)

    @property
    def mlp_hidden(self) -> int:
        """SwiGLU width, two thirds of 4 d, rounded down as the public weights do (2048 for B, 2730 for L)."""
        return int(self.width * 4 * 2 / 3)

    @property
    def side(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch

    @property
    def title(self) -> str:
        """Family and sizes in words, for cards and messages."""
        return f"EVA02-AT {self.width}x{self.depth}, patch {self.patch}"

    def flops(self, frames: int) -> int:
        """FLOPs of one clip up to the last block."""
        places = self.side**2 * (frames // self.tube)
        blocks = self.depth * block_flops(places + 1, self.width, self.mlp_hidden, 3)
        return stem_flops(places, self.tube, self.patch, self.width) + blocks

    def tower(self, embedding: int, dtype: DTypeLike, impl: str | None) -> nn.Module:
        """The module of these sizes: frames to features of width `embedding`."""
        return VideoEncoder(self, embedding, jnp.dtype(dtype), impl)


class VideoEncoder(nn.Module):
    """Joint space-time encoder: ``(b t y x 3)`` frames to ``(b o)`` features of the class token.

    Attributes:
        config: sizes.
        embedding: width of the shared space.
        dtype: compute dtype.
        impl: attention backend, None for the best one.
    """

    config: EVA02ATConfig
    embedding: int
    dtype: jnp.dtype = jnp.float32
    impl: str | None = None

    @nn.compact
    def __call__(self, video: Num[Array, "b t y x c"], train: bool = False) -> Float[Array, "b o"]:
        cfg = self.config
        x = normalise(video, cfg.mean, cfg.std)
        x = TubeEmbed(cfg.width, cfg.patch, cfg.tube, dtype=self.dtype, name="stem")(x)
        table = cfg.frames if cfg.temporal_positions in ("learned", "both") else 0
        x = PositionTables((cfg.side, cfg.side), table // cfg.tube, self.dtype, name="positions")(x)
        rotary = self._rotary(x.shape)
        x = with_class_token(self, x)
        x = Stack(self._block(), cfg.depth, cfg.drop_path, cfg.remat, cfg.unroll, name="stack")(
            x, rotary, train
        )
        token = LayerNorm(1e-6, dtype=jnp.float32, name="norm")(x[:, 0])
        return Dense((self.embedding,), "d o", cfg.projection_bias, dtype=jnp.float32, name="projection")(
            token
        )

    def _block(self) -> functools.partial[nn.Module]:
        cfg = self.config
        attention = functools.partial(
            SelfAttention, heads=cfg.heads, key_bias=False, sub_norm=True, dtype=self.dtype, impl=self.impl
        )
        mlp = functools.partial(SwiGLU, hidden=cfg.mlp_hidden, dtype=self.dtype)
        return functools.partial(Block, attention, mlp, dtype=self.dtype)

    def _rotary(self, shape: tuple[int, ...]) -> Rotary:
        cfg = self.config
        coords = cfg.scheme.coords(*shape[1:4], prefix=1)
        frequencies = cfg.scheme.frequencies(cfg.width // cfg.heads)
        return Rotary(jnp.asarray(coords, jnp.float32), jnp.asarray(frequencies, jnp.float32))
