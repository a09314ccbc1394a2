"""The meaning of the attention op: everything in f32, the whole score matrix in memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.ops.attention.masks import Mask
from stvl.ops.attention.options import AttentionOptions
from stvl.ops.rotary import Rotary, rotate


def attention_reference(
    q: Float[Array, "b q h e"],
    k: Float[Array, "b s g e"],
    v: Float[Array, "b s g e"],
    rotary: Rotary | None,
    mask: Mask,
    options: AttentionOptions,
) -> Float[Array, "b q h e"]:
    """``softmax(rot(q) rot(k)^T / sqrt(e)) v`` per head in f32; rows that may see nothing give zeros."""
    batch, queries, heads, width = q.shape
    groups = k.shape[2]
    q32, k32, v32 = (x.astype(jnp.float32) for x in (q, k, v))
    if rotary is not None:
        q32, k32 = rotate(q32, rotary), rotate(k32, rotary)
    q32 = q32.reshape(batch, queries, groups, heads // groups, width)
    scores = jnp.einsum("bqgre,bsge->bgrqs", q32, k32, precision="highest") * width**-0.5
    allowed = jnp.asarray(mask.as_array(queries, k.shape[1]))
    allowed = allowed[:, None, None] if allowed.ndim == 3 else allowed
    weights = jax.nn.softmax(scores, axis=-1, where=allowed)
    weights = jnp.where(allowed.any(axis=-1, keepdims=True), weights, 0.0)
    out = jnp.einsum("bgrqs,bsge->bqgre", weights, v32, precision="highest")
    return out.reshape(q.shape).astype(q.dtype)
