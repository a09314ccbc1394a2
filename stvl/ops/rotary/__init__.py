"""Rotation of query and key heads by ``angles = coords @ F``."""

from stvl.ops.rotary.api import check_rotary, explain, rotate
from stvl.ops.rotary.backends import BACKENDS
from stvl.ops.rotary.gradient import Rotary, angle_gradient
from stvl.ops.rotary.options import RotaryOptions

__all__ = ["BACKENDS", "Rotary", "RotaryOptions", "angle_gradient", "check_rotary", "explain", "rotate"]
