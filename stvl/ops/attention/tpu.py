"""Attention core for TPUs: Pallas kernels with the rotation fused, forward and backward.

FlashAttention-2 (arXiv 2307.08691) recast for a 128 x 128 systolic matmul unit; see `tpu_forward` and `tpu_backward`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stvl.ops.attention.backends import Case
from stvl.ops.attention.core import Visible, declines_mask
from stvl.ops.attention.masks import FAR
from stvl.ops.attention.options import AttentionOptions
from stvl.ops.attention.tpu_calls import backward_call, forward_call
from stvl.ops.attention.tpu_layout import LANES, WIDTHS, native_width
from stvl.ops.rotary import Rotary, rotate

#: Sources that one call holds in VMEM; more are taken in several calls, whose results are merged.
FORWARD_SOURCES, BACKWARD_SOURCES = 10240, 5120


class TpuCore(NamedTuple):
    """`Core` by Pallas kernels; runs in interpret mode where the program is not meant for a TPU."""

    fuses_rotary: bool = True

    def forward(
        self, q: Array, k: Array, v: Array, rotary: Rotary | None, visible: Visible, options: AttentionOptions
    ) -> tuple[Float[Array, "b q h e"], Float[Array, "b h q"]]:
        """See `Core`."""
        q, k, rotary = _native_only(q, k, rotary)
        k, v = _repeated(q, k), _repeated(q, v)
        pieces = _pieces(k.shape[1], FORWARD_SOURCES)
        if len(pieces) == 1:
            return forward_call(q, k, v, (rotary, rotary), visible, options, q.dtype)
        (b, n, h, _), total = q.shape, jnp.zeros(q.shape, jnp.float32)
        top = jnp.full((b, h, n), -jnp.inf, jnp.float32)
        for piece in pieces:
            seen, turned = _shown(visible, piece), _turned(rotary, piece)
            out, lse = forward_call(q, k[:, piece], v[:, piece], (rotary, turned), seen, options, jnp.float32)
            new = jnp.logaddexp(top, lse)
            shares = (jnp.exp(x - jnp.where(jnp.isfinite(new), new, 0.0)) for x in (top, lse))
            old_share, new_share = (share.transpose(0, 2, 1)[..., None] for share in shares)
            total, top = total * old_share + out * new_share, new
        return total.astype(q.dtype), top

    def backward(
        self,
        q: Array,
        k: Array,
        v: Array,
        rotary: Rotary | None,
        visible: Visible,
        options: AttentionOptions,
        saved: tuple[Float[Array, "b q h e"], Float[Array, "b h q"]],
        ct: Float[Array, "b q h e"],
    ) -> tuple[Array, Array, Array]:
        """See `Core`."""
        out, lse = saved
        given, groups, turned_outside = rotary, k.shape[2], rotary is not None
        q, k, rotary = _native_only(q, k, rotary)
        turned_outside = turned_outside and rotary is None
        k, v = _repeated(q, k), _repeated(q, v)
        drop = jnp.einsum("bqhe,bqhe->bhq", out.astype(jnp.float32), ct.astype(jnp.float32))
        pieces = _pieces(k.shape[1], BACKWARD_SOURCES)
        dq, dks, dvs = jnp.zeros((), jnp.float32), [], []
        for piece in pieces:
            seen, turned = _shown(visible, piece), _turned(rotary, piece)
            dtype = jnp.float32 if len(pieces) > 1 else q.dtype
            part, dk, dv = backward_call(
                q, k[:, piece], v[:, piece], (rotary, turned), seen, options, (lse, drop, ct), dtype
            )
            dq = dq + part if len(pieces) > 1 else part
            dks.append(dk)
            dvs.append(dv)
        dk, dv = (x[0] if len(x) == 1 else jnp.concatenate(x, axis=1) for x in (dks, dvs))
        if dk.shape[2] != groups:
            dk, dv = (_grouped(x, groups) for x in (dk, dv))
        dq = dq.astype(q.dtype)
        if turned_outside and given is not None:
            back = Rotary(given.coords, -given.frequencies)
            dq, dk = rotate(dq, back), rotate(dk, back)
        return dq, dk, dv


def declines(case: Case) -> str | None:
    """Why the TPU kernels cannot serve a case, or None."""
    if case.platform != "tpu" and case.options.interpret is False:
        return f"the program is for {case.platform}, and interpret mode is switched off"
    if case.q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"the dtype is {case.q.dtype}, the kernel takes float32 and bfloat16"
    if case.q.shape[-1] > WIDTHS[-1]:
        return f"heads are {case.q.shape[-1]} wide, the kernel takes up to {WIDTHS[-1]}"
    return declines_mask(case)


def _native_only(q: Array, k: Array, rotary: Rotary | None) -> tuple[Array, Array, Rotary | None]:
    """Turn heads here when they are padded in the kernel, since padding moves the halves of their pairs."""
    if rotary is None or q.shape[-1] in WIDTHS:
        return q, k, rotary
    return rotate(q, rotary), rotate(k, rotary), None


def _repeated(q: Array, k: Array) -> Array:
    """Keys for every query head, where several heads lie side by side in the lanes."""
    if q.shape[2] == k.shape[2] or native_width(q.shape[3]) >= LANES:
        return k
    return jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)


def _grouped(x: Array, groups: int) -> Array:
    b, s, h, e = x.shape
    return x.astype(jnp.float32).reshape(b, s, groups, h // groups, e).sum(axis=3).astype(x.dtype)


def _pieces(sources: int, most: int) -> list[slice]:
    count = -(-sources // most)
    size = -(-sources // (count * LANES)) * LANES
    return [slice(start, min(start + size, sources)) for start in range(0, sources, size)]


def _turned(rotary: Rotary | None, piece: slice) -> Rotary | None:
    return None if rotary is None else Rotary(jnp.asarray(rotary.coords)[..., piece, :], rotary.frequencies)


def _shown(visible: Visible, piece: slice) -> Visible:
    """`Visible` of some of the sources, counted from the first of them."""
    first, last, at, q_ids, s_ids = visible
    s_ids = None if s_ids is None else s_ids[:, piece]
    if at is not None or first is None or last is None:
        return Visible(first, last, None if at is None else at[piece], q_ids, s_ids)
    last = np.minimum(last, FAR) if isinstance(last, np.ndarray) else jnp.minimum(last, FAR)
    return Visible(first - piece.start, last - piece.start, None, q_ids, s_ids)
