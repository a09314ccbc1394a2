"""The attention op: checks shapes, turns heads, and asks the backends in order."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from stvl.core.errors import NotSupported, nearest
from stvl.ops.attention.masks import Full, Mask
from stvl.ops.attention.reference import attention_reference
from stvl.ops.attention.xla import attention_xla
from stvl.ops.rotary import Rotary, rotate

Backend = Callable[..., Array]

#: Backends by name, in the order in which ``impl=None`` asks them.
BACKENDS: dict[str, Backend] = {"xla": attention_xla, "reference": attention_reference}


def attention(
    q: Float[Array, "b q h e"],
    k: Float[Array, "b s g e"],
    v: Float[Array, "b s g e"],
    *,
    rotary: Rotary | None = None,
    mask: Mask | None = None,
    impl: str | None = None,
) -> Float[Array, "b q h e"]:
    """``softmax(rot(q) rot(k)^T / sqrt(e) + mask) v`` for every head.

    Args:
        q: queries; `h` heads.
        k: keys; `g` heads with ``h % g == 0``, each shared by ``h / g`` query heads.
        v: values, shaped like `k`.
        rotary: turns q and k before the product; needs as many queries as sources.
        mask: who may see whom, default `Full`. A row that may see nothing gives zeros.
        impl: name of a backend, or None for the first one that serves the case.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
        NotSupported: the named backend declines the case.
    """
    _check(q, k, v, rotary)
    if rotary is not None:
        q, k = rotate(q, rotary), rotate(k, rotary)
    mask = Full() if mask is None else mask
    if impl is not None:
        if impl not in BACKENDS:
            raise ValueError(f"unknown attention backend {impl!r}{nearest(impl, BACKENDS)}")
        return BACKENDS[impl](q, k, v, mask)
    chosen, reasons = explain(q, k, v, mask)
    if chosen is None:
        raise NotSupported("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    return BACKENDS[chosen](q, k, v, mask)


def explain(q: Array, k: Array, v: Array, mask: Mask | None = None) -> tuple[str | None, dict[str, str]]:
    """Name the backend that ``impl=None`` picks, and the reasons for which those before it declined."""
    asked = Full() if mask is None else mask
    reasons: dict[str, str] = {}
    for name, backend in BACKENDS.items():
        try:
            jax.eval_shape(functools.partial(backend, mask=asked), q, k, v)
            return name, reasons
        except NotSupported as reason:
            reasons[name] = str(reason)
    return None, reasons


def _check(q: Array, k: Array, v: Array, rotary: Rotary | None) -> None:
    if k.shape != v.shape:
        raise ValueError(f"keys and values must have one shape, found {k.shape} and {v.shape}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"queries {q.shape} and keys {k.shape} must share batch and head width")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads cannot share {k.shape[2]} key heads evenly")
    if rotary is not None and q.shape[1] != k.shape[1]:
        raise ValueError(
            f"rotary attention needs as many queries as sources, found {q.shape[1]} and {k.shape[1]}"
        )
