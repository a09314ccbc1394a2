"""Small checkpoints in public namings, written out by hand: names and shapes as open_clip has them, random values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stvl.weights.source import Entry
from stvl.weights.writer import write_safetensors

#: Those of the presets called tiny.
WIDTH, DEPTH, PATCH, SIDE, HIDDEN = 128, 4, 12, 4, 341
TEXT_WIDTH, TEXT_DEPTH, CONTEXT, VOCABULARY, EMBEDDING = 64, 2, 32, 49408, 64
SIZE = PATCH * SIDE

Shapes = dict[str, tuple[int, ...]]
State = dict[str, np.ndarray]


def _layer(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (outputs, inputs)}
    return shapes | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _clip_block(name: str, width: int) -> Shapes:
    return {
        **_norm(f"{name}.ln_1", width),
        f"{name}.attn.in_proj_weight": (3 * width, width),
        f"{name}.attn.in_proj_bias": (3 * width,),
        **_layer(f"{name}.attn.out_proj", width, width),
        **_norm(f"{name}.ln_2", width),
        **_layer(f"{name}.mlp.c_fc", width, 4 * width),
        **_layer(f"{name}.mlp.c_proj", 4 * width, width),
    }


def text_shapes(prefix: str = "") -> Shapes:
    """CLIP's text tower."""
    shapes: Shapes = {
        f"{prefix}token_embedding.weight": (VOCABULARY, TEXT_WIDTH),
        f"{prefix}positional_embedding": (CONTEXT, TEXT_WIDTH),
        f"{prefix}text_projection": (TEXT_WIDTH, EMBEDDING),
        **_norm(f"{prefix}ln_final", TEXT_WIDTH),
    }
    for layer in range(TEXT_DEPTH):
        shapes |= _clip_block(f"{prefix}transformer.resblocks.{layer}", TEXT_WIDTH)
    return shapes


def eva02_shapes() -> Shapes:
    """open_clip's EVA02 models: timm's trunk below ``visual.trunk.``, rotary buffers among the tensors."""
    trunk = "visual.trunk."
    shapes: Shapes = {
        "logit_scale": (),
        f"{trunk}cls_token": (1, 1, WIDTH),
        f"{trunk}pos_embed": (1, SIDE**2 + 1, WIDTH),
        f"{trunk}patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        f"{trunk}patch_embed.proj.bias": (WIDTH,),
        f"{trunk}rope.bands": (16,),
        **_norm(f"{trunk}norm", WIDTH),
        **_layer(f"{trunk}head", WIDTH, EMBEDDING),
        **text_shapes("text."),
    }
    for layer in range(DEPTH):
        block = f"{trunk}blocks.{layer}."
        shapes |= {
            **_norm(f"{block}norm1", WIDTH),
            **_layer(f"{block}attn.q_proj", WIDTH, WIDTH),
            **_layer(f"{block}attn.k_proj", WIDTH, WIDTH, bias=False),
            **_layer(f"{block}attn.v_proj", WIDTH, WIDTH),
            **_norm(f"{block}attn.norm", WIDTH),
            **_layer(f"{block}attn.proj", WIDTH, WIDTH),
            **_norm(f"{block}norm2", WIDTH),
            **_layer(f"{block}mlp.fc1_g", WIDTH, HIDDEN),
            **_layer(f"{block}mlp.fc1_x", WIDTH, HIDDEN),
            **_norm(f"{block}mlp.norm", HIDDEN),
            **_layer(f"{block}mlp.fc2", HIDDEN, WIDTH),
        }
    return shapes


def vit_shapes() -> Shapes:
    """open_clip's ViT models, as OpenAI named them."""
    shapes: Shapes = {
        "logit_scale": (),
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (SIDE**2 + 1, WIDTH),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        **_norm("visual.ln_pre", WIDTH),
        **_norm("visual.ln_post", WIDTH),
        "visual.proj": (WIDTH, EMBEDDING),
        **text_shapes(),
    }
    for layer in range(DEPTH):
        shapes |= _clip_block(f"visual.transformer.resblocks.{layer}", WIDTH)
    return shapes


def state(shapes: Shapes, dtype: Any = np.float32, seed: int = 0) -> State:
    """Random values; ``logit_scale`` is float32 whatever the rest is, as in files of mixed precision."""
    rng = np.random.default_rng(seed)
    values = {name: rng.standard_normal(shape, np.float32) * 0.1 for name, shape in shapes.items()}
    kinds = {name: np.float32 if name == "logit_scale" else dtype for name in shapes}
    return {name: np.asarray(value, np.float32).astype(kinds[name]) for name, value in values.items()}


def save(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """Write tensors as safetensors."""
    items = [
        (name, Entry(array.shape, array.dtype), lambda array=array: array) for name, array in tensors.items()
    ]
    write_safetensors(path, items, {"format": "pt"})
    return path
