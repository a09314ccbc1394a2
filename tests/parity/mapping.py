"""Source-layout weights (timm's EVA-02, transformers' CLIP text) as stvl's parameter trees; numpy only.

A linear and invertible map (permutations and reshapes), so it carries gradients as well as weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

Tree = dict[str, Any]
Weights = Mapping[str, np.ndarray]


def half_split(e: int) -> np.ndarray:
    """Where half-split element k of a head stands in an interleaved one: pair (k, k + e/2) was (2k, 2k + 1)."""
    return np.concatenate([np.arange(0, e, 2), np.arange(1, e, 2)])


def _linear(w: Weights, name: str) -> Tree:
    tree = {"kernel": w[f"{name}.weight"].T}
    return tree | ({"bias": w[f"{name}.bias"]} if f"{name}.bias" in w else {})


def _to_heads(w: Weights, name: str, heads: int, rotary: bool) -> Tree:
    """(h*e, d) -> (d, h, e), the columns of rotated heads half-split."""
    weight = w[f"{name}.weight"]
    out, width = weight.shape
    order = half_split(out // heads) if rotary else np.arange(out // heads)
    tree = {"kernel": weight.T.reshape(width, heads, -1)[:, :, order]}
    return tree | ({"bias": w[f"{name}.bias"].reshape(heads, -1)[:, order]} if f"{name}.bias" in w else {})


def _from_heads(w: Weights, name: str, heads: int) -> Tree:
    weight = w[f"{name}.weight"]
    return {"kernel": weight.T.reshape(heads, -1, weight.shape[0]), "bias": w[f"{name}.bias"]}


def _norm(w: Weights, name: str, shape: tuple[int, ...] = (-1,)) -> Tree:
    return {"scale": w[f"{name}.weight"].reshape(shape), "bias": w[f"{name}.bias"].reshape(shape)}


def _stack(layer: Callable[[int], Tree], depth: int) -> Tree:
    def join(parts: list[Any]) -> Any:
        if isinstance(parts[0], dict):
            return {key: join([part[key] for part in parts]) for key in parts[0]}
        return np.stack(parts)

    return {"layers": join([layer(i) for i in range(depth)])}


def _depth(w: Weights, prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in w if name.startswith(prefix))


def video_block(w: Weights, i: int, heads: int, rotary: bool = True) -> Tree:
    """Block `i` of an EVA-02 tower."""
    name = f"blocks.{i}"
    attention = {
        "query": _to_heads(w, f"{name}.attn.q_proj", heads, rotary),
        "key": _to_heads(w, f"{name}.attn.k_proj", heads, rotary),
        "value": _to_heads(w, f"{name}.attn.v_proj", heads, False),
        "norm": _norm(w, f"{name}.attn.norm", (heads, -1)),
        "out": _from_heads(w, f"{name}.attn.proj", heads),
    }
    mlp = {
        "gate": _linear(w, f"{name}.mlp.fc1_g"),
        "up": _linear(w, f"{name}.mlp.fc1_x"),
        "norm": _norm(w, f"{name}.mlp.norm"),
        "out": _linear(w, f"{name}.mlp.fc2"),
    }
    norms = {"attention_norm": _norm(w, f"{name}.norm1"), "mlp_norm": _norm(w, f"{name}.norm2")}
    return {"attention": attention, "mlp": mlp} | norms


def video_tree(w: Weights, heads: int, time: Float[np.ndarray, "t d"] | None = None) -> Tree:
    """Parameters of `VideoEncoder`; with `time` as the table P_t, without it no such table."""
    patch = w["patch_embed.proj.weight"]
    return {
        "stem": {"kernel": patch.transpose(2, 3, 1, 0)[None], "bias": w["patch_embed.proj.bias"]},
        "positions": {"space": w["pos_embed"][0, 1:]} | ({} if time is None else {"time": time}),
        "class_token": w["cls_token"][0, 0],
        "class_position": w["pos_embed"][0, 0],
        "stack": _stack(lambda i: video_block(w, i, heads), _depth(w, "blocks.")),
        "norm": _norm(w, "norm"),
        "projection": _linear(w, "head"),
    }


def text_block(w: Weights, i: int, heads: int) -> Tree:
    """Block `i` of a CLIP text tower."""
    name = f"text_model.encoder.layers.{i}"
    split = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    attention = {
        ours: _to_heads(w, f"{name}.self_attn.{their}", heads, False) for ours, their in split.items()
    }
    return {
        "attention_norm": _norm(w, f"{name}.layer_norm1"),
        "attention": attention | {"out": _from_heads(w, f"{name}.self_attn.out_proj", heads)},
        "mlp_norm": _norm(w, f"{name}.layer_norm2"),
        "mlp": {"up": _linear(w, f"{name}.mlp.fc1"), "out": _linear(w, f"{name}.mlp.fc2")},
    }


def text_tree(w: Weights, heads: int) -> Tree:
    """Parameters of `TextEncoder`."""
    return {
        "tokens": w["text_model.embeddings.token_embedding.weight"],
        "positions": w["text_model.embeddings.position_embedding.weight"],
        "stack": _stack(lambda i: text_block(w, i, heads), _depth(w, "text_model.encoder.layers.")),
        "norm": _norm(w, "text_model.final_layer_norm"),
        "projection": _linear(w, "text_projection"),
    }
