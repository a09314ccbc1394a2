"""The image towers once more in plain numpy (float64), with one thing that stvl's have not: how often each key counts.

In a static clip of T frames whose positions tell no time, every patch stands there T times with one key and one value,
and the class token once. So the softmax of the clip is that of the image with the patches' weights times T:
``w_c = exp(s_c)``, ``w_i = T exp(s_i)``, divided by their sum.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

_erf = np.vectorize(math.erf)


def norm(p: Any, x: np.ndarray, eps: float, axes: int = 1) -> np.ndarray:
    over = tuple(range(-axes, 0))
    scaled = (x - x.mean(over, keepdims=True)) / np.sqrt(x.var(over, keepdims=True) + eps)
    return scaled * p["scale"] + p["bias"]


def dense(p: Any, x: np.ndarray, inputs: int = 1) -> np.ndarray:
    return np.tensordot(x, p["kernel"], inputs) + p.get("bias", 0.0)


def rotate(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    one, two = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)


def attention(p: Any, x: np.ndarray, counts: np.ndarray, angles: np.ndarray | None) -> np.ndarray:
    """Tokens (b n d); `counts` (n n) says how often query n sees key n."""
    q, k, v = (dense(p[name], x) for name in ("query", "key", "value"))
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    scores = np.einsum("bqhe,bshe->bhqs", q, k) / math.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * counts
    out = np.einsum("bhqs,bshe->bqhe", weights / weights.sum(-1, keepdims=True), v)
    out = norm(p["norm"], out, 1e-6, 2) if "norm" in p else out
    return dense(p["out"], out, 2)


def mlp(p: Any, x: np.ndarray, activation: str) -> np.ndarray:
    up = dense(p["up"], x)
    if "gate" in p:
        gate = dense(p["gate"], x)
        inner = gate / (1 + np.exp(-gate)) * up
        return dense(p["out"], norm(p["norm"], inner, 1e-6))
    if activation == "quick_gelu":
        return dense(p["out"], up / (1 + np.exp(-1.702 * up)))
    return dense(p["out"], up * 0.5 * (1 + _erf(up / math.sqrt(2))))


def feature(video: Any, params: Any, images: np.ndarray, copies: int = 1) -> np.ndarray:
    """Unit features of uint8 images (b y x 3) as static clips of `copies` frames."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["video"])
    side, size, width = video.side, video.patch, video.width
    pixels = (images / 255.0 - np.array(video.mean)) / np.array(video.std)
    cut = pixels.reshape(len(images), side, size, side, size, 3).transpose(0, 1, 3, 2, 4, 5)
    stem = cut.reshape(len(images), side * side, -1) @ p["stem"]["kernel"].reshape(-1, width)
    stem = stem + p["stem"].get("bias", 0.0) + p["positions"]["space"]
    first = np.broadcast_to(p["class_token"] + p["class_position"], (len(images), 1, width))
    x, eps = np.concatenate([first, stem], axis=1), getattr(video, "eps", 1e-6)
    if "input_norm" in p:
        x = norm(p["input_norm"], x, 1e-5)
    counts = np.full((side * side + 1,) * 2, float(copies))
    counts[:, 0] = 1
    if "time" in p["stack"]["layers"]:
        # Divided attention: only the class token sees the patches of all frames.
        counts[1:] = 1
    angles = None
    if hasattr(video, "scheme"):
        angles = video.scheme.coords(1, side, side, prefix=1) @ video.scheme.frequencies(width // video.heads)
    for layer in range(video.depth):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], p["stack"]["layers"])
        x = x + attention(block["attention"], norm(block["attention_norm"], x, eps), counts, angles)
        x = x + mlp(block["mlp"], norm(block["mlp_norm"], x, eps), getattr(video, "activation", ""))
    out = dense(p["projection"], norm(p["norm"], x[:, 0], eps))
    return out / np.linalg.norm(out, axis=-1, keepdims=True)
