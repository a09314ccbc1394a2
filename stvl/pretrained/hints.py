"""Files that look like ours and are not: what they are, in words."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Regular expressions that some names match, each of them -> what the file is.
_FOREIGN: tuple[tuple[tuple[str, ...], str], ...] = (
    ((r"visual\.layer1\.0\.conv1\.",), "the image tower is CLIP's ResNet, and stvl has transformers only"),
    (
        (r"textual\.transformer\.layer\.",),
        "the text tower is DistilBERT (EgoVLP as LaViLa converts it): not served",
    ),
    (
        (r"text_model\.transformer\.layer\.",),
        "the text tower is DistilBERT (EgoVLP, Frozen in Time): not served",
    ),
    ((r"vision_model\.head\.probe$",), "this is SigLIP of transformers: not served"),
    (
        (r"fc_cls(\.\d+)?\.weight$", r"visual\."),
        "a classifier on a video tower: no projection and no text tower",
    ),
    (
        (r"visual\.blocks\.\d+\.attn\.qkv\.weight$", r"visual\.blocks\.\d+\.attn\.v_bias$"),
        "this is EVA-01 CLIP (q, k and v in one matrix, a plain MLP): not served",
    ),
    (
        (r"(video|text)/[a-z_]+",),
        "these are stvl's own names: open the weights folder in which the file lies",
    ),
)


def foreign(names: Iterable[str]) -> str:
    """What a file is, where it is a known one that stvl does not read; else an empty string."""
    names = list(names)
    for patterns, what in _FOREIGN:
        examples = [next((name for name in names if re.match(pattern, name)), None) for pattern in patterns]
        if all(examples):
            return f"{what} ({examples[0]!r})"
    return ""
