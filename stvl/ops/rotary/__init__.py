"""Rotation of query and key heads by ``angles = coords @ F``."""

from stvl.ops.rotary.api import Rotary, angle_gradient, check_rotary, rotate

__all__ = ["Rotary", "angle_gradient", "check_rotary", "rotate"]
