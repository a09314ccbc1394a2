"""Where LaViLa's dual encoders lie in their public checkpoints.

``timesformer/lavila``: github.com/facebookresearch/LaViLa, `lavila/models/timesformer.py` and the class ``CLIP`` of
`models.py` (CLIP_OPENAI_TIMESFORMER_BASE, _LARGE and _LARGE_336PX). The video tower is Frozen in Time's: in a block
``norm3`` and ``timeattn`` come first, then ``norm1`` and ``attn`` over space, then ``norm2`` and ``mlp``. The two
projections stand at the top level, the text tower in OpenAI's naming. Not served: its gate over time
(``alpha_timeattn``), its narrators, and the EgoVLP weights that it converts, whose text tower is DistilBERT.
"""

from __future__ import annotations

from stvl.models.text_weights import (
    CAUSAL_MASK,
    TEMPERATURE,
    clip_text,
    dense,
    from_heads,
    fused_heads,
    norm,
    positions,
)
from stvl.weights.rules import Kernel, Layout, Leading, Patches, Rule

_LAYERS = "video/stack/layers"


def _attention(source: str, target: str) -> tuple[Rule, ...]:
    """q, k and v in one ``Linear``, and the projection behind."""
    return (
        *fused_heads(f"{source}.qkv.weight", f"{source}.qkv.bias", target),
        *from_heads(f"{source}.proj", f"{target}/out"),
    )


def divided_video() -> tuple[Rule, ...]:
    """The video tower below ``visual.``, and its projection."""
    block = "visual.blocks.{i}"
    return (
        Rule("visual.cls_token", ("video/class_token",), (Leading(2),)),
        positions("visual.pos_embed", "video", (Leading(),)),
        Rule("visual.temporal_embed", ("video/positions/time",), (Leading(),)),
        Rule("visual.patch_embed.proj.weight", ("video/stem/kernel",), (Patches(),)),
        *norm("visual.ln_pre", "video/input_norm"),
        *norm(f"{block}.norm3", f"{_LAYERS}/time_norm"),
        *_attention(f"{block}.timeattn", f"{_LAYERS}/time"),
        *norm(f"{block}.norm1", f"{_LAYERS}/attention_norm"),
        *_attention(f"{block}.attn", f"{_LAYERS}/attention"),
        *norm(f"{block}.norm2", f"{_LAYERS}/mlp_norm"),
        *dense(f"{block}.mlp.fc1", f"{_LAYERS}/mlp/up"),
        *dense(f"{block}.mlp.fc2", f"{_LAYERS}/mlp/out"),
        *norm("visual.norm", "video/norm"),
        Rule("image_projection", ("video/projection/kernel",), (Kernel(),)),
    )


LAVILA = Layout(
    name="timesformer/lavila",
    rules=(*divided_video(), *clip_text(""), TEMPERATURE),
    ignored=(CAUSAL_MASK,),
)
