"""Rotary schemes: small frozen configs that give coordinates and a frequency matrix.

Pair ``k`` of a head of width ``e`` consists of elements ``k`` and ``k + e/2`` (half-split). Sources that interleave
pairs (EVA-02) differ by a permutation of the q and k columns, which leaves every score unchanged.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from stvl.core.config import config
from stvl.core.errors import ConfigError
from stvl.rope.coords import grid, rescale, with_prefix
from stvl.rope.frequencies import ladder


@runtime_checkable
class RopeScheme(Protocol):
    """What a scheme answers; arrays are numpy and static, so that they fold into the compiled program."""

    def frequencies(self, head_width: int) -> Float[np.ndarray, "a p"]:
        """Matrix F with ``angles = coords @ F``, in radians; ``p = head_width / 2``."""
        ...

    def coords(self, frames: int, rows: int, columns: int, prefix: int = 1) -> Float[np.ndarray, "n a"]:
        """Coordinates of `prefix` unrotated tokens and then of the grid's tokens."""
        ...


def _spatial_rows(head_width: int, base: float, scheme: str) -> Float[np.ndarray, "2 p"]:
    if head_width % 4:
        raise ConfigError(
            f"{scheme} gives rows and columns half of the rotation pairs each, so the head width must be divisible "
            f"by 4, found {head_width} (nearest: {head_width - head_width % 4 or 4} or {head_width + 4 - head_width % 4})"
        )
    quarter = head_width // 4
    rows = np.zeros((2, 2 * quarter))
    rows[0, :quarter] = ladder(quarter, base)
    rows[1, quarter:] = ladder(quarter, base)
    return rows


@config
class AxialRope:
    """EVA-02's 2-D rotary embedding: the first half of the pairs turns with the row, the second half with the column.

    ``w[k] = base ** (-k / (e/4))``, coordinates rescaled to ``reference_grid`` (EVA-02, arXiv 2303.11331).
    Time is not seen: tokens of all frames at one place share their angles.
    """

    base: float = 10000.0
    reference_grid: float = 16.0

    def frequencies(self, head_width: int) -> Float[np.ndarray, "a p"]:
        """Block-diagonal F over the axes (y, x)."""
        return _spatial_rows(head_width, self.base, "AxialRope")

    def coords(self, frames: int, rows: int, columns: int, prefix: int = 1) -> Float[np.ndarray, "n a"]:
        """Rescaled (y, x), repeated over the frames."""
        _, y, x = grid(frames, rows, columns).T
        places = np.stack(
            [rescale(y, rows, self.reference_grid), rescale(x, columns, self.reference_grid)], axis=-1
        )
        return with_prefix(places, prefix)


@config
class STRope:
    """ST-RoPE: rotations compose, ``R(xy + dt) = R(xy) R(dt)``, so the angles of time and place add in every pair.

    Angle of pair k at (t, y, x): ``t * w_t[k] + (y or x) * w_s[k mod e/4]`` with ``w_t[k] = base_time ** (-2k / e)``
    over the whole head and ``w_s[k] = base_space ** (-2k / (e/2))`` as in EVA-02 (EVA02-AT, arXiv 2506.14356,
    Eq. 8-10). The score of two tokens then depends on ``dt * w_t + dx * w_s`` jointly: a head can prefer a velocity.
    """

    base_space: float = 10000.0
    base_time: float = 10000.0
    reference_grid: float = 16.0

    def frequencies(self, head_width: int) -> Float[np.ndarray, "a p"]:
        """F over the axes (t, y, x): a full row for time above the block-diagonal rows of `AxialRope`."""
        space = _spatial_rows(head_width, self.base_space, "STRope")
        return np.concatenate([ladder(head_width // 2, self.base_time)[None], space])

    def coords(self, frames: int, rows: int, columns: int, prefix: int = 1) -> Float[np.ndarray, "n a"]:
        """(frame index, rescaled y, rescaled x)."""
        t, y, x = grid(frames, rows, columns).T
        places = [t, rescale(y, rows, self.reference_grid), rescale(x, columns, self.reference_grid)]
        return with_prefix(np.stack(places, axis=-1), prefix)
