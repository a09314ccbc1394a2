"""CLIP's ViT and TimeSformer in float64 numpy, with attention as one masked softmax over all tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Tree = dict[str, Any]


def norm(x: np.ndarray, p: Tree, eps: float) -> np.ndarray:
    """LayerNorm over the last axis."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def attend(x: np.ndarray, p: Tree, seen: np.ndarray) -> np.ndarray:
    """Multi-head attention; `seen` (q s) says which token may see which."""
    q, k, v = (
        np.einsum("bnd,dhe->bnhe", x, p[part]["kernel"]) + p[part]["bias"]
        for part in ("query", "key", "value")
    )
    scores = np.einsum("bqhe,bshe->bhqs", q, k) / math.sqrt(q.shape[-1])
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bhqs,bshe->bqhe", weights, v)
    return np.einsum("bqhe,hed->bqd", out, p["out"]["kernel"]) + p["out"]["bias"]


def act(x: np.ndarray, name: str) -> np.ndarray:
    """The two activations."""
    if name == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def mlp(x: np.ndarray, p: Tree, name: str) -> np.ndarray:
    """Two products."""
    inner = act(x @ p["up"]["kernel"] + p["up"]["bias"], name)
    return inner @ p["out"]["kernel"] + p["out"]["bias"]


def embed(cfg: Any, p: Tree, clip: np.ndarray) -> np.ndarray:
    """Patches one by one, their positions, and the class token in front."""
    pixels = (clip / 255 - np.array(cfg.mean)) / np.array(cfg.std)
    rows, size = [], cfg.patch
    for t in range(clip.shape[1]):
        for y in range(cfg.side):
            for x in range(cfg.side):
                patch = pixels[:, t, y * size : (y + 1) * size, x * size : (x + 1) * size]
                token = np.einsum("byxc,yxcd->bd", patch, p["stem"]["kernel"][0]) + p["stem"].get("bias", 0.0)
                token = token + p["positions"]["space"][y * cfg.side + x]
                rows.append(token + (p["positions"]["time"][t] if "time" in p["positions"] else 0.0))
    first = np.broadcast_to(p["class_token"] + p["class_position"], rows[0].shape)
    return np.stack([first, *rows], axis=1)


def groups(frames: int, places: int) -> tuple[np.ndarray, np.ndarray]:
    """Who sees whom along time and along space: the class token all, a patch the class token and its group."""
    frame = np.concatenate([[-1], np.repeat(np.arange(frames), places)])
    place = np.concatenate([[-1], np.tile(np.arange(places), frames)])
    time, space = (ids[:, None] == ids for ids in (place, frame))
    for seen in (time, space):
        seen[0], seen[:, 0] = True, True
    return time, space


def tower(cfg: Any, params: Tree, clip: np.ndarray, divided: bool, input_eps: float) -> np.ndarray:
    """Features of the class token; blocks have an attention over time where `divided`."""
    p = params
    x = embed(cfg, p, clip)
    if "input_norm" in p:
        x = norm(x, p["input_norm"], input_eps)
    time, space = groups(clip.shape[1], cfg.side**2)
    seen = space if divided else np.ones_like(space)
    for i in range(cfg.depth):
        layer = _layer(p["stack"]["layers"], i)
        inner = x
        if divided:
            inner = x + attend(norm(x, layer["time_norm"], cfg.eps), layer["time"], time)
        x = x + attend(norm(inner, layer["attention_norm"], cfg.eps), layer["attention"], seen)
        x = x + mlp(norm(x, layer["mlp_norm"], cfg.eps), layer["mlp"], cfg.activation)
    return norm(x[:, 0], p["norm"], cfg.eps) @ p["projection"]["kernel"]


def _layer(tree: Tree, index: int) -> Tree:
    return {
        name: _layer(node, index) if isinstance(node, dict) else node[index] for name, node in tree.items()
    }
