"""GradCache: the gradient of a loss over a large batch from encoders that only fit a part of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.core.errors import ConfigError

#: ``encode(params, part, key) -> features``: any tree whose arrays have one entry a row of the part; arrays without axes
#: (a temperature, a bias) belong to the whole batch and must not depend on the part.
Encode = Callable[[Any, Any, Array], Any]

#: ``criterion(features) -> (loss, metrics)``, over the whole batch.
Criterion = Callable[[Any], tuple[Float[Array, ""], Any]]

Step = Callable[[Any, Any, Array], tuple[tuple[Float[Array, ""], Any], Any]]


def cached_value_and_grad(encode: Encode, criterion: Criterion, chunks: int) -> Step:
    """``step(params, batch, key) -> ((loss, metrics), gradients of params)`` with the encoders' memory of one chunk.

    Equal, up to rounding, to ``jax.value_and_grad(criterion of encode of all chunks)``: (1) the features of every chunk
    without a graph; (2) the loss over all of them and its gradient by the features, the cache; (3) every chunk again, and
    the product of its part of the cache with its Jacobian, added up. The encoders run forward twice.

    Chunk k has the rows ``k, k + chunks, k + 2 chunks ...``: where the batch is split over devices, every chunk is too.
    Its random numbers are keyed by ``fold_in(key, k)`` in both passes, so dropout falls on the same units.

    Args:
        encode: see `Encode`.
        criterion: any loss over the features of the whole batch.
        chunks: parts, of which the rows of the batch must be a multiple.

    Raises:
        ConfigError: fewer than one chunk, or rows that the chunks do not divide.

    Source: Gao et al., arXiv 2101.06983, Section 3.
    """
    if chunks < 1:
        raise ConfigError(f"the batch is encoded in at least one chunk, found {chunks}")

    def step(params: Any, batch: Any, key: Array) -> tuple[tuple[Float[Array, ""], Any], Any]:
        parts = jax.tree.map(lambda x: _split(x, chunks), batch)
        numbers = jnp.arange(chunks)

        def first(_: None, item: tuple[Any, Array]) -> tuple[None, Any]:
            part, number = item
            return None, encode(params, part, jax.random.fold_in(key, number))

        _, encoded = jax.lax.scan(first, None, (parts, numbers))
        features = jax.tree.map(lambda x: x[0] if x.ndim == 1 else _join(x), encoded)
        (loss, metrics), cache = jax.value_and_grad(criterion, has_aux=True)(features)
        cached = jax.tree.map(lambda x: _to_first(x, chunks) if x.ndim == 0 else _split(x, chunks), cache)

        def second(total: Any, item: tuple[Any, Array, Any]) -> tuple[Any, None]:
            part, number, slope = item
            _, transpose = jax.vjp(lambda p: encode(p, part, jax.random.fold_in(key, number)), params)
            (more,) = transpose(slope)
            return jax.tree.map(jnp.add, total, more), None

        nothing = jax.tree.map(jnp.zeros_like, params)
        gradient, _ = jax.lax.scan(second, nothing, (parts, numbers, cached))
        return (loss, metrics), gradient

    return step


def _split(x: Array, chunks: int) -> Array:
    """(rows, ...) to (chunks, rows / chunks, ...), chunk k with the rows k, k + chunks, ..."""
    if x.ndim == 0 or x.shape[0] % chunks:
        raise ConfigError(
            f"{chunks} chunks do not divide an array of shape {x.shape}: the rows of the batch are a multiple of them"
        )
    return jnp.moveaxis(x.reshape(x.shape[0] // chunks, chunks, *x.shape[1:]), 1, 0)


def _join(x: Array) -> Array:
    """Undo `_split`."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _to_first(slope: Array, chunks: int) -> Array:
    """The gradient of what belongs to the whole batch goes in once, with the first chunk."""
    return jnp.zeros(chunks, slope.dtype).at[0].set(slope)
