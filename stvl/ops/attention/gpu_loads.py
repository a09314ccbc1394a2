"""What the GPU kernels are made of: loads and stores of tiles, with and without rotation, products and masks."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Bool, Float

from stvl.ops.attention.chunked import LOW
from stvl.ops.attention.gpu_tiles import power_of_two
from stvl.ops.attention.masks import FAR

LOG2_E = math.log2(math.e)
#: Row of a blind or absent query, in place of its log sum: ``exp2(score - NEVER)`` is 0.
NEVER = 1e30


class Inputs(NamedTuple):
    """What the kernels read, and with `q`, `k`, `v`, `ct` and `row` what they write; None where a case does without.

    Attributes:
        q: queries (b, q, h, e), or turned ahead (b, q, h, 2 * half).
        k: keys (b, s, g, e), or turned ahead.
        v: values (b, s, g, e).
        ct: gradient of the output, or the output (b, q, h, e).
        row: log2 of each row's sum of exponentials, or its natural logarithm as a result (b, h, q).
        drop: ``sum(out * ct)`` of each row (b, h, q).
        cos: of the angles (n, e/2) or (b, n, e/2).
        sin: of the angles.
        first: see `Visible`.
        last: see `Visible`.
        at: see `Visible`.
        q_ids: see `Visible`.
        s_ids: see `Visible`.
        bounds: see `Spans`.
    """

    q: Any = None
    k: Any = None
    v: Any = None
    ct: Any = None
    row: Any = None
    drop: Any = None
    cos: Any = None
    sin: Any = None
    first: Any = None
    last: Any = None
    at: Any = None
    q_ids: Any = None
    s_ids: Any = None
    bounds: Any = None


class Plan(NamedTuple):
    """What is known of a case when its kernels are traced.

    Attributes:
        queries: number of queries.
        sources: number of sources.
        heads: query heads.
        groups: key heads.
        width: head width.
        turned: whether heads are turned at all, ahead or as they are loaded.
        turns_q: whether q is turned as it is loaded.
        turns_k: whether k is turned as it is loaded.
        interpret: whether the kernels are run step by step.
    """

    queries: int
    sources: int
    heads: int
    groups: int
    width: int
    turned: bool
    turns_q: bool
    turns_k: bool
    interpret: bool

    @property
    def shared(self) -> int:
        """Query heads to a key head."""
        return self.heads // self.groups

    @property
    def half(self) -> int:
        """Columns of half a turned head, padded."""
        return max(8, power_of_two(self.width // 2))

    @property
    def padded(self) -> int:
        """Columns of a head, padded."""
        return max(16, power_of_two(self.width))


class Side(NamedTuple):
    """Where a tile of queries or of sources lies.

    Attributes:
        start: its first token.
        size: its tokens.
        total: tokens of the sequence.
        ragged: whether the tile may reach beyond the end.
    """

    start: Any
    size: int
    total: int
    ragged: bool

    @property
    def rows(self) -> Any:
        """Slice of the tokens."""
        return pl.ds(self.start, self.size)

    @property
    def inside(self) -> Bool[Array, "n"] | None:
        """Which tokens exist; None for all."""
        return (self.start + jnp.arange(self.size)) < self.total if self.ragged else None


def side(tile: Any, size: int, total: int, masked: bool = True) -> Side:
    """Tile number `tile`; one that is not `masked` is known to lie inside."""
    return Side(tile * size, size, total, masked and total % size != 0)


def _mask(tile: Side, columns: int, true: int) -> Bool[Array, "n w"] | None:
    inside, within = tile.inside, None if columns == true else jnp.arange(columns) < true
    if inside is None and within is None:
        return None
    inside = jnp.ones((tile.size, 1), bool) if inside is None else inside[:, None]
    within = jnp.ones((1, columns), bool) if within is None else within[None, :]
    return inside & within


def vector(ref: Any, tile: Side, other: int | float, head: Any = None) -> Array:
    """A number a token, `other` for those that do not exist."""
    index = (tile.rows,) if head is None else (head, tile.rows)
    inside = tile.inside
    return ref[index] if inside is None else plt.load(ref.at[index], mask=inside, other=other)


def heads(ref: Any, tile: Side, columns: int, true: int, skip: int = 0, head: Any = None) -> Array:
    """Columns ``skip .. skip + true`` of a tile of tokens, and zeros up to `columns`."""
    here = pl.ds(skip, columns)
    mask = _mask(tile, columns, true)
    index = (tile.rows, here) if head is None else (tile.rows, head, here)
    return ref[index] if mask is None else plt.load(ref.at[index], mask=mask, other=0.0)


def _angles(x: Inputs, tile: Side, plan: Plan) -> tuple[Array, Array]:
    cos, sin = (heads(ref, tile, plan.half, plan.width // 2) for ref in (x.cos, x.sin))
    return cos, sin


def operand(ref: Any, x: Inputs, tile: Side, plan: Plan, turns: bool, head: Any = None) -> Array:
    """A tile of q or k, turned as it is loaded if it was not turned ahead."""
    if not turns:
        true = 2 * plan.half if plan.turned else plan.width
        return heads(ref, tile, 2 * plan.half if plan.turned else plan.padded, true, head=head)
    cos, sin = _angles(x, tile, plan)
    half = plan.width // 2
    first, second = (heads(ref, tile, plan.half, half, skip, head).astype(jnp.float32) for skip in (0, half))
    # Triton joins along a new last axis only.
    both = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(ref.dtype)
    return both.transpose(0, 2, 1).reshape(tile.size, 2 * plan.half)


def store(ref: Any, value: Array, tile: Side, true: int, skip: int = 0) -> None:
    """Store the first `true` columns of a tile of tokens."""
    columns = value.shape[1]
    target = ref.at[tile.rows, pl.ds(skip, columns)]
    plt.store(target, value.astype(ref.dtype), mask=_mask(tile, columns, true))


def store_gradient(ref: Any, change: Array, x: Inputs, tile: Side, plan: Plan) -> None:
    """Store the gradient of q or k, turned back: the transpose of the rotation."""
    if not plan.turned:
        store(ref, change, tile, plan.width)
        return
    cos, sin = _angles(x, tile, plan)
    first, second = jax.lax.split(change, (plan.half, plan.half), axis=1)
    half = plan.width // 2
    store(ref, first * cos + second * sin, tile, half)
    store(ref, second * cos - first * sin, tile, half, half)


def product(plan: Plan, left: Array, right: Array, terms: tuple[int, int]) -> Float[Array, "m n"]:
    """Product over axis ``terms[0]`` of `left` and ``terms[1]`` of `right`."""
    precision: Any = None
    if left.dtype == jnp.float32:
        # Three passes of the tensor cores keep 21 bits, one would keep 10; plain f32 arithmetic keeps 24, but a tile
        # large enough to be worth while does not fit into its registers. A CPU has no passes.
        precision = (
            jax.lax.Precision.HIGHEST if plan.interpret else jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        )
    dimensions = (((terms[0],), (terms[1],)), ((), ()))
    return jax.lax.dot_general(
        left, right, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def scores(plan: Plan, left: Array, right: Array, seen: Bool[Array, "#m #n"] | None) -> Float[Array, "m n"]:
    """Scores in base 2, LOW where a query may not see a source."""
    found = product(plan, left, right, (1, 1)) * (plan.width**-0.5 * LOG2_E)
    return found if seen is None else jnp.where(seen, found, LOW)


def allowed(x: Inputs, queries: Side, sources: Side, query_axis: int) -> Bool[Array, "#m #n"] | None:
    """Which pairs of two tiles may see each other, queries along `query_axis`; None if all may."""

    def of_query(values: Array) -> Array:
        return values[:, None] if query_axis == 0 else values[None, :]

    def of_source(values: Array) -> Array:
        return values[None, :] if query_axis == 0 else values[:, None]

    conditions = []
    # Where sources lie along axis 0, those behind the end give rows of their own, which are not stored.
    if query_axis == 0 and sources.inside is not None:
        conditions.append(of_source(sources.inside))
    if x.first is not None or x.last is not None:
        at = sources.start + jnp.arange(sources.size) if x.at is None else vector(x.at, sources, FAR)
        if x.first is not None:
            conditions.append(of_source(at) >= of_query(vector(x.first, queries, 0)))
        if x.last is not None:
            conditions.append(of_source(at) <= of_query(vector(x.last, queries, 0)))
    if x.q_ids is not None:
        q_ids, s_ids = vector(x.q_ids, queries, -1), vector(x.s_ids, sources, -1)
        conditions += [of_query(q_ids) == of_source(s_ids), of_query(q_ids) >= 0]
    return functools.reduce(jnp.logical_and, conditions) if conditions else None
