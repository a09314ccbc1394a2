"""Random weights in the public namings, at tiny sizes. Plain numpy: the generator runs without jax and stvl."""

from __future__ import annotations

import dataclasses

import numpy as np

from .compare import Arrays, Draw


@dataclasses.dataclass(frozen=True)
class Tiny:
    """Sizes of both towers; heads are not width / 64, so that a test has to say them."""

    width: int = 16
    depth: int = 2
    heads: int = 2
    patch: int = 4
    image: int = 12
    frames: int = 3
    embedding: int = 6
    text_width: int = 12
    text_depth: int = 3
    text_heads: int = 3
    context: int = 8
    vocabulary: int = 24

    @property
    def side(self) -> int:
        """Patches along a side."""
        return self.image // self.patch

    @property
    def hidden(self) -> int:
        """SwiGLU width."""
        return int(self.width * 4 * 2 / 3)


TINY = Tiny()


def resblock(draw: Draw, name: str, d: int, flash: bool = False) -> None:
    """A block of CLIP; `flash` with flash_attn's names."""
    qkv = ("attn.Wqkv.weight", "attn.Wqkv.bias") if flash else ("attn.in_proj_weight", "attn.in_proj_bias")
    up, out = ("mlp.fc1", "mlp.fc2") if flash else ("mlp.c_fc", "mlp.c_proj")
    draw.norm(f"{name}.ln_1", d)
    draw.array(f"{name}.{qkv[0]}", 3 * d, d, scale=2 * d**-0.5)
    draw.array(f"{name}.{qkv[1]}", 3 * d, scale=0.3)
    draw.linear(f"{name}.attn.out_proj", d, d)
    draw.norm(f"{name}.ln_2", d)
    draw.linear(f"{name}.{up}", 4 * d, d)
    draw.linear(f"{name}.{out}", d, 4 * d)


def clip_text(draw: Draw, prefix: str, s: Tiny = TINY) -> None:
    """CLIP's text tower below `prefix`."""
    d = s.text_width
    draw.array(f"{prefix}token_embedding.weight", s.vocabulary, d)
    draw.array(f"{prefix}positional_embedding", s.context, d, scale=0.5)
    for i in range(s.text_depth):
        resblock(draw, f"{prefix}transformer.resblocks.{i}", d)
    draw.norm(f"{prefix}ln_final", d)
    draw.array(f"{prefix}text_projection", d, s.embedding, scale=d**-0.5)
    draw.weights["logit_scale"] = np.array(2.5, np.float32)


def eva_clip(seed: int, s: Tiny = TINY) -> Arrays:
    """EVA-CLIP's release, without its rotary tables."""
    d, draw = s.width, Draw(seed)
    draw.array("visual.cls_token", 1, 1, d)
    draw.array("visual.pos_embed", 1, 1 + s.side**2, d, scale=0.5)
    draw.array("visual.patch_embed.proj.weight", d, 3, s.patch, s.patch, scale=(3 * s.patch**2) ** -0.5)
    draw.array("visual.patch_embed.proj.bias", d, scale=0.3)
    for i in range(s.depth):
        block = f"visual.blocks.{i}"
        draw.norm(f"{block}.norm1", d)
        for name, gain in (("q", 2.0), ("k", 2.0), ("v", 1.0)):
            draw.linear(f"{block}.attn.{name}_proj", d, d, bias=False, gain=gain)
        draw.array(f"{block}.attn.q_bias", d, scale=0.3)
        draw.array(f"{block}.attn.v_bias", d, scale=0.3)
        draw.norm(f"{block}.attn.inner_attn_ln", d)
        draw.linear(f"{block}.attn.proj", d, d)
        draw.norm(f"{block}.norm2", d)
        draw.linear(f"{block}.mlp.w1", s.hidden, d)
        draw.linear(f"{block}.mlp.w2", s.hidden, d)
        draw.norm(f"{block}.mlp.ffn_ln", s.hidden)
        draw.linear(f"{block}.mlp.w3", d, s.hidden)
    draw.norm("visual.norm", d)
    draw.linear("visual.head", s.embedding, d)
    clip_text(draw, "text.", s)
    return draw.weights


def avion(seed: int, matrix: bool, flash: bool, s: Tiny = TINY) -> Arrays:
    """AVION's ``CLIP``, with or without its two switches."""
    d, draw = s.width, Draw(seed)
    pixels = 3 * s.patch**2
    draw.array("visual.class_embedding", d)
    draw.array("visual.positional_embedding", 1 + s.side**2, d, scale=0.5)
    draw.array("visual.temporal_embedding", s.frames, d, scale=0.5)
    shape = (d, pixels) if matrix else (d, 3, s.patch, s.patch)
    draw.array("visual.conv1.weight", *shape, scale=pixels**-0.5)
    draw.norm("visual.ln_pre", d)
    for i in range(s.depth):
        resblock(draw, f"visual.transformer.resblocks.{i}", d, flash)
    draw.norm("visual.ln_post", d)
    draw.array("visual.image_projection", d, s.embedding, scale=d**-0.5)
    clip_text(draw, "textual.", s)
    return draw.weights


def lavila(seed: int, s: Tiny = TINY) -> Arrays:
    """LaViLa's ``CLIP`` with its ``SpaceTimeTransformer``."""
    d, draw = s.width, Draw(seed)
    draw.array("visual.cls_token", 1, 1, d)
    draw.array("visual.pos_embed", 1, 1 + s.side**2, d, scale=0.5)
    draw.array("visual.temporal_embed", 1, s.frames, d, scale=0.5)
    draw.array("visual.patch_embed.proj.weight", d, 3, s.patch, s.patch, scale=(3 * s.patch**2) ** -0.5)
    draw.norm("visual.ln_pre", d)
    for i in range(s.depth):
        block = f"visual.blocks.{i}"
        for name in ("norm1", "norm2", "norm3"):
            draw.norm(f"{block}.{name}", d)
        for name in ("attn", "timeattn"):
            draw.linear(f"{block}.{name}.qkv", 3 * d, d, gain=2.0)
            draw.linear(f"{block}.{name}.proj", d, d)
        draw.linear(f"{block}.mlp.fc1", 4 * d, d)
        draw.linear(f"{block}.mlp.fc2", d, 4 * d)
    draw.norm("visual.norm", d)
    draw.array("image_projection", d, s.embedding, scale=d**-0.5)
    clip_text(draw, "", s)
    return draw.weights
