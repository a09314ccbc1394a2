"""The schemes by name, for the command line and for sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from stvl.core.errors import ConfigError, nearest
from stvl.rope.base import SequenceScheme
from stvl.rope.frequencies import pairs_of
from stvl.rope.language import MRope, VideoRope, VRope
from stvl.rope.schemes import AxialRope, MixedRope, Rope1D, Split3DRope, STRope, TADRope


def sections(head_width: int) -> tuple[int, int, int]:
    """Sections (t, y, x) in Qwen2-VL's proportion 2 : 3 : 3: (16, 24, 24) at head width 128.

    Raises:
        ConfigError: a head width that is not divisible by 16.
    """
    share = pairs_of(head_width, "sections 2 : 3 : 3", 16) // 8
    return 2 * share, 3 * share, 3 * share


#: Name -> the scheme as published, for a head width.
SCHEMES: Mapping[str, Callable[[int], SequenceScheme]] = MappingProxyType(
    {
        "1d": lambda _: Rope1D(),
        "tad": lambda _: TADRope(),
        "axial": lambda _: AxialRope(),
        "qwen2-vl-vision": lambda _: AxialRope(reference_grid=None),
        "mixed": lambda _: MixedRope(),
        "split": lambda _: Split3DRope(),
        "split-even": lambda _: Split3DRope(shares=(1, 1, 1)),
        "st": lambda _: STRope(),
        "mrope": lambda head_width: MRope(sections=sections(head_width)),
        "vrope": lambda _: VRope(),
        "videorope": lambda head_width: VideoRope(sections=sections(head_width)),
    }
)


def scheme(name: str, head_width: int) -> SequenceScheme:
    """The scheme of that name.

    Raises:
        ConfigError: an unknown name, with the nearest one; a head width that the scheme cannot serve.
    """
    if name not in SCHEMES:
        raise ConfigError(f"unknown rotary scheme {name!r}{nearest(name, SCHEMES)}")
    return SCHEMES[name](head_width)
