"""The attention op: checks its arguments, and hands them to the backend that is named or that the rules choose."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.core.errors import NotSupported, nearest
from stvl.core.sharding import mesh_in_force, target_platform
from stvl.ops.attention.backends import Backend, Case
from stvl.ops.attention.chunked import ChunkedCore
from stvl.ops.attention.core import declines_mask, flash
from stvl.ops.attention.cudnn import attention_cudnn, declines_cudnn
from stvl.ops.attention.gpu import GpuCore
from stvl.ops.attention.gpu import declines as declines_gpu
from stvl.ops.attention.masks import Full, Mask
from stvl.ops.attention.options import AttentionOptions
from stvl.ops.attention.record import note
from stvl.ops.attention.reference import attention_reference
from stvl.ops.attention.ring import ring_backend
from stvl.ops.attention.rules import CHOICES
from stvl.ops.attention.sharded import over_mesh
from stvl.ops.attention.splash import attention_splash, declines_splash
from stvl.ops.attention.tpu import TpuCore
from stvl.ops.attention.tpu import declines as declines_tpu
from stvl.ops.attention.xla import attention_xla
from stvl.ops.rotary import Rotary, check_rotary

#: Backends by name.
BACKENDS: dict[str, Backend] = {
    "reference": Backend(attention_reference),
    "xla": Backend(attention_xla),
    "chunked": Backend(functools.partial(flash, ChunkedCore()), declines_mask, core=ChunkedCore()),
    "gpu": Backend(functools.partial(flash, GpuCore()), declines_gpu, kernel=True, core=GpuCore()),
    "tpu": Backend(functools.partial(flash, TpuCore()), declines_tpu, kernel=True, core=TpuCore()),
    "splash": Backend(attention_splash, declines_splash, kernel=True),
    "cudnn": Backend(attention_cudnn, declines_cudnn, kernel=True),
}
BACKENDS["ring"] = ring_backend(BACKENDS)


def attention(
    q: Float[Array, "b q h e"],
    k: Float[Array, "b s g e"],
    v: Float[Array, "b s g e"],
    *,
    rotary: Rotary | None = None,
    mask: Mask | None = None,
    options: AttentionOptions | None = None,
    impl: str | None = None,
) -> Float[Array, "b q h e"]:
    """``softmax(rot(q) rot(k)^T / sqrt(e) + mask) v`` for every head.

    Args:
        q: queries; `h` heads.
        k: keys; `g` heads with ``h % g == 0``, each shared by ``h / g`` query heads.
        v: values, shaped like `k`.
        rotary: turns q and k before the product; needs as many queries as sources.
        mask: who may see whom, default `Full`. A row that may see nothing gives zeros, also where there are no sources.
        options: tile sizes and switches; they change speed and memory only.
        impl: name of a backend, or None for the one that the rules choose (`explain` says which).

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
        NotSupported: the named backend declines the case; the message has the reason.
    """
    _check(q, k, v, rotary)
    mask = Full() if mask is None else mask
    options = AttentionOptions() if options is None else options
    case = _case(q, k, rotary, mask, options)
    note(case)
    if impl is None:
        impl, reasons = choose(case)
        if impl is None:
            raise NotSupported("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    elif impl not in BACKENDS:
        raise ValueError(f"unknown attention backend {impl!r}{nearest(impl, BACKENDS)}")
    backend = BACKENDS[impl]
    reason = backend.declines(case)
    if not (q.size and k.size):
        return jnp.zeros_like(q)
    if reason is not None:
        raise NotSupported(f"attention backend {impl!r}: {reason}")
    run = over_mesh(backend.run) if backend.kernel else backend.run
    return run(q, k, v, rotary, mask, options)


def explain(
    q: Array,
    k: Array,
    v: Array,
    *,
    rotary: Rotary | None = None,
    mask: Mask | None = None,
    options: AttentionOptions | None = None,
) -> tuple[str | None, dict[str, str]]:
    """Name the backend that ``impl=None`` takes, and the reasons for which those before it were passed over.

    `q`, `k` and `v` may be `jax.ShapeDtypeStruct`.
    """
    return choose(_case(q, k, rotary, Full() if mask is None else mask, options or AttentionOptions()))


def choose(case: Case) -> tuple[str | None, dict[str, str]]:
    """The same for a case, which may be of another platform than the one at hand."""
    reasons: dict[str, str] = {}
    for choice in CHOICES:
        if choice.platform != case.platform:
            continue
        reason = choice.passes_over(case) or BACKENDS[choice.impl].declines(case)
        if reason is None:
            return choice.impl, reasons
        reasons[choice.impl] = reason
    return None, reasons


def _case(q: Array, k: Array, rotary: Rotary | None, mask: Mask, options: AttentionOptions) -> Case:
    q_shape, k_shape = jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct(k.shape, k.dtype)
    return Case(q_shape, k_shape, rotary is not None, mask, options, target_platform(), mesh_in_force())


def _check(q: Array, k: Array, v: Array, rotary: Rotary | None) -> None:
    if k.shape != v.shape:
        raise ValueError(f"keys and values must have one shape, found {k.shape} and {v.shape}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"queries {q.shape} and keys {k.shape} must share batch and head width")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads cannot share {k.shape[2]} key heads evenly")
    if rotary is not None:
        if q.shape[1] != k.shape[1]:
            raise ValueError(
                f"rotary attention needs as many queries as sources, found {q.shape[1]} and {k.shape[1]}"
            )
        check_rotary(q, rotary)
