"""Rotation of query and key heads by ``angles = coords @ F``."""

from stvl.ops.rotary.api import Rotary, rotate

__all__ = ["Rotary", "rotate"]
