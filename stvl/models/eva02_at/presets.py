"""Published and small sizes of EVA02-AT, as data."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

from stvl.core.errors import ConfigError, nearest
from stvl.models.clip_text import ClipTextConfig
from stvl.models.dual import DualEncoderConfig
from stvl.models.eva02_at.module import EVA02ATConfig

_B_TEXT = ClipTextConfig(width=512, depth=12, heads=8)
_L_TEXT = ClipTextConfig(width=768, depth=12, heads=12)
_L_VIDEO = EVA02ATConfig(width=1024, depth=24, heads=16, patch=14)

#: b16, l14 and l14-336 are the published sizes (EVA-CLIP, arXiv 2303.15389, Table 1; embedding 256 as in EVA02-AT).
#: ti16 and s16 are EVA-02's Ti and S widths with a smaller text tower; tiny trains on a laptop's CPU in minutes.
PRESETS = MappingProxyType(
    {
        "tiny": DualEncoderConfig(
            video=EVA02ATConfig(width=128, depth=4, heads=2, patch=12, image_size=48, unroll=4),
            text=ClipTextConfig(width=64, depth=2, heads=2, context=32, unroll=2),
            embedding=64,
        ),
        "ti16": DualEncoderConfig(
            video=EVA02ATConfig(width=192, depth=12, heads=3),
            text=ClipTextConfig(width=256, depth=12, heads=4),
        ),
        "s16": DualEncoderConfig(
            video=EVA02ATConfig(width=384, depth=12, heads=6),
            text=ClipTextConfig(width=384, depth=12, heads=6),
        ),
        "b16": DualEncoderConfig(video=EVA02ATConfig(width=768, depth=12, heads=12), text=_B_TEXT),
        "l14": DualEncoderConfig(video=_L_VIDEO, text=_L_TEXT),
        "l14-336": DualEncoderConfig(
            video=EVA02ATConfig(width=1024, depth=24, heads=16, patch=14, image_size=336), text=_L_TEXT
        ),
    }
)


def _image(model: DualEncoderConfig, embedding: int) -> DualEncoderConfig:
    """With what the image weights of EVA02-CLIP have besides: their shared space, a bias, and a temperature."""
    video = dataclasses.replace(model.video, projection_bias=True)
    return dataclasses.replace(model, video=video, embedding=embedding, temperature=0.07)


#: EVA02-CLIP (arXiv 2303.15389, Table 1), as open_clip has it: every image weight has a place, only P_t is new.
CLIP_PRESETS = MappingProxyType(
    {
        "tiny": _image(PRESETS["tiny"], 64),
        "b16": _image(PRESETS["b16"], 512),
        "l14": _image(PRESETS["l14"], 768),
        "l14-336": _image(PRESETS["l14-336"], 768),
    }
)


def preset(name: str) -> DualEncoderConfig:
    """The sizes called `name`; change single fields with `dataclasses.replace`.

    Raises:
        ConfigError: an unknown name, with the nearest one.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown EVA02-AT preset {name!r}{nearest(name, PRESETS)}")
    return PRESETS[name]
