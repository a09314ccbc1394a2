"""Sizes of LaViLa's dual encoder and a small one, as data."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

from stvl.models.clip_text import ClipTextConfig
from stvl.models.dual import DualEncoderConfig
from stvl.models.timesformer.module import TimeSformerConfig
from stvl.nn.pixels import AVION_MEAN

_B_TEXT = ClipTextConfig(width=512, depth=12, heads=8, activation="quick_gelu")
_L_TEXT = ClipTextConfig(width=768, depth=12, heads=12, activation="quick_gelu")
_B = TimeSformerConfig(mean=AVION_MEAN)
_L = dataclasses.replace(_B, width=1024, depth=24, heads=16, patch=14)

#: LaViLa (arXiv 2212.04501, Section 4.1 and Appendix): OpenAI's CLIP with attention over time, in a space of 256.
PRESETS = MappingProxyType(
    {
        "tiny": DualEncoderConfig(
            video=TimeSformerConfig(width=128, depth=4, heads=2, patch=12, image_size=48, unroll=4),
            text=ClipTextConfig(width=64, depth=2, heads=2, context=32, activation="quick_gelu", unroll=2),
            embedding=64,
            temperature=0.07,
        ),
        "b16": DualEncoderConfig(video=_B, text=_B_TEXT, temperature=0.07),
        "l14": DualEncoderConfig(video=_L, text=_L_TEXT, temperature=0.07),
        "l14-336": DualEncoderConfig(
            video=dataclasses.replace(_L, image_size=336), text=_L_TEXT, temperature=0.07
        ),
    }
)
