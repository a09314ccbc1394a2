"""All presets under one name each, ``FAMILY/SIZE``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from stvl.core.errors import ConfigError, nearest
from stvl.models.dual import DualEncoderConfig
from stvl.models.eva02_at import presets as eva02_at
from stvl.models.timesformer import presets as timesformer
from stvl.models.vit import presets as vit

#: Family -> size -> sizes.
FAMILIES: Mapping[str, Mapping[str, DualEncoderConfig]] = MappingProxyType(
    {
        "eva02-at": eva02_at.PRESETS,
        "eva02-clip": eva02_at.CLIP_PRESETS,
        "vit-clip": vit.PRESETS,
        "avion": vit.AVION,
        "timesformer": timesformer.PRESETS,
    }
)


def names() -> tuple[str, ...]:
    """Every preset, as ``FAMILY/SIZE``."""
    return tuple(f"{family}/{size}" for family, sizes in FAMILIES.items() for size in sizes)


def preset(name: str) -> DualEncoderConfig:
    """The sizes called `name`, e.g. ``eva02-at/b16``; change single fields with `dataclasses.replace`.

    Raises:
        ConfigError: an unknown name, with the nearest one.
    """
    family, _, size = name.partition("/")
    if size not in FAMILIES.get(family, {}):
        known = names()
        # A size without a family is read as one of the first family that has it.
        bare = [known_name for known_name in known if known_name.endswith(f"/{name}")]
        raise ConfigError(f"unknown preset {name!r}{nearest(bare[0] if bare else name, known)}")
    return FAMILIES[family][size]
