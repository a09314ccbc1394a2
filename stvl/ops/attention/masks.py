"""Structured masks: small objects that say who may see whom without storing an array of queries x sources.

A mask is a conjunction of *bands* (each query sees an interval of sources; both ends move forward with the query) and
of *ids* (a query sees the sources of its own segment). Kernels know these two only; see `visible`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from stvl.core.errors import ConfigError, NotSupported

#: Stands for "no last source": larger than any position, small enough that int32 sums of two do not overflow.
FAR = 2**30

Limits = tuple[Any, Any]


@dataclasses.dataclass(frozen=True)
class Mask:
    """Base of all masks. ``a & b`` allows what both allow."""

    def as_array(self, queries: int, sources: int) -> Bool[np.ndarray | Array, "*b q s"]:
        """True where the query may see the source; with a leading batch axis for masks that hold arrays."""
        raise NotImplementedError

    def __and__(self, other: Mask) -> Mask:
        if isinstance(self, Full):
            return other
        if isinstance(other, Full) or self is other or (isinstance(self, Band) and self == other):
            return self
        return Both(self, other)


@dataclasses.dataclass(frozen=True)
class Band(Mask):
    """A mask in which query i sees the sources ``first(i) .. last(i)``; neither end ever moves back as i grows."""

    def limits(self, query: Any) -> Limits:
        """First and last visible source of each query index (an integer array), both inclusive."""
        raise NotImplementedError

    def as_array(self, queries: int, sources: int) -> Bool[np.ndarray, "q s"]:
        """Sources between the limits."""
        first, last = self.limits(np.arange(queries)[:, None])
        source = np.arange(sources)
        return np.broadcast_to((source >= first) & (source <= last), (queries, sources))


@dataclasses.dataclass(frozen=True)
class Full(Band):
    """Every query sees every source."""

    def limits(self, query: Any) -> Limits:
        """``0 .. FAR``."""
        return 0 * query, 0 * query + FAR


@dataclasses.dataclass(frozen=True)
class Causal(Band):
    """Query i sees sources ``0 .. i + offset``; `offset` is the number of sources that precede the first query."""

    offset: int = 0

    def limits(self, query: Any) -> Limits:
        """``0 .. i + offset``."""
        return 0 * query, query + self.offset


@dataclasses.dataclass(frozen=True)
class Window(Band):
    """Query i sees sources ``i - before .. i + after`` (sliding window)."""

    before: int
    after: int

    def __post_init__(self) -> None:
        if min(self.before, self.after) < 0:
            raise ConfigError(
                f"a window reaches 0 or more tokens to each side, found {self.before} and {self.after}"
            )

    def limits(self, query: Any) -> Limits:
        """``i - before .. i + after``."""
        return query - self.before, query + self.after


@dataclasses.dataclass(frozen=True)
class Prefix(Band):
    """Prefix language model: all see the first `count` sources, and query i also sees the sources up to i."""

    count: int

    def limits(self, query: Any) -> Limits:
        """``0 .. max(i, count - 1)``."""
        return 0 * query, query + (query < self.count) * (self.count - 1 - query)


@dataclasses.dataclass(frozen=True)
class BlockCausal(Band):
    """Causal over blocks of `size` tokens: a frame sees itself and the frames before it."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"blocks hold at least one token, found {self.size}")

    def limits(self, query: Any) -> Limits:
        """``0 .. `` the end of the query's block."""
        return 0 * query, (query // self.size + 1) * self.size - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Segments(Mask):
    """A query sees the sources with its own id (packed sequences); an id below 0 is padding and sees nobody.

    Attributes:
        queries: ids of the queries.
        sources: ids of the sources; None when they are those of the queries.
    """

    queries: Int[Array, "b q"] | Int[np.ndarray, "b q"]
    sources: Int[Array, "b s"] | Int[np.ndarray, "b s"] | None = None

    def ids(self, queries: int, sources: int) -> tuple[Array, Array]:
        """Ids of queries (b, q) and sources (b, s)."""
        q_ids = jnp.asarray(self.queries, jnp.int32)
        s_ids = q_ids if self.sources is None else jnp.asarray(self.sources, jnp.int32)
        if q_ids.shape[-1] != queries or s_ids.shape[-1] != sources:
            raise ValueError(
                f"segment ids are for {q_ids.shape[-1]} queries and {s_ids.shape[-1]} sources, "
                f"the attention has {queries} and {sources}"
            )
        return q_ids, s_ids

    def as_array(self, queries: int, sources: int) -> Bool[Array, "b q s"]:
        """Equal ids that are not padding."""
        return _same(*self.ids(queries, sources))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Lengths(Mask):
    """Sample b has ``sources[b]`` true sources and ``queries[b]`` true queries; what lies behind them is padding.

    Attributes:
        sources: number of true sources.
        queries: number of true queries; None: all queries are true.
    """

    sources: Int[Array, "b"] | Int[np.ndarray, "b"]
    queries: Int[Array, "b"] | Int[np.ndarray, "b"] | None = None

    def ids(self, queries: int, sources: int) -> tuple[Array, Array]:
        """Id 0 for true tokens, -1 for padding."""
        s_count = jnp.asarray(self.sources, jnp.int32)
        q_count = (
            jnp.full_like(s_count, queries) if self.queries is None else jnp.asarray(self.queries, jnp.int32)
        )
        q_ids = jnp.where(jnp.arange(queries) < q_count[:, None], 0, -1)
        s_ids = jnp.where(jnp.arange(sources) < s_count[:, None], 0, -1)
        return q_ids.astype(jnp.int32), s_ids.astype(jnp.int32)

    def as_array(self, queries: int, sources: int) -> Bool[Array, "b q s"]:
        """True queries see true sources."""
        return _same(*self.ids(queries, sources))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Both(Mask):
    """What two masks both allow."""

    left: Mask
    right: Mask

    def as_array(self, queries: int, sources: int) -> Bool[np.ndarray | Array, "*b q s"]:
        """Elementwise and."""
        return self.left.as_array(queries, sources) & self.right.as_array(queries, sources)


for _static in (Full, Causal, Window, Prefix, BlockCausal):
    jax.tree_util.register_static(_static)


def _same(q_ids: Array, s_ids: Array) -> Bool[Array, "b q s"]:
    return (q_ids[:, :, None] == s_ids[:, None, :]) & (q_ids[:, :, None] >= 0)


def parts(mask: Mask | None) -> tuple[tuple[Band, ...], tuple[Segments | Lengths, ...]]:
    """Take a conjunction apart into its bands (static, hashable) and its masks by id.

    Raises:
        NotSupported: a mask of another kind.
    """
    if mask is None or isinstance(mask, Full):
        return (), ()
    if isinstance(mask, Both):
        (bands, ids), (more_bands, more_ids) = parts(mask.left), parts(mask.right)
        return bands + more_bands, ids + more_ids
    if isinstance(mask, Band):
        return (mask,), ()
    if isinstance(mask, Segments | Lengths):
        return (), (mask,)
    raise NotSupported(f"{type(mask).__name__} is neither a band nor a mask by segment ids or lengths")


def merged_ids(
    masks: tuple[Segments | Lengths, ...], queries: int, sources: int
) -> tuple[Int[Array, "b q"], Int[Array, "b s"]] | None:
    """One pair of id arrays that says what all masks by id say together; None for no mask."""
    if not masks:
        return None
    q_ids, s_ids = masks[0].ids(queries, sources)
    for mask in masks[1:]:
        q_more, s_more = mask.ids(queries, sources)
        # Pairs of ids are numbered row by row; padding in either is padding.
        step = jnp.maximum(q_more.max(), s_more.max()) + 1
        q_ids = jnp.where((q_ids < 0) | (q_more < 0), -1, q_ids * step + q_more)
        s_ids = jnp.where((s_ids < 0) | (s_more < 0), -1, s_ids * step + s_more)
    return q_ids, s_ids
