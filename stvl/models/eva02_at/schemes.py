"""The rotary schemes that the video tower takes, and their part that sees no time."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from stvl.core.config import config
from stvl.rope.coords import with_prefix
from stvl.rope.language import MRope, VideoRope, VRope
from stvl.rope.schemes import AxialRope, MixedRope, Rope1D, RopeScheme, Split3DRope, STRope, TADRope

AnyRope = STRope | Split3DRope | AxialRope | MixedRope | Rope1D | TADRope | MRope | VRope | VideoRope


@config
class EachFrame:
    """`scheme` with every frame at time 0: the coordinates of a clip of one frame, repeated over the frames.

    Of `STRope` this leaves the angles of `AxialRope`, those of the image model (EVA02-AT, arXiv 2506.14356, Section 3).
    Where a scheme keeps rotation pairs for time, as `Split3DRope` does, those stand still.
    """

    scheme: AnyRope

    def frequencies(self, head_width: int) -> Float[np.ndarray, "a p"]:
        """Those of the scheme."""
        return self.scheme.frequencies(head_width)

    def coords(self, frames: int, rows: int, columns: int, prefix: int = 1) -> Float[np.ndarray, "n a"]:
        """Those of one frame of the scheme, `frames` times."""
        return with_prefix(np.tile(self.scheme.coords(1, rows, columns, 0), (frames, 1)), prefix)


def sees_time(scheme: RopeScheme) -> bool:
    """Whether two frames of one place have different coordinates."""
    first, second = scheme.coords(2, 1, 1, 0)
    return bool((first != second).any())
