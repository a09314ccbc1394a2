"""Modifiers that stretch a frequency ladder to longer inputs; every scheme takes one in its ``scaling`` fields.

Ladders have ``P`` pairs and a base ``B``: ``w[k] = B ** (-k / P)``. A modifier answers the ladder that stands in its
place. Only `YaRN` and `NTKByParts` also ask for a change of the scores: multiply them by ``attention_factor ** 2``.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from stvl.core.config import config
from stvl.core.errors import ConfigError
from stvl.rope.frequencies import ladder


@runtime_checkable
class Scaling(Protocol):
    """What a modifier answers."""

    def ladder(self, pairs: int, base: float) -> Float[np.ndarray, "p"]:
        """The modified ladder, in radians per unit of coordinate."""
        ...

    @property
    def attention_factor(self) -> float:
        """What q and k are each multiplied by; scores are multiplied by its square."""
        ...


def _above_zero(scaling: object, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{type(scaling).__name__}({name}={value}): expected a number above 0")


@config
class Unscaled:
    """The plain ladder ``B ** (-k / P)``."""

    def ladder(self, pairs: int, base: float) -> Float[np.ndarray, "p"]:
        """The plain ladder."""
        return ladder(pairs, base)

    @property
    def attention_factor(self) -> float:
        """1: scores stay."""
        return 1.0


@config
class BaseScaling:
    """A larger base, ``B' = B * factor ** exponent``, as LWM does from one length to the next (arXiv 2402.08268, 3.1).

    Pair k turns slower by ``factor ** (exponent * k / P)``: not at all at k = 0, and by nearly `factor` at the last pair
    only. It is therefore not `Interpolation`, which slows every pair alike, though both are at times called the same.

    Raises:
        ConfigError: a factor that is not above 0.
    """

    factor: float
    exponent: float = 1.0

    def __post_init__(self) -> None:
        _above_zero(self, factor=self.factor)

    def ladder(self, pairs: int, base: float) -> Float[np.ndarray, "p"]:
        """``(B * factor ** exponent) ** (-k / P)``."""
        return ladder(pairs, base * self.factor**self.exponent)

    @property
    def attention_factor(self) -> float:
        """1: scores stay."""
        return 1.0


@config
class Interpolation:
    """Position interpolation: coordinate c reads as ``c / factor``, so every pair turns slower by `factor`.

    Source: Chen et al., arXiv 2306.15595, Eq. 4.

    Raises:
        ConfigError: a factor that is not above 0.
    """

    factor: float

    def __post_init__(self) -> None:
        _above_zero(self, factor=self.factor)

    def ladder(self, pairs: int, base: float) -> Float[np.ndarray, "p"]:
        """``B ** (-k / P) / factor``."""
        return ladder(pairs, base) / self.factor

    @property
    def attention_factor(self) -> float:
        """1: scores stay."""
        return 1.0


@config
class NTKAware:
    """NTK-aware scaling: ``B' = B * factor ** (P / (P - 1))``; the first pair stays, the last is interpolated exactly.

    Source: YaRN, arXiv 2309.00071, Section 3.1 (Definition 1; its ``|D| / (|D| - 2)`` is ``P / (P - 1)``).

    Raises:
        ConfigError: a factor that is not above 0, or a ladder of one pair, which has no first and last.
    """

    factor: float

    def __post_init__(self) -> None:
        _above_zero(self, factor=self.factor)

    def ladder(self, pairs: int, base: float) -> Float[np.ndarray, "p"]:
        """``(B * factor ** (P / (P - 1))) ** (-k / P)``."""
        if pairs < 2:
            raise ConfigError(f"NTKAware needs a ladder of at least two pairs, found {pairs}")
        return ladder(pairs, base * self.factor ** (pairs / (pairs - 1)))

    @property
    def attention_factor(self) -> float:
        """1: scores stay."""
        return 1.0


def _temperature(factor: float) -> float:
    """``sqrt(1 / t) = 0.1 ln(factor) + 1`` (arXiv 2309.00071, Eq. 22), and 1 where nothing is stretched."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def _blend(
    plain: Float[np.ndarray, "p"], factor: float, share: Float[np.ndarray, "p"]
) -> Float[np.ndarray, "p"]:
    """`share` of the plain ladder and the rest of the interpolated one."""
    return share * plain + (1 - share) * plain / factor


@config
class NTKByParts:
    """YaRN as its paper writes it: pairs that turn often over the trained length stay, rare turners are interpolated.

    ``r = original_length * w / (2 pi)`` turns over the trained length; share of the plain frequency
    ``clip((r - slow) / (fast - slow), 0, 1)``, linear in r; scores by ``attention_factor ** 2``.

    Source: arXiv 2309.00071, Section 3.2 (Definition 2) and 3.3. `YaRN` is what was released and trained with.

    Raises:
        ConfigError: numbers that are not above 0, or ``slow >= fast``.
    """

    factor: float
    original_length: float
    slow: float = 1.0
    fast: float = 32.0

    def __post_init__(self) -> None:
        _above_zero(self, factor=self.factor, original_length=self.original_length, slow=self.slow)
        _slow_below_fast(self, self.slow, self.fast)

    def ladder(self, pairs: int, base: float) -> Float[np.ndarray, "p"]:
        """The blend of both ladders."""
        plain = ladder(pairs, base)
        turns = self.original_length * plain / (2 * math.pi)
        return _blend(plain, self.factor, np.clip((turns - self.slow) / (self.fast - self.slow), 0, 1))

    @property
    def attention_factor(self) -> float:
        """``0.1 ln(factor) + 1``."""
        return _temperature(self.factor)


@config
class YaRN:
    """YaRN as released: the share of the plain frequency falls linearly in the pair's index, not in its number of turns.

    ``k(r) = P ln(original_length / (2 pi r)) / ln B`` is the index that makes r turns over the trained length. The share
    is 1 up to ``floor(k(fast))`` and 0 from ``ceil(k(slow))`` on; scores by ``attention_factor ** 2``.

    Source: the authors' release and transformers' ``yarn``, which all checkpoints use. The paper (arXiv 2309.00071,
    Definition 2) has a ramp linear in the turns: `NTKByParts`.

    Attributes:
        factor: how much longer the inputs get.
        original_length: length that the model was trained at, in units of the coordinate.
        slow, fast: turns over that length below which a pair is interpolated, above which it stays.
        whole: round the ends of the ramp outwards to whole pairs (transformers' ``truncate``).

    Raises:
        ConfigError: numbers that are not above 0, or ``slow >= fast``.
    """

    factor: float
    original_length: float
    slow: float = 1.0
    fast: float = 32.0
    whole: bool = True

    def __post_init__(self) -> None:
        _above_zero(self, factor=self.factor, original_length=self.original_length, slow=self.slow)
        _slow_below_fast(self, self.slow, self.fast)

    def ladder(self, pairs: int, base: float) -> Float[np.ndarray, "p"]:
        """The blend of both ladders."""
        low, high = (
            pairs * math.log(self.original_length / (2 * math.pi * turns)) / math.log(base)
            for turns in (self.fast, self.slow)
        )
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        # The release bounds the ramp by the head width, not by the number of pairs.
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        if low == high:
            high += 0.001
        ramp = np.clip((np.arange(pairs) - low) / (high - low), 0, 1)
        return _blend(ladder(pairs, base), self.factor, 1 - ramp)

    @property
    def attention_factor(self) -> float:
        """``0.1 ln(factor) + 1``."""
        return _temperature(self.factor)


def _slow_below_fast(scaling: object, slow: float, fast: float) -> None:
    if slow >= fast:
        raise ConfigError(
            f"{type(scaling).__name__}(slow={slow}, fast={fast}): slow must be below fast (published: 1 and 32)"
        )
