"""AVION's and LaViLa's dual encoders once more, in torch, under their public names, from the facts of their code.

Independent of stvl: patches come from a convolution, q, k and v from one matrix, and divided attention is full attention
under a mask that says who sees whom. Runs in f64. torch is imported inside functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from .compare import STD
from .public_weights import TINY, Tiny
from .twin import Tensor, Tensors, attend, heads, linear, norm

#: The scripts of both projects write means and deviations for pixels of 0 to 255; their red mean is not CLIP's.
MEAN_255 = (108.3272985, 116.7460125, 104.09373615)
STD_255 = (68.5005327, 66.6321579, 70.32316305)
assert np.allclose(np.array(STD_255) / 255, STD, atol=1e-7)


def gelu(x: Tensor) -> Tensor:
    """The exact one."""
    import torch

    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def quick_gelu(x: Tensor) -> Tensor:
    """``x sigmoid(1.702 x)``."""
    return x * (1.702 * x).sigmoid()


@dataclasses.dataclass(frozen=True)
class Style:
    """What the two projects differ in.

    Attributes:
        act: activation.
        fused: name of the q-k-v parameters, weight and bias.
        out: name of the projection behind attention.
        mlp: names of the two layers of the MLP.
    """

    act: Callable[[Tensor], Tensor]
    fused: tuple[str, str] = ("in_proj_weight", "in_proj_bias")
    out: str = "out_proj"
    mlp: tuple[str, str] = ("c_fc", "c_proj")


def fused_attention(w: Tensors, name: str, x: Tensor, count: int, style: Style, mask: Tensor) -> Tensor:
    """Attention with q, k and v in one matrix; ``mask[q, s]`` says whether token q sees token s."""
    weight, bias = (w[f"{name}.{part}"] for part in style.fused)
    q, k, v = (heads(part, count) for part in (x @ weight.T + bias).chunk(3, dim=-1))
    return linear(w, f"{name}.{style.out}", attend(q, k, v, mask))


def mlp(w: Tensors, name: str, x: Tensor, style: Style) -> Tensor:
    """Two layers."""
    return linear(w, f"{name}.{style.mlp[1]}", style.act(linear(w, f"{name}.{style.mlp[0]}", x)))


def text_tower(w: Tensors, prefix: str, ids: np.ndarray, style: Style, s: Tiny = TINY) -> dict[str, Tensor]:
    """CLIP's text tower: causal, pre-norm, the feature of the largest id."""
    import torch

    index = torch.from_numpy(ids).long()
    x = w[f"{prefix}token_embedding.weight"][index] + w[f"{prefix}positional_embedding"][: ids.shape[1]]
    out = {"text/embed": x}
    mask = torch.tril(torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool))
    for i in range(s.text_depth):
        block = f"{prefix}transformer.resblocks.{i}"
        inner = norm(w, f"{block}.ln_1", x, 1e-5)
        x = x + fused_attention(w, f"{block}.attn", inner, s.text_heads, style, mask)
        x = x + mlp(w, f"{block}.mlp", norm(w, f"{block}.ln_2", x, 1e-5), style)
        out[f"text/blocks/{i}"] = x
    ends = norm(w, f"{prefix}ln_final", x, 1e-5)[torch.arange(len(ids)), index.argmax(-1)]
    return out | {"text/norm": ends, "text/projection": ends @ w[f"{prefix}text_projection"]}


def patches(kernel: Tensor, clip: np.ndarray) -> Tensor:
    """Convolved patches (b, t * n, d) of uint8 frames (b, t, y, x, c)."""
    import torch

    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (MEAN_255, STD_255))
    frames = (torch.from_numpy(clip).double() - mean) / std
    maps = torch.nn.functional.conv2d(
        frames.flatten(0, 1).permute(0, 3, 1, 2), kernel, stride=kernel.shape[-1]
    )
    return maps.flatten(2).mT.reshape(len(clip), -1, kernel.shape[0])


def embedded(x: Tensor, first: Tensor, places: Tensor, time: Tensor) -> Tensor:
    """``[class; patches]`` plus a table of places that repeats over frames plus a table of frames over places."""
    import torch

    grid = (places[None, 1:] + time[:, None]).flatten(0, 1)
    x = torch.cat([first.reshape(1, 1, -1).expand(len(x), -1, -1), x], dim=1)
    return x + torch.cat([places[:1], grid])


def avion(w: Tensors, clip: np.ndarray, ids: np.ndarray, flash: bool, s: Tiny = TINY) -> dict[str, Tensor]:
    """AVION: joint attention, exact GELU, norms of 1e-6 in the video tower and 1e-5 in the text tower."""
    import torch

    flashed = {"fused": ("Wqkv.weight", "Wqkv.bias"), "mlp": ("fc1", "fc2")} if flash else {}
    style: Any = Style(gelu, **flashed)
    kernel = w["visual.conv1.weight"].reshape(-1, 3, s.patch, s.patch)
    x = patches(kernel, clip)
    time = w["visual.temporal_embedding"]
    x = embedded(x, w["visual.class_embedding"], w["visual.positional_embedding"], time)
    x = norm(w, "visual.ln_pre", x, 1e-6)
    out = {"video/embed": x}
    everyone = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
    for i in range(s.depth):
        block = f"visual.transformer.resblocks.{i}"
        inner = norm(w, f"{block}.ln_1", x, 1e-6)
        x = x + fused_attention(w, f"{block}.attn", inner, s.heads, style, everyone)
        x = x + mlp(w, f"{block}.mlp", norm(w, f"{block}.ln_2", x, 1e-6), style)
        out[f"video/blocks/{i}"] = x
    token = norm(w, "visual.ln_post", x[:, 0], 1e-6)
    out |= {"video/norm": token, "video/projection": token @ w["visual.image_projection"]}
    # The text tower has no such switch: its norms are torch's default.
    return out | text_tower(w, "textual.", ids, Style(gelu), s)


def divided_masks(frames: int, places: int) -> tuple[Tensor, Tensor]:
    """Who sees whom along time and along space: a patch its group and the class token, the class token everybody."""
    import torch

    at = torch.arange(frames * places)
    time = (at[:, None] % places) == (at % places)
    space = (at[:, None] // places) == (at // places)
    masks = torch.ones(2, 1 + len(at), 1 + len(at), dtype=torch.bool)
    masks[0, 1:, 1:], masks[1, 1:, 1:] = time, space
    return masks[0], masks[1]


def lavila(w: Tensors, clip: np.ndarray, ids: np.ndarray, s: Tiny = TINY) -> dict[str, Tensor]:
    """LaViLa: divided attention with Frozen in Time's residuals, quick GELU, norms of 1e-6, the first one of 1e-5."""
    style = Style(quick_gelu, ("qkv.weight", "qkv.bias"), "proj", ("fc1", "fc2"))
    x = patches(w["visual.patch_embed.proj.weight"], clip)
    x = embedded(x, w["visual.cls_token"], w["visual.pos_embed"][0], w["visual.temporal_embed"][0])
    x = norm(w, "visual.ln_pre", x, 1e-5)
    out = {"video/embed": x}
    over_time, over_space = divided_masks(clip.shape[1], s.side**2)
    for i in range(s.depth):
        block = f"visual.blocks.{i}"
        inner = norm(w, f"{block}.norm3", x, 1e-6)
        timed = x + fused_attention(w, f"{block}.timeattn", inner, s.heads, style, over_time)
        inner = norm(w, f"{block}.norm1", timed, 1e-6)
        x = x + fused_attention(w, f"{block}.attn", inner, s.heads, style, over_space)
        x = x + mlp(w, f"{block}.mlp", norm(w, f"{block}.norm2", x, 1e-6), style)
        out[f"video/blocks/{i}"] = x
    token = norm(w, "visual.norm", x[:, 0], 1e-6)
    out |= {"video/norm": token, "video/projection": token @ w["image_projection"]}
    return out | text_tower(w, "", ids, Style(quick_gelu), s)
