"""Published and small sizes of CLIP's plain ViT and of AVION, as data."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

from stvl.models.clip_text import ClipTextConfig
from stvl.models.dual import DualEncoderConfig
from stvl.models.vit.module import ViTConfig
from stvl.nn.pixels import AVION_MEAN

_B_TEXT = ClipTextConfig(width=512, depth=12, heads=8)
_L_TEXT = ClipTextConfig(width=768, depth=12, heads=12)
_L = ViTConfig(width=1024, depth=24, heads=16, patch=14)

_TINY = DualEncoderConfig(
    video=ViTConfig(width=128, depth=4, heads=2, patch=12, image_size=48, unroll=4),
    text=ClipTextConfig(width=64, depth=2, heads=2, context=32, unroll=2),
    embedding=64,
    temperature=0.07,
)
_B16 = DualEncoderConfig(video=ViTConfig(), text=_B_TEXT, embedding=512, temperature=0.07)
_L14 = DualEncoderConfig(video=_L, text=_L_TEXT, embedding=768, temperature=0.07)
_L14_336 = dataclasses.replace(_L14, video=dataclasses.replace(_L, image_size=336))


def _quick(model: DualEncoderConfig) -> DualEncoderConfig:
    """With the activation of OpenAI's weights in both towers."""
    video, text = (dataclasses.replace(part, activation="quick_gelu") for part in (model.video, model.text))
    return dataclasses.replace(model, video=video, text=text)


def _avion(model: DualEncoderConfig) -> DualEncoderConfig:
    """With AVION's epsilon, mean and shared space. It keeps the exact GELU on top of OpenAI's weights."""
    return dataclasses.replace(
        model, video=dataclasses.replace(model.video, eps=1e-6, mean=AVION_MEAN), embedding=256
    )


#: As open_clip names them: exact GELU, and ``-quickgelu`` for OpenAI's weights (arXiv 2103.00020, Table 20).
PRESETS = MappingProxyType(
    {
        "tiny": _TINY,
        "b16": _B16,
        "l14": _L14,
        "l14-336": _L14_336,
        "b16-quickgelu": _quick(_B16),
        "l14-quickgelu": _quick(_L14),
        "l14-336-quickgelu": _quick(_L14_336),
    }
)

#: AVION (arXiv 2309.16669), the baseline of the EVA02-AT paper.
AVION = MappingProxyType({"b16": _avion(_B16), "l14": _avion(_L14), "l14-336": _avion(_L14_336)})
