"""The meaning of the attention op: everything in f32, the whole score matrix in memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.ops.attention.masks import Mask


def attention_reference(
    q: Float[Array, "b q h e"], k: Float[Array, "b s g e"], v: Float[Array, "b s g e"], mask: Mask
) -> Float[Array, "b q h e"]:
    """``softmax(q k^T / sqrt(e)) v`` per head in f32; rows that may see nothing give zeros."""
    batch, queries, heads, width = q.shape
    groups = k.shape[2]
    q32 = q.astype(jnp.float32).reshape(batch, queries, groups, heads // groups, width)
    k32, v32 = k.astype(jnp.float32), v.astype(jnp.float32)
    scores = jnp.einsum("bqgre,bsge->bgrqs", q32, k32, precision="highest") * width**-0.5
    allowed = mask.as_array(queries, k.shape[1])
    weights = jax.nn.softmax(scores, axis=-1, where=allowed)
    weights = jnp.where(allowed.any(axis=-1, keepdims=True), weights, 0.0)
    out = jnp.einsum("bgrqs,bsge->bqgre", weights, v32, precision="highest")
    return out.reshape(q.shape).astype(q.dtype)
