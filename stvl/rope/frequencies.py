"""Frequency ladders, the rows that frequency matrices are made of."""

from __future__ import annotations

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
