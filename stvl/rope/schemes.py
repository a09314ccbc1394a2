"""Rotary schemes of one axis and of grids: small frozen configs that give coordinates and a frequency matrix.

Pair ``k`` of a head of width ``e`` consists of elements ``k`` and ``k + e/2`` (half-split). Sources that interleave
pairs (EVA-02, CogVideoX) differ by a permutation of the q and k columns, which leaves every score unchanged.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float

from stvl.core.config import config
from stvl.core.errors import ConfigError
from stvl.rope.base import Placed, RopeScheme, Sequenced, SequenceScheme
from stvl.rope.coords import grid, rescale, with_prefix
from stvl.rope.frequencies import pairs_of
from stvl.rope.scaling import Scaling, Unscaled
from stvl.rope.segments import Image, Text, Video

__all__ = [
    "AxialRope",
    "MixedRope",
    "Rope1D",
    "RopeScheme",
    "STRope",
    "SequenceScheme",
    "Split3DRope",
    "TADRope",
]


def _spatial_rows(head_width: int, base: float, scheme: str, scaling: Scaling) -> Float[np.ndarray, "2 p"]:
    if head_width < 4 or head_width % 4:
        raise ConfigError(
            f"{scheme} gives rows and columns half of the rotation pairs each, so the head width must be divisible "
            f"by 4, found {head_width} (nearest: {head_width - head_width % 4 or 4} or {head_width + 4 - head_width % 4})"
        )
    quarter = head_width // 4
    rows = np.zeros((2, 2 * quarter))
    rows[0, :quarter] = scaling.ladder(quarter, base)
    rows[1, quarter:] = scaling.ladder(quarter, base)
    return rows


def _places(frames: int, rows: int, columns: int, reference: float | None) -> Float[np.ndarray, "n 3"]:
    """(frame, row, column), rows and columns rescaled to `reference` if there is one."""
    places = grid(frames, rows, columns)
    if reference is not None:
        places[:, 1] = rescale(places[:, 1], rows, reference)
        places[:, 2] = rescale(places[:, 2], columns, reference)
    return places


@config
class Rope1D(Sequenced):
    """The rotary embedding of RoFormer: token m turns by ``m * w[k]``, ``w[k] = base ** (-2k / e)``.

    Grids are read as one line of tokens ("vanilla RoPE" of the video papers). Source: arXiv 2104.09864, Eq. 15.
    """

    axes: ClassVar[tuple[str, ...]] = ("m",)

    base: float = 10000.0
    scaling: Scaling = Unscaled()

    def frequencies(self, head_width: int) -> Float[np.ndarray, "a p"]:
        """One full row."""
        return self.scaling.ladder(pairs_of(head_width, "Rope1D"), self.base)[None]

    def coords(self, frames: int, rows: int, columns: int, prefix: int = 1) -> Float[np.ndarray, "n a"]:
        """Index of the token in the line."""
        return with_prefix(np.arange(len(grid(frames, rows, columns)), dtype=np.float64)[:, None], prefix)


@config
class TADRope(Sequenced):
    """Temporal-aware dual RoPE, a 1-D baseline: token index plus an index that steps with text tokens and frames.

    Coordinate ``gamma * m + tau``: m counts tokens, tau counts text tokens and frames. Within a frame tokens step by
    `gamma`, text tokens by ``gamma + 1``, as VideoRoPE (arXiv 2502.05173, Section 3) describes TC-LLaVA's scheme
    (arXiv 2409.03206); its release has ``gamma = 1``.
    """

    axes: ClassVar[tuple[str, ...]] = ("m",)

    base: float = 10000.0
    gamma: float = 1.0
    scaling: Scaling = Unscaled()

    def frequencies(self, head_width: int) -> Float[np.ndarray, "a p"]:
        """One full row."""
        return self.scaling.ladder(pairs_of(head_width, "TADRope"), self.base)[None]

    def place(self, segment: Text | Image | Video, start: float) -> Placed:
        """Both indices move on through the sequence, so one start holds their sum."""
        token = np.arange(segment.tokens, dtype=np.float64)
        steps = segment.length if isinstance(segment, Text) else segment.frames
        tau = token // (segment.tokens // steps)
        return (start + self.gamma * token + tau)[:, None], start + self.gamma * segment.tokens + steps


@config
class AxialRope(Sequenced):
    """2-D rotary embedding: the first half of the pairs turns with the row, the second half with the column.

    ``w[k] = base ** (-k / (e/4))``. Time is not seen: tokens of all frames at one place share their angles.
    ``reference_grid`` = 16 rescales coordinates, ``i / length * 16``, as EVA-02 does (arXiv 2303.11331); None keeps whole
    patch indices, as the vision tower of Qwen2-VL does (arXiv 2409.12191, Section 2.1; it keeps tokens in the order of
    `stvl.rope.coords.merge_order`).
    """

    axes: ClassVar[tuple[str, ...]] = ("y", "x")

    base: float = 10000.0
    reference_grid: float | None = 16.0
    scaling: Scaling = Unscaled()

    def frequencies(self, head_width: int) -> Float[np.ndarray, "a p"]:
        """Block-diagonal F over the axes (y, x)."""
        return _spatial_rows(head_width, self.base, "AxialRope", self.scaling)

    def coords(self, frames: int, rows: int, columns: int, prefix: int = 1) -> Float[np.ndarray, "n a"]:
        """(y, x), repeated over the frames."""
        return with_prefix(_places(frames, rows, columns, self.reference_grid)[:, 1:], prefix)


@config
class MixedRope(Sequenced):
    """2-D rotary embedding in which every pair uses both axes, so that it also sees diagonals.

    Angle of pair k at (y, x): ``w[k mod e/4] * (y cos a[k] + x sin a[k])``. The ladder is that of `AxialRope`; the
    direction ``a`` of the first half of the pairs turns by the golden angle from pair to pair, and the second half
    stands at right angles to the first. ``RoPE-Mixed`` (Heo et al., arXiv 2403.13298, Eq. 11) draws the directions at
    random and learns them per head; here they are fixed, so this is the form of its start, not its trained one.
    """

    axes: ClassVar[tuple[str, ...]] = ("y", "x")

    base: float = 10000.0
    reference_grid: float | None = None
    scaling: Scaling = Unscaled()

    def frequencies(self, head_width: int) -> Float[np.ndarray, "a p"]:
        """F over the axes (y, x), no zero but where a direction lies on an axis."""
        magnitude = _spatial_rows(head_width, self.base, "MixedRope", self.scaling).sum(axis=0)
        first = np.arange(head_width // 4) * np.pi * (3 - np.sqrt(5))
        direction = np.concatenate([first, first + np.pi / 2])
        return magnitude * np.stack([np.cos(direction), np.sin(direction)])

    def coords(self, frames: int, rows: int, columns: int, prefix: int = 1) -> Float[np.ndarray, "n a"]:
        """(y, x), repeated over the frames."""
        return with_prefix(_places(frames, rows, columns, self.reference_grid)[:, 1:], prefix)


@config
class Split3DRope(Sequenced):
    """3-D rotary embedding that gives each axis pairs and a ladder of its own.

    ``shares`` of the pairs go to t, y and x, in this order. The default 2 : 3 : 3 is CogVideoX (arXiv 2408.06072,
    Section 2.2; 1/4 of the head for time, 3/8 for rows, 3/8 for columns); 1 : 1 : 1 is the even split. An axis of
    width ``e_a`` has ``w[k] = base ** (-2k / e_a)``. EVA02-AT names the axes in the order x, y, t; the release of
    CogVideoX has t, y, x, and so has this one.
    """

    axes: ClassVar[tuple[str, ...]] = ("t", "y", "x")

    shares: tuple[int, int, int] = (2, 3, 3)
    base_space: float = 10000.0
    base_time: float = 10000.0
    reference_grid: float | None = None
    scaling_space: Scaling = Unscaled()
    scaling_time: Scaling = Unscaled()

    def frequencies(self, head_width: int) -> Float[np.ndarray, "a p"]:
        """Block-diagonal F over the axes (t, y, x)."""
        total = sum(self.shares)
        if min(self.shares) < 0 or total < 1:
            raise ConfigError(f"Split3DRope: shares {self.shares} cannot be below 0, nor all 0")
        divisor = 2 * total // int(np.gcd.reduce(self.shares))
        pairs = pairs_of(head_width, f"Split3DRope(shares={self.shares})", divisor)
        sizes = [pairs * share // total for share in self.shares]
        matrix, start = np.zeros((3, pairs)), 0
        ladders = ((self.base_time, self.scaling_time), *[(self.base_space, self.scaling_space)] * 2)
        for axis, (size, (base, scaling)) in enumerate(zip(sizes, ladders, strict=True)):
            if size:
                matrix[axis, start : start + size] = scaling.ladder(size, base)
            start += size
        return matrix

    def coords(self, frames: int, rows: int, columns: int, prefix: int = 1) -> Float[np.ndarray, "n a"]:
        """(frame index, y, x)."""
        return with_prefix(_places(frames, rows, columns, self.reference_grid), prefix)


@config
class STRope(Sequenced):
    """ST-RoPE: rotations compose, ``R(xy + dt) = R(xy) R(dt)``, so the angles of time and place add in every pair.

    Angle of pair k at (t, y, x): ``t * w_t[k] + (y or x) * w_s[k mod e/4]`` with ``w_t[k] = base_time ** (-2k / e)``
    over the whole head and ``w_s[k] = base_space ** (-2k / (e/2))`` as in EVA-02 (EVA02-AT, arXiv 2506.14356,
    Eq. 8-10). The score of two tokens then depends on ``dt * w_t + dx * w_s`` jointly: a head can prefer a velocity.
    """

    axes: ClassVar[tuple[str, ...]] = ("t", "y", "x")

    base_space: float = 10000.0
    base_time: float = 10000.0
    reference_grid: float = 16.0
    scaling_space: Scaling = Unscaled()
    scaling_time: Scaling = Unscaled()

    def frequencies(self, head_width: int) -> Float[np.ndarray, "a p"]:
        """F over the axes (t, y, x): a full row for time above the block-diagonal rows of `AxialRope`."""
        space = _spatial_rows(head_width, self.base_space, "STRope", self.scaling_space)
        return np.concatenate([self.scaling_time.ladder(head_width // 2, self.base_time)[None], space])

    def coords(self, frames: int, rows: int, columns: int, prefix: int = 1) -> Float[np.ndarray, "n a"]:
        """(frame index, rescaled y, rescaled x)."""
        return with_prefix(_places(frames, rows, columns, self.reference_grid), prefix)
