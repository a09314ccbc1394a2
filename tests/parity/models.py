"""The stvl side of the ladder at the sizes of `compare`."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn

from stvl.models.clip_text import ClipTextConfig
from stvl.models.dual import DualEncoder, DualEncoderConfig
from stvl.models.eva02_at.module import EVA02ATConfig, VideoEncoder
from stvl.nn.attention import SelfAttention
from stvl.nn.mlp import Mlp, SwiGLU
from stvl.nn.stack import Block
from stvl.ops.attention import Causal

from .compare import TextSizes, VideoSizes


def video_config(sizes: VideoSizes, mode: str = "both", **fields: Any) -> EVA02ATConfig:
    """The video tower of `sizes`."""
    return EVA02ATConfig(
        width=sizes.width,
        depth=sizes.depth,
        heads=sizes.heads,
        patch=sizes.patch,
        image_size=sizes.image,
        frames=sizes.frames,
        temporal_positions=mode,  # pyright: ignore[reportArgumentType]
        **fields,
    )


def text_config(sizes: TextSizes) -> ClipTextConfig:
    """The text tower of `sizes`."""
    names = ("width", "depth", "heads", "context", "vocabulary")
    return ClipTextConfig(**{name: getattr(sizes, name) for name in names})


def video_encoder(sizes: VideoSizes, mode: str = "both", **fields: Any) -> VideoEncoder:
    """``frames -> features``, not of unit length yet."""
    return VideoEncoder(video_config(sizes, mode, **fields), sizes.embedding)


def dual_encoder(video: VideoSizes, text: TextSizes) -> DualEncoder:
    """Both towers."""
    return DualEncoder(
        DualEncoderConfig(video=video_config(video), text=text_config(text), embedding=video.embedding)
    )


def video_attention(sizes: VideoSizes, impl: str | None = None) -> SelfAttention:
    """EVA-02's attention: no bias of k, a norm before the out-projection."""
    return SelfAttention(sizes.heads, key_bias=False, sub_norm=True, impl=impl)


def video_block(sizes: VideoSizes) -> nn.Module:
    """EVA-02's block."""
    attention = functools.partial(SelfAttention, heads=sizes.heads, key_bias=False, sub_norm=True)
    return Block(attention, functools.partial(SwiGLU, hidden=sizes.hidden))


def text_block(sizes: TextSizes) -> nn.Module:
    """CLIP's block."""
    attention = functools.partial(SelfAttention, heads=sizes.heads, mask=Causal())
    return Block(attention, functools.partial(Mlp, hidden=4 * sizes.width), eps=1e-5)
