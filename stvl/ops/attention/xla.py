"""Attention left to XLA: products in the dtype of the inputs, scores and softmax in f32, scores kept for the gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.ops.attention.masks import Full, Mask
from stvl.ops.attention.options import AttentionOptions
from stvl.ops.rotary import Rotary, rotate


def attention_xla(
    q: Float[Array, "b q h e"],
    k: Float[Array, "b s g e"],
    v: Float[Array, "b s g e"],
    rotary: Rotary | None,
    mask: Mask,
    options: AttentionOptions,
) -> Float[Array, "b q h e"]:
    """``softmax(q k^T / sqrt(e)) v`` per head; dividing by the row sum after the second product saves a pass."""
    batch, queries, heads, width = q.shape
    groups = k.shape[2]
    if rotary is not None:
        q, k = rotate(q, rotary), rotate(k, rotary)
    q = (q * jnp.asarray(width**-0.5, q.dtype)).reshape(batch, queries, groups, heads // groups, width)
    scores = jnp.einsum("bqgre,bsge->bgrqs", q, k, preferred_element_type=jnp.float32)
    if not isinstance(mask, Full):
        allowed = mask.as_array(queries, k.shape[1])
        scores = jnp.where(allowed[:, None, None] if allowed.ndim == 3 else allowed, scores, -jnp.inf)
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - (top if isinstance(mask, Full) else jnp.maximum(top, -1e30)))
    total = weights.sum(axis=-1)
    if not isinstance(mask, Full):
        # A blind row has nothing but zeros above the line.
        total = jnp.where(total == 0, 1.0, total)
    out = jnp.einsum("bgrqs,bsge->bqgre", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = out / jnp.moveaxis(total, -1, 1)[..., None]
    return out.reshape(batch, queries, heads, width).astype(v.dtype)
