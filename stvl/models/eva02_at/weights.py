"""Where the towers of EVA02-CLIP and EVA02-AT lie in public checkpoints.

- ``eva02-clip/open_clip``: open_clip's EVA02-B-16, EVA02-L-14 and EVA02-L-14-336, whose image tower is timm's ``Eva``.
- ``eva02-clip/timm``: that image tower alone, as timm publishes it.
- ``eva02-clip/eva-clip``: the release of EVA-CLIP (github.com/baaivision/EVA, `EVA-CLIP/rei/eva_clip`).
- ``eva02-at/release``: **not confirmed.** The repository of EVA02-AT (github.com/xqwang14/EVA02-AT) holds no model code
  yet. This is EVA-CLIP's naming with the temporal table of AVION (``visual.temporal_embedding``), on whose training code
  and environment it says to build. A file with other names is refused, with both lists of names.

All keep rotary pairs interleaved, (2k, 2k + 1); stvl keeps them half-split, (k, k + e/2). `HalfSplit` moves the columns
of q and k once; scores do not change.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from stvl.models.text_weights import (
    CAUSAL_MASK,
    NEW_TIME,
    TEMPERATURE,
    clip_text,
    dense,
    from_heads,
    norm,
    positions,
)
from stvl.weights.rules import Flat, Ignored, Layout, Leading, Linear, Parts, Patches, Rule, Shape

_LAYERS = "video/stack/layers"


@dataclasses.dataclass(frozen=True)
class HalfSplit:
    """Columns of each head from interleaved rotary pairs to half-split ones, for each part: last axis e."""

    def forward(self, parts: Parts, targets: tuple[Shape, ...]) -> Parts:
        """Even columns first, then odd ones."""
        return tuple(np.concatenate([part[..., ::2], part[..., 1::2]], axis=-1) for part in parts)

    def backward(self, parts: Parts) -> Parts:
        """Interleave the halves."""
        return tuple(np.stack(np.split(part, 2, axis=-1), axis=-1).reshape(part.shape) for part in parts)


def _stem(source: str) -> tuple[Rule, ...]:
    """Class token, positions and patches, which timm and EVA-CLIP name alike."""
    return (
        Rule(f"{source}cls_token", ("video/class_token",), (Leading(2),)),
        positions(f"{source}pos_embed", "video", (Leading(),)),
        Rule(f"{source}patch_embed.proj.weight", ("video/stem/kernel",), (Patches(),)),
        Rule(f"{source}patch_embed.proj.bias", ("video/stem/bias",)),
        *norm(f"{source}norm", "video/norm"),
        *dense(f"{source}head", "video/projection"),
    )


def _block(source: str, biases: tuple[str, str], names: dict[str, str]) -> tuple[Rule, ...]:
    """A block: sub-LN attention without a bias of k, and SwiGLU with an inner norm."""
    attention, mlp = f"{_LAYERS}/attention", f"{_LAYERS}/mlp"
    return (
        *norm(f"{source}norm1", f"{_LAYERS}/attention_norm"),
        Rule(f"{source}attn.q_proj.weight", (f"{attention}/query/kernel",), (Linear(), HalfSplit())),
        Rule(f"{source}attn.k_proj.weight", (f"{attention}/key/kernel",), (Linear(), HalfSplit())),
        Rule(f"{source}attn.v_proj.weight", (f"{attention}/value/kernel",), (Linear(),)),
        Rule(f"{source}attn.{biases[0]}", (f"{attention}/query/bias",), (Flat(), HalfSplit())),
        Rule(f"{source}attn.{biases[1]}", (f"{attention}/value/bias",), (Flat(),)),
        *norm(f"{source}attn.{names['inner']}", f"{attention}/norm", over_heads=True),
        *from_heads(f"{source}attn.proj", f"{attention}/out"),
        *norm(f"{source}norm2", f"{_LAYERS}/mlp_norm"),
        *dense(f"{source}mlp.{names['gate']}", f"{mlp}/gate"),
        *dense(f"{source}mlp.{names['up']}", f"{mlp}/up"),
        *norm(f"{source}mlp.{names['norm']}", f"{mlp}/norm"),
        *dense(f"{source}mlp.{names['out']}", f"{mlp}/out"),
    )


def timm_image(prefix: str) -> tuple[Rule, ...]:
    """The image tower of timm's ``Eva``; `prefix` is nothing or ``visual.trunk.``."""
    names = {"inner": "norm", "gate": "fc1_g", "up": "fc1_x", "norm": "norm", "out": "fc2"}
    blocks = _block(f"{prefix}blocks.{{i}}.", ("q_proj.bias", "v_proj.bias"), names)
    return (*_stem(prefix), *blocks)


def eva_clip_image() -> tuple[Rule, ...]:
    """The image tower of the EVA-CLIP release."""
    names = {"inner": "inner_attn_ln", "gate": "w1", "up": "w2", "norm": "ffn_ln", "out": "w3"}
    return (*_stem("visual."), *_block("visual.blocks.{i}.", ("q_bias", "v_bias"), names))


_TIMM_ROTARY = Ignored(
    r"(visual\.trunk\.)?rope\.[a-z_]+", "a rotary table of timm, recomputed from the grid and the head width"
)
_EVA_ROTARY = Ignored(
    r"visual\.(blocks\.\d+\.attn\.)?rope\.freqs_(cos|sin)",
    "a rotary table of EVA-CLIP, recomputed from the grid and the head width",
)

OPEN_CLIP = Layout(
    name="eva02-clip/open_clip",
    rules=(*timm_image("visual.trunk."), *clip_text("text."), TEMPERATURE),
    ignored=(_TIMM_ROTARY, CAUSAL_MASK),
    new=(NEW_TIME,),
)

TIMM = Layout(name="eva02-clip/timm", rules=timm_image(""), ignored=(_TIMM_ROTARY,), new=(NEW_TIME,))

EVA_CLIP = Layout(
    name="eva02-clip/eva-clip",
    rules=(*eva_clip_image(), *clip_text("text."), TEMPERATURE),
    ignored=(_EVA_ROTARY, CAUSAL_MASK),
    new=(NEW_TIME,),
)

#: Not confirmed: see above.
RELEASE = Layout(
    name="eva02-at/release",
    rules=(*EVA_CLIP.rules, Rule("visual.temporal_embedding", ("video/positions/time",))),
    ignored=EVA_CLIP.ignored,
)
