"""The meaning of the rotary op, in f32."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def rotate_reference(
    x: Float[Array, "b n h e"], coords: Float[Array, "*lead n a"], frequencies: Float[Array, "a p"]
) -> Float[Array, "b n h e"]:
    """``(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)`` with ``x1, x2 = x[:e/2], x[e/2:]``, ``angle = coords @ F``."""
    # HIGHEST: the default precision of some devices would round angles of hundreds of radians to bf16.
    angles = jnp.matmul(coords.astype(jnp.float32), frequencies.astype(jnp.float32), precision="highest")
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
