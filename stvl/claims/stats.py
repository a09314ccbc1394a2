"""Mean, spread and paired differences of a few seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from stvl.core.errors import ConfigError

#: 97.5 % points of Student's t for 1, 2, ... degrees of freedom (any table of the distribution).
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_T += (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)
_T += (2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean of n values and their standard deviation with n - 1; the deviation of one value is not known (NaN)."""

    mean: float
    deviation: float
    count: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean of n paired differences and the half width of its 95 % interval; NaN where n is 1."""

    mean: float
    half: float
    count: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return abs(self.mean) > self.half

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half


def spread(values: Sequence[float]) -> Spread:
    """``mean = sum x / n``, ``deviation = sqrt(sum (x - mean)^2 / (n - 1))``.

    Raises:
        ConfigError: no values.
    """
    if not values:
        raise ConfigError("a mean needs one value or more")
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Spread(mean, math.nan, 1)
    return Spread(mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (count - 1)), count)


def paired(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Mean of ``values[i] - baseline[i]`` with the half width ``t(0.975, n - 1) * deviation / sqrt(n)``.

    It takes the differences as normal, which a few seeds cannot show; it says nothing of other data.

    Raises:
        ConfigError: lists of different lengths, or empty ones.
    """
    if len(values) != len(baseline):
        raise ConfigError(f"pairs need lists of one length, found {len(values)} and {len(baseline)}")
    found = spread([one - other for one, other in zip(values, baseline, strict=True)])
    if found.count == 1:
        return Difference(found.mean, math.nan, 1)
    point = _T[found.count - 2] if found.count - 2 < len(_T) else 1.96
    return Difference(found.mean, point * found.deviation / math.sqrt(found.count), found.count)
