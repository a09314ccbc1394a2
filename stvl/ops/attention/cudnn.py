"""cuDNN's flash attention on NVIDIA GPUs, by way of `jax.nn.dot_product_attention`."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stvl.core.errors import NotSupported
from stvl.ops.attention.backends import Case
from stvl.ops.attention.core import limits
from stvl.ops.attention.masks import Band, Lengths, Mask, parts
from stvl.ops.attention.options import AttentionOptions
from stvl.ops.rotary import Rotary, rotate

#: Widest head that cuDNN takes on every GPU with bf16 (Hopper takes 256).
MAX_WIDTH = 128


def attention_cudnn(
    q: Float[Array, "b q h e"],
    k: Float[Array, "b s g e"],
    v: Float[Array, "b s g e"],
    rotary: Rotary | None,
    mask: Mask,
    options: AttentionOptions,
) -> Float[Array, "b q h e"]:
    """Softmax attention by cuDNN; heads are turned before it, and rows that see nothing are made zero after it."""
    if rotary is not None:
        q, k = rotate(q, rotary), rotate(k, rotary)
    bands, by_id = parts(mask)
    form = _form(bands, q.shape[1], k.shape[1])
    assert not isinstance(form, str)
    counts = _counts(by_id, q, k)
    q_count, s_count = (None, None) if counts is None else counts
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=form.causal,
        local_window_size=None if form.before is None else (form.before, 0),
        # A sample without tokens is given one, so that nothing is divided by zero in either pass.
        query_seq_lengths=None if q_count is None else jnp.maximum(q_count, 1),
        key_value_seq_lengths=None if s_count is None else jnp.maximum(s_count, 1),
        implementation="cudnn",
    )
    if q_count is None or s_count is None:
        return out
    seen = (jnp.arange(q.shape[1]) < q_count[:, None]) & (s_count > 0)[:, None]
    return jnp.where(seen[..., None, None], out, 0)


class _Form(NamedTuple):
    """A mask in cuDNN's words: whether causal, and then how many sources before its own a query sees."""

    causal: bool = False
    before: int | None = None


def _form(bands: tuple[Band, ...], queries: int, sources: int) -> _Form | str:
    """The form of the bands' conjunction, or the reason why there is none."""
    at = np.arange(queries)
    first, last = limits(bands, at)
    first, last = np.maximum(first, 0), np.minimum(last, sources - 1)
    if (first == 0).all() and (last == sources - 1).all():
        return _Form()
    if queries != sources or (last != at).any():
        return "cuDNN knows the full mask, and causal masks and windows that end at the query, over equal lengths"
    before = int((at - first).max())
    if (first != np.maximum(at - before, 0)).any():
        return "cuDNN knows windows of one width only"
    return _Form(True, None if (first == 0).all() else before)


def _counts(masks: tuple[object, ...], q: Array, k: Array) -> tuple[Int[Array, "b"], Int[Array, "b"]] | None:
    """True queries and sources of each sample under all masks by length."""
    lengths = [mask for mask in masks if isinstance(mask, Lengths)]
    if not lengths:
        return None
    q_count = jnp.full(q.shape[0], q.shape[1], jnp.int32)
    s_count = jnp.full(q.shape[0], k.shape[1], jnp.int32)
    for mask in lengths:
        s_count = jnp.minimum(s_count, jnp.asarray(mask.sources, jnp.int32))
        if mask.queries is not None:
            q_count = jnp.minimum(q_count, jnp.asarray(mask.queries, jnp.int32))
    return q_count, s_count


def declines_cudnn(case: Case) -> str | None:
    """The reason why cuDNN cannot serve a case."""
    width, queries, sources = case.q.shape[3], case.q.shape[1], case.k.shape[1]
    if case.platform != "gpu":
        return f"cuDNN is for NVIDIA GPUs, the program runs on {case.platform}"
    if jax.default_backend() != "gpu":
        return "JAX asks cuDNN for its version when the program is traced, and there is no GPU here"
    if str(case.q.dtype) not in ("bfloat16", "float16") or case.k.dtype != case.q.dtype:
        return f"cuDNN takes bfloat16 and float16, the heads are {case.q.dtype} and {case.k.dtype}"
    if width > MAX_WIDTH or width % 8:
        return f"cuDNN takes head widths that are multiples of 8 up to {MAX_WIDTH}, found {width}"
    try:
        bands, by_id = parts(case.mask)
    except NotSupported as reason:
        return str(reason)
    if not all(isinstance(mask, Lengths) for mask in by_id):
        return "cuDNN knows lengths, not segments"
    form = _form(bands, queries, sources)
    if isinstance(form, str):
        return form
    if form.before is not None and by_id:
        return "cuDNN's windows are not joined with lengths here"
    return None
