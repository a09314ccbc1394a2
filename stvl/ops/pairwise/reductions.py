"""How the values of a row or a column of the pair matrix become one number, whole or piece by piece.

A piece-wise reduction keeps a state (arrays of one entry a row or column), and merging states in any order gives the
whole. Its gradient needs the values of a tile and the final result only, so tiles can be computed again one by one.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

State = tuple[Array, ...]

#: A number of a row or column that is in no tile.
NOWHERE = 2**31 - 1


@runtime_checkable
class Reduction(Protocol):
    """What a reduction answers.

    Attributes:
        neutral: the value that pairs outside of the matrix take.
        differentiable: whether gradients flow through it.
    """

    neutral: ClassVar[float]
    differentiable: ClassVar[bool]

    def whole(self, values: Array, axis: int) -> Array:
        """Reduce a whole matrix along `axis`, in a form that jax differentiates: the meaning."""
        ...

    def start(self, size: int) -> State:
        """The state of `size` rows or columns that have seen nothing."""
        ...

    def tile(self, values: Array, axis: int, index: Array) -> State:
        """The state after one tile; `index` numbers the entries along `axis`."""
        ...

    def merge(self, one: State, two: State) -> State:
        """The state after the pairs of both."""
        ...

    def finish(self, state: State) -> Array:
        """The result."""
        ...

    def slope(self, cotangent: Array, values: Array, result: Array) -> Array:
        """Gradient of the values of a tile; `cotangent` and `result` broadcast against them."""
        ...


class Sum:
    """``sum_j v_ij``."""

    neutral: ClassVar[float] = 0.0
    differentiable: ClassVar[bool] = True

    def whole(self, values: Array, axis: int) -> Array:
        return values.sum(axis)

    def start(self, size: int) -> State:
        return (jnp.zeros(size, jnp.float32),)

    def tile(self, values: Array, axis: int, index: Array) -> State:
        return (values.sum(axis),)

    def merge(self, one: State, two: State) -> State:
        return (one[0] + two[0],)

    def finish(self, state: State) -> Array:
        return state[0]

    def slope(self, cotangent: Array, values: Array, result: Array) -> Array:
        return jnp.broadcast_to(cotangent, values.shape)


class Tally(Sum):
    """``sum_j v_ij`` for metrics, such as the share of a case: no gradient flows through it."""

    differentiable: ClassVar[bool] = False

    def whole(self, values: Array, axis: int) -> Array:
        return jax.lax.stop_gradient(values).sum(axis)

    def slope(self, cotangent: Array, values: Array, result: Array) -> Array:
        return jnp.zeros_like(values)


class LogSumExp:
    """``log sum_j exp v_ij``; -inf, without a gradient, where every value is -inf (an empty set)."""

    neutral: ClassVar[float] = -jnp.inf
    differentiable: ClassVar[bool] = True

    def whole(self, values: Array, axis: int) -> Array:
        top = _finite(jax.lax.stop_gradient(values).max(axis, keepdims=True))
        total = jnp.exp(values - top).sum(axis)
        empty = total == 0  # log's slope there is infinite; the inner where keeps it out of the gradient
        return jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, total)) + jnp.squeeze(top, axis))

    def start(self, size: int) -> State:
        return jnp.full(size, -jnp.inf, jnp.float32), jnp.zeros(size, jnp.float32)

    def tile(self, values: Array, axis: int, index: Array) -> State:
        top = values.max(axis, keepdims=True)
        return jnp.squeeze(top, axis), jnp.exp(values - _finite(top)).sum(axis)

    def merge(self, one: State, two: State) -> State:
        top = jnp.maximum(one[0], two[0])
        parts = [total * jnp.exp(at - _finite(top)) for at, total in (one, two)]
        return top, parts[0] + parts[1]

    def finish(self, state: State) -> Array:
        return _finite(state[0]) + jnp.log(state[1])

    def slope(self, cotangent: Array, values: Array, result: Array) -> Array:
        return cotangent * jnp.exp(values - jnp.where(result == -jnp.inf, 0.0, result))


class Max:
    """``max_j v_ij``, for thresholds and metrics: no gradient flows through it."""

    neutral: ClassVar[float] = -jnp.inf
    differentiable: ClassVar[bool] = False

    def whole(self, values: Array, axis: int) -> Array:
        return jax.lax.stop_gradient(values).max(axis)

    def start(self, size: int) -> State:
        return (jnp.full(size, -jnp.inf, jnp.float32),)

    def tile(self, values: Array, axis: int, index: Array) -> State:
        return (values.max(axis),)

    def merge(self, one: State, two: State) -> State:
        return (jnp.maximum(one[0], two[0]),)

    def finish(self, state: State) -> Array:
        return state[0]

    def slope(self, cotangent: Array, values: Array, result: Array) -> Array:
        return jnp.zeros_like(values)


class ArgMax:
    """The number of the first largest value (int32), for metrics: no gradient flows through it."""

    neutral: ClassVar[float] = -jnp.inf
    differentiable: ClassVar[bool] = False

    def whole(self, values: Array, axis: int) -> Array:
        return jax.lax.stop_gradient(values).argmax(axis).astype(jnp.int32)

    def start(self, size: int) -> State:
        return jnp.full(size, -jnp.inf, jnp.float32), jnp.full(size, NOWHERE, jnp.int32)

    def tile(self, values: Array, axis: int, index: Array) -> State:
        return values.max(axis), index[values.argmax(axis)]

    def merge(self, one: State, two: State) -> State:
        later = (two[0] > one[0]) | ((two[0] == one[0]) & (two[1] < one[1]))
        return jnp.where(later, two[0], one[0]), jnp.where(later, two[1], one[1])

    def finish(self, state: State) -> Array:
        return state[1]

    def slope(self, cotangent: Array, values: Array, result: Array) -> Array:
        return jnp.zeros_like(values)


def _finite(x: Array) -> Array:
    """Zero for what is not finite: a maximum that can be taken off without making inf - inf."""
    return jnp.where(jnp.isfinite(x), x, 0.0)


SUM, TALLY, LOGSUMEXP, MAX, ARGMAX = Sum(), Tally(), LogSumExp(), Max(), ArgMax()
