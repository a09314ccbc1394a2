"""Sizes that every tower has to keep to."""

from __future__ import annotations

from stvl.core.errors import ConfigError


def check_heads(width: int, heads: int) -> None:
    """Refuse a width that the heads do not divide.

    Raises:
        ConfigError: with both numbers.
    """
    if width % heads:
        raise ConfigError(f"width {width} cannot be divided into {heads} heads")


def check_patches(image_size: int, patch: int) -> None:
    """Refuse square frames that cannot be cut into whole patches.

    Raises:
        ConfigError: with both numbers.
    """
    if image_size % patch:
        raise ConfigError(f"image_size {image_size} is no multiple of patch {patch}")
