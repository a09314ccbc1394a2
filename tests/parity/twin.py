"""EVA02-AT and CLIP's text tower once more, in torch: an independent twin written from the papers' formulas.

It keeps EVA-02's own layout (interleaved pairs, (out, in) matrices, names of the public weights) and shares no code
with stvl: rotation is multiplication of complex numbers, the tube is a convolution, scores are one batch of matrices.
Runs in the precision of its weights (f64 in the tests). torch is imported inside functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compare import MEAN, STD, Arrays, TextSizes, VideoSizes

Tensor = Any
Tensors = dict[str, Any]


def tensors(weights: Arrays) -> Tensors:
    """Trainable f64 tensors."""
    import torch

    return {name: torch.tensor(a, dtype=torch.float64, requires_grad=True) for name, a in weights.items()}


def linear(w: Tensors, name: str, x: Tensor) -> Tensor:
    """``x W^T + b``; b where there is one."""
    out = x @ w[f"{name}.weight"].T
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def norm(w: Tensors, name: str, x: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """``softmax(q k^T / sqrt(e)) v`` on (b, h, n, e), heads joined again."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    out = scores.softmax(-1) @ v
    return out.transpose(1, 2).flatten(2)


def heads(x: Tensor, count: int) -> Tensor:
    """(b, n, d) -> (b, h, n, e)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def turn(x: Tensor, phases: Tensor) -> Tensor:
    """Multiply pair i of a head, ``x[2i] + j x[2i + 1]``, by a unit complex number; x is (b, h, n, e)."""
    import torch

    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * phases).flatten(-2)


def phases(sizes: VideoSizes, frames: int, time: bool) -> Tensor:
    """``exp(j angle)``: R(xy) from EVA-02's 2-D rotation, times R(t) over the whole head if `time` (Eq. 8-10)."""
    import torch

    e, side = sizes.head, sizes.side
    spatial = 10000 ** (-torch.arange(0, e // 2, 2, dtype=torch.float64) / (e // 2))
    temporal = 10000 ** (-torch.arange(0, e, 2, dtype=torch.float64) / e)
    place = torch.arange(side, dtype=torch.float64) / side * 16
    row = torch.polar(torch.ones(side, e // 4, dtype=torch.float64), place[:, None] * spatial)
    row = torch.cat([row[:, None].expand(-1, side, -1), row[None].expand(side, -1, -1)], dim=-1)
    frame = torch.arange(frames, dtype=torch.float64)[:, None] * temporal * (1 if time else 0)
    frame = torch.polar(torch.ones_like(frame), frame)
    grid = (frame[:, None, None] * row).flatten(0, 2)
    return torch.cat([torch.ones(1, e // 2, dtype=grid.dtype), grid])


def video_attention(w: Tensors, name: str, x: Tensor, turns: Tensor, count: int) -> Tensor:
    """EVA-02's attention with the norm before the out-projection."""
    q, k, v = (heads(linear(w, f"{name}.{kind}_proj", x), count) for kind in "qkv")
    out = attend(turn(q, turns), turn(k, turns), v)
    return linear(w, f"{name}.proj", norm(w, f"{name}.norm", out, 1e-6))


def video_block(w: Tensors, i: int, x: Tensor, turns: Tensor, count: int) -> Tensor:
    """Pre-norm block with SwiGLU."""
    name = f"blocks.{i}"
    x = x + video_attention(w, f"{name}.attn", norm(w, f"{name}.norm1", x, 1e-6), turns, count)
    inner = norm(w, f"{name}.norm2", x, 1e-6)
    gate = linear(w, f"{name}.mlp.fc1_g", inner)
    inner = gate * gate.sigmoid() * linear(w, f"{name}.mlp.fc1_x", inner)
    return x + linear(w, f"{name}.mlp.fc2", norm(w, f"{name}.mlp.norm", inner, 1e-6))


def table(rows: Tensor, frames: int) -> Tensor:
    """P_t read at the centres of `frames` equal segments, linearly, held at both ends."""
    import torch

    count = len(rows)
    place = ((torch.arange(frames, dtype=torch.float64) + 0.5) / frames * count - 0.5).clamp(0, count - 1)
    # A hat function of width one around every row.
    weights = (1 - (place[:, None] - torch.arange(count)).abs()).clamp(min=0)
    return weights @ rows


def video_tokens(w: Tensors, frames: np.ndarray, sizes: VideoSizes, learned: bool) -> Tensor:
    """``z0 = x + P_xy + P_t`` behind the class token, from uint8 (b, t, y, x, c)."""
    import torch

    clip = torch.from_numpy(frames).double() / 255
    clip = (clip - torch.tensor(MEAN, dtype=torch.float64)) / torch.tensor(STD, dtype=torch.float64)
    kernel, p = w["patch_embed.proj.weight"][:, :, None], sizes.patch
    x = torch.nn.functional.conv3d(
        clip.permute(0, 4, 1, 2, 3), kernel, w["patch_embed.proj.bias"], stride=(1, p, p)
    )
    x = x.flatten(3).permute(0, 2, 3, 1) + w["pos_embed"][0, 1:]
    if learned:
        x = x + table(w["time"], x.shape[1])[None, :, None]
    first = (w["cls_token"] + w["pos_embed"][:, :1]).expand(len(x), -1, -1)
    return torch.cat([first, x.flatten(1, 2)], dim=1)


def video_tower(w: Tensors, frames: np.ndarray, sizes: VideoSizes, mode: str) -> Tensor:
    """Features of clips."""
    x = video_tokens(w, frames, sizes, mode in ("learned", "both"))
    turns = phases(sizes, frames.shape[1], mode in ("rope", "both"))
    for i in range(sizes.depth):
        x = video_block(w, i, x, turns, sizes.heads)
    return linear(w, "head", norm(w, "norm", x[:, 0], 1e-6))


def text_block(w: Tensors, i: int, x: Tensor, count: int) -> Tensor:
    """CLIP's causal block with the exact GELU, ``x (1 + erf(x / sqrt 2)) / 2``."""
    import torch

    name, n = f"text_model.encoder.layers.{i}", x.shape[1]
    inner = norm(w, f"{name}.layer_norm1", x, 1e-5)
    q, k, v = (heads(linear(w, f"{name}.self_attn.{kind}_proj", inner), count) for kind in "qkv")
    past = torch.arange(n)[:, None] >= torch.arange(n)
    x = x + linear(w, f"{name}.self_attn.out_proj", attend(q, k, v, past))
    inner = linear(w, f"{name}.mlp.fc1", norm(w, f"{name}.layer_norm2", x, 1e-5))
    return x + linear(w, f"{name}.mlp.fc2", inner * (1 + torch.erf(inner / 2**0.5)) / 2)


def text_tower(w: Tensors, ids: np.ndarray, sizes: TextSizes) -> Tensor:
    """Features of texts at their end token, the largest id."""
    import torch

    words = torch.from_numpy(ids).long()
    x = w["text_model.embeddings.token_embedding.weight"][words]
    x = x + w["text_model.embeddings.position_embedding.weight"][: ids.shape[1]]
    for i in range(sizes.depth):
        x = text_block(w, i, x, sizes.heads)
    end = x[torch.arange(len(ids)), words.argmax(1)]
    return linear(w, "text_projection", norm(w, "text_model.final_layer_norm", end, 1e-5))


def contrast(video: Tensor, text: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits of unit features, and the mean over both directions of ``-log softmax`` at the pairs."""
    video, text = (x / (x * x).sum(-1, keepdim=True).sqrt() for x in (video, text))
    logits = video @ text.T / temperature
    pairs = [-(x.log_softmax(1)).diagonal().mean() for x in (logits, logits.T)]
    return logits, (pairs[0] + pairs[1]) / 2
