"""JAX's own splash attention on TPUs, as a backend: the vendor path that the library's kernels are held against."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Bool, Float

from stvl.core.sharding import target_platform
from stvl.ops.attention.backends import Case
from stvl.ops.attention.core import limits
from stvl.ops.attention.masks import Band, Both, Causal, Full, Lengths, Mask, Segments, Window, merged_ids
from stvl.ops.attention.options import AttentionOptions
from stvl.ops.rotary import Rotary, rotate

#: Blocks are multiples of the lanes of a vector register.
LANES = 128
#: Largest number of queries x sources for which a mask is handed over as an array.
ARRAY_LIMIT = 2**26
#: Queries and sources in a block, and the sources that one step of the backward pass over keys and values takes: the
#: best found for 16 heads of 64 over 4096 tokens on v5e, 1.52 M bundles forward, 2.09 M and 1.57 M backward.
BLOCK_Q, BLOCK_KV, BLOCK_STEP = 1024, 1024, 512


def attention_splash(
    q: Float[Array, "b q h e"],
    k: Float[Array, "b s g e"],
    v: Float[Array, "b s g e"],
    rotary: Rotary | None,
    mask: Mask,
    options: AttentionOptions,
) -> Float[Array, "b q h e"]:
    """Softmax attention by `jax.experimental.pallas.ops.tpu.splash_attention`, tokens padded to whole blocks.

    The scale goes into q, since the kernel has none: where ``sqrt(e)`` is no power of two, q is rounded once more.
    Off TPUs the kernel runs in interpret mode.
    """
    if rotary is not None:
        q, k = rotate(q, rotary), rotate(k, rotary)
    (b, queries, heads, e), sources = q.shape, k.shape[1]
    known, by_id = _parts(mask)
    plan = _plan(queries, sources, known, options)
    q = (q.astype(jnp.float32) * e**-0.5).astype(q.dtype)
    q = _padded(q, plan.queries, 0).swapaxes(1, 2)
    k, v = (_padded(x, plan.sources, 0).swapaxes(1, 2) for x in (k, v))
    ids = merged_ids(by_id, queries, sources)
    segments = None
    if ids is not None or plan.hides_padding:
        ids = (jnp.zeros((1, queries), jnp.int32), jnp.zeros((1, sources), jnp.int32)) if ids is None else ids
        # Padding has id -1. Queries of that id see the padding of the sources, and are made zero below.
        padded = _padded(ids[0], plan.queries, -1), _padded(ids[1], plan.sources, -1)
        segments = kernels.SegmentIds(*(jnp.broadcast_to(x, (b, x.shape[1])) for x in padded))
    interpret = target_platform() != "tpu" if options.interpret is None else options.interpret
    kernel = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([plan.mask] * heads), block_sizes=plan.blocks, interpret=interpret
    )
    out: Any = jax.vmap(kernel, in_axes=(0, 0, 0, None if segments is None else 0))(q, k, v, segments)
    out = out.swapaxes(1, 2)[:, :queries]
    seen = _seen(plan, ids if by_id else None, queries, sources)
    # The kernel gives a blind row the mean of some values; zeros here make its gradients zero, too.
    return out if seen is None else jnp.where(seen[..., None, None], out, 0)


def _padded(x: Array, length: int, value: int) -> Array:
    return jnp.pad(
        x, [(0, length - x.shape[1] if axis == 1 else 0) for axis in range(x.ndim)], constant_values=value
    )


class _Plan(NamedTuple):
    queries: int  # padded
    sources: int  # padded
    blocks: kernels.BlockSizes
    mask: Any
    hides_padding: bool  # whether padded sources must be told by their ids
    seen: Bool[np.ndarray, "q"] | None  # rows that see something; None for all


def _plan(queries: int, sources: int, known: Mask, options: AttentionOptions) -> _Plan:
    block_q, padded_q = _block(queries, options.block_q or BLOCK_Q)
    block_kv, padded_s = _block(sources, options.block_kv or BLOCK_KV)
    back_q = _divisor(padded_q, options.block_q_backward or block_q)
    back_kv = _divisor(padded_s, options.block_kv_backward or block_kv)
    blocks = kernels.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=back_q,
        block_kv_dkv=back_kv,
        block_kv_dkv_compute=_divisor(back_kv, BLOCK_STEP),
        block_q_dq=back_q,
        block_kv_dq=back_kv,
    )
    shape = (padded_q, padded_s)
    if isinstance(known, Full):
        return _Plan(*shape, blocks, masks.FullMask(shape), padded_s > sources, None)
    if isinstance(known, Causal | Window) and _sees_in_every_row(known, queries, sources):
        mask = (
            masks.CausalMask(shape, offset=known.offset)
            if isinstance(known, Causal)
            else masks.LocalMask(shape, window_size=(known.before, known.after), offset=0)
        )
        reach = limits((known,), np.arange(queries))[1].max()
        return _Plan(*shape, blocks, mask, padded_s > sources and bool(reach >= sources), None)
    allowed = np.zeros(shape, bool)
    allowed[:queries, :sources] = known.as_array(queries, sources)
    seen = np.asarray(allowed[:queries].any(axis=1))
    # Blocks that nobody sees are passed over, and a row that was in no block would give 0 / 0.
    allowed[~allowed.any(axis=1), 0] = True
    return _Plan(*shape, blocks, masks.NumpyMask(allowed), False, None if seen.all() else seen)


def _sees_in_every_row(band: Band, queries: int, sources: int) -> bool:
    first, last = limits((band,), np.arange(queries))
    return bool(((first < sources) & (last >= first)).all())


def _seen(
    plan: _Plan, ids: tuple[Array, Array] | None, queries: int, sources: int
) -> Bool[Array, "#b q"] | None:
    """Rows that see something, or None where all do."""
    if ids is None:
        return None if plan.seen is None else jnp.asarray(plan.seen)[None]
    q_ids, s_ids = ids
    same = (q_ids[:, :, None] == s_ids[:, None, :]) & (q_ids[:, :, None] >= 0)
    # XLA folds the comparison into the reduction; the array of pairs is not stored.
    if isinstance(plan.mask, masks.FullMask):
        return same.any(axis=2)
    at = np.arange(queries)[:, None], np.arange(sources)[None]
    if isinstance(plan.mask, masks.NumpyMask):
        allowed = jnp.asarray(plan.mask.array[:queries, :sources])
    else:
        allowed = plan.mask.mask_function(jnp.asarray(at[0]), jnp.asarray(at[1]))
    seen = (same & allowed).any(axis=2)
    return seen if plan.seen is None else seen & jnp.asarray(plan.seen)


def _block(count: int, wanted: int) -> tuple[int, int]:
    """A block of at most `wanted` tokens (in whole lanes), and the least padded length made of such blocks."""
    wanted = max(wanted // LANES, 1) * LANES
    number = math.ceil(count / wanted)
    block = math.ceil(count / number / LANES) * LANES
    return block, number * block


def _divisor(length: int, wanted: int) -> int:
    """The largest multiple of the lanes that divides `length` and is not above `wanted`."""
    tiles = length // LANES
    return (
        max(part for part in range(1, tiles + 1) if tiles % part == 0 and part * LANES <= max(wanted, LANES))
        * LANES
    )


def _parts(mask: Mask) -> tuple[Mask, tuple[Segments | Lengths, ...]]:
    """What is known when the program is traced, and the masks by id."""
    if isinstance(mask, Both):
        (known, ids), (more_known, more_ids) = _parts(mask.left), _parts(mask.right)
        return known & more_known, ids + more_ids
    return (Full(), (mask,)) if isinstance(mask, Segments | Lengths) else (mask, ())


def declines_splash(case: Case) -> str | None:
    """The reason why splash attention cannot serve a case."""
    if case.platform == "gpu" and not case.options.interpret:
        return "splash attention is for TPUs, the program runs on gpu"
    if case.platform == "tpu" and case.q.dtype == jnp.float32:
        return "splash attention multiplies float32 heads in bfloat16 on TPUs"
    if str(case.q.dtype) not in ("float32", "bfloat16"):
        return f"splash attention takes float32 and bfloat16, the heads are {case.q.dtype}"
    known, _ = _parts(case.mask)
    queries, sources = case.q.shape[1], case.k.shape[1]
    if isinstance(known, Full | Causal | Window) and _sees_in_every_row(known, queries, sources):
        return None
    if queries * sources > ARRAY_LIMIT:
        return f"the mask would be an array of {queries} x {sources}, the limit is {ARRAY_LIMIT} pairs"
    if not isinstance(known, Band) and not isinstance(known.as_array(queries, sources), np.ndarray):
        return f"the array of {type(known).__name__} is not known when the program is traced"
    return None
