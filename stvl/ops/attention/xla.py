"""Attention left to XLA: products in the dtype of the inputs, scores and softmax in f32."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.core.errors import NotSupported
from stvl.ops.attention.masks import Full, Mask


def attention_xla(
    q: Float[Array, "b q h e"], k: Float[Array, "b s g e"], v: Float[Array, "b s g e"], mask: Mask
) -> Float[Array, "b q h e"]:
    """``softmax(q k^T / sqrt(e)) v`` per head; dividing by the row sum after the second product saves a pass.

    Raises:
        NotSupported: a mask with rows that see nothing (their row sum is zero).
    """
    batch, queries, heads, width = q.shape
    groups = k.shape[2]
    full = isinstance(mask, Full)
    allowed = None if full else mask.as_array(queries, k.shape[1])
    if allowed is not None and not allowed.any(axis=-1).all():
        raise NotSupported("the mask has rows that may see nothing")
    q = (q * jnp.asarray(width**-0.5, q.dtype)).reshape(batch, queries, groups, heads // groups, width)
    scores = jnp.einsum("bqgre,bsge->bgrqs", q, k, preferred_element_type=jnp.float32)
    if allowed is not None:
        scores = jnp.where(allowed, scores, -jnp.inf)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1)
    out = jnp.einsum("bgrqs,bsge->bqgre", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = out / jnp.moveaxis(total, -1, 1)[..., None]
    return out.reshape(batch, queries, heads, width).astype(v.dtype)
