"""Frequency ladders, the rows that frequency matrices are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from stvl.core.errors import ConfigError


def ladder(pairs: int, base: float) -> Float[np.ndarray, "p"]:
    """Geometric ladder ``w[k] = base ** (-k / pairs)`` for ``k = 0 .. pairs - 1``, in radians per unit of coordinate.

    With ``pairs = e / 2`` this is the ladder of RoFormer (arXiv 2104.09864, Section 3.2.2), ``base ** (-2k / e)``.

    Raises:
        ConfigError: no pairs, or a base that is not above 0.
    """
    if pairs < 1 or base <= 0:
        raise ConfigError(
            f"a ladder needs at least one pair and a base above 0, found {pairs} pairs, base {base}"
        )
    return base ** (-np.arange(pairs, dtype=np.float64) / pairs)


def pairs_of(head_width: int, scheme: str, divisor: int = 2) -> int:
    """Rotation pairs of a head, ``e / 2``.

    Raises:
        ConfigError: a head width that is not a positive multiple of `divisor`, with the nearest ones.
    """
    if head_width < 1 or head_width % divisor:
        below = max(head_width // divisor * divisor, 0)
        near = f"{below} or {below + divisor}" if below else str(divisor)
        raise ConfigError(
            f"{scheme}: the head width must be divisible by {divisor}, found {head_width} (nearest: {near})"
        )
    return head_width // 2


def assign(row: Float[np.ndarray, "p"], axis_of: Sequence[int], axes: int) -> Float[np.ndarray, "a p"]:
    """Matrix F of a scheme whose pair k turns with the one axis ``axis_of[k]`` at the frequency ``row[k]``."""
    matrix = np.zeros((axes, len(row)))
    matrix[np.asarray(axis_of), np.arange(len(row))] = row
    return matrix


def check_sections(sections: tuple[int, int, int], head_width: int, scheme: str) -> None:
    """Sections (t, y, x) are counts of pairs that add up to ``e / 2``.

    Raises:
        ConfigError: they do not, with the nearest sections in the same proportion.
    """
    pairs, total = pairs_of(head_width, scheme), sum(sections)
    if min(sections) < 0 or total < 1:
        raise ConfigError(f"{scheme}: sections {sections} count rotation pairs, which cannot be below 0")
    if total != pairs:
        y, x = (round(pairs * share / total) for share in sections[1:])
        raise ConfigError(
            f"{scheme}: sections {sections} add up to {total} rotation pairs, a head of width {head_width} has "
            f"{pairs} (in the same proportion: {(pairs - y - x, y, x)})"
        )
