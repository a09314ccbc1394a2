"""Which times of a clip are looked at."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from stvl.core.errors import DataError


def segment_times(
    start: float, end: float, frames: int, rng: np.random.Generator | None = None
) -> Float[np.ndarray, "t"]:
    """One time in each of `frames` equal segments: ``start + (i + u_i) * (end - start) / frames``, in seconds.

    ``u_i`` is uniform in [0, 1) with `rng` (training) and 1/2 without (evaluation). The result rises.

    Raises:
        DataError: ``start >= end`` or fewer than one frame.

    Source: temporal segment sampling, Wang et al., Temporal Segment Networks (2016), section 3.1; EVA02-AT (2506.14356).
    """
    if not start < end:
        raise DataError(f"a clip must end after it starts, found start {start:g} s and end {end:g} s")
    if frames < 1:
        raise DataError(f"a clip needs at least one frame, found frames={frames}")
    offset = np.full(frames, 0.5) if rng is None else rng.random(frames)
    return start + (np.arange(frames) + offset) * ((end - start) / frames)
