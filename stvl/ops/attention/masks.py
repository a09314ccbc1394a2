"""Structured masks: small hashable objects that say who may see whom without storing an array."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool


@dataclasses.dataclass(frozen=True)
class Mask:
    """Base of all masks. ``a & b`` allows what both allow."""

    def as_array(self, queries: int, sources: int) -> Bool[np.ndarray, "q s"]:
        """True where the query may see the source."""
        raise NotImplementedError

    def __and__(self, other: Mask) -> Mask:
        if isinstance(self, Full):
            return other
        if isinstance(other, Full) or self == other:
            return self
        return Both(self, other)


@dataclasses.dataclass(frozen=True)
class Full(Mask):
    """Every query sees every source."""

    def as_array(self, queries: int, sources: int) -> Bool[np.ndarray, "q s"]:
        """All True."""
        return np.ones((queries, sources), bool)


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """Query i sees sources 0 .. i."""

    def as_array(self, queries: int, sources: int) -> Bool[np.ndarray, "q s"]:
        """Lower triangle with the diagonal."""
        return np.tri(queries, sources, dtype=bool)


@dataclasses.dataclass(frozen=True)
class Both(Mask):
    """What two masks both allow."""

    left: Mask
    right: Mask

    def as_array(self, queries: int, sources: int) -> Bool[np.ndarray, "q s"]:
        """Elementwise and."""
        return self.left.as_array(queries, sources) & self.right.as_array(queries, sources)
