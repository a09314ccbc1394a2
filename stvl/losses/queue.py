"""Features of past batches, as further negatives of InfoNCE."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Queue(NamedTuple):
    """The last features of both sides, newest first, and how many of the places are taken. No gradient reaches them.

    Source: the memory queue of MoCo (arXiv 1911.05722, Section 3.2), for two modalities.
    """

    video: Float[Array, "k o"]
    text: Float[Array, "k o"]
    filled: Int[Array, ""]


def empty_queue(size: int, width: int) -> Queue:
    """A queue of `size` places, none of them taken.

    Raises:
        ValueError: a size below 1.
    """
    if size < 1:
        raise ValueError(f"a queue has at least one place, found size = {size}")
    nothing = jnp.zeros((size, width), jnp.float32)
    return Queue(nothing, nothing, jnp.zeros((), jnp.int32))


def push(queue: Queue, video: Float[Array, "b o"], text: Float[Array, "b o"]) -> Queue:
    """The queue after a batch: its features come first, the oldest ones fall out."""
    size = queue.video.shape[0]

    def newest(old: Float[Array, "k o"], new: Float[Array, "b o"]) -> Float[Array, "k o"]:
        return jnp.concatenate([jax.lax.stop_gradient(new.astype(jnp.float32)), old])[:size]

    filled = jnp.minimum(queue.filled + video.shape[0], size)
    return Queue(newest(queue.video, video), newest(queue.text, text), filled)
