"""What a tiled attention core answers, and the one function that makes it differentiable.

A core never stores the scores. Forward gives the output and the logarithm of each row's sum of exponentials; backward
recomputes the scores from it (FlashAttention-2, arXiv 2307.08691, Algorithms 1 and 2).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stvl.core.errors import NotSupported
from stvl.ops.attention.backends import Case
from stvl.ops.attention.masks import FAR, Band, Mask, merged_ids, parts
from stvl.ops.attention.options import AttentionOptions
from stvl.ops.rotary import Rotary, angle_gradient, rotate


class Visible(NamedTuple):
    """Who may see whom, as vectors: source j is visible to query i of sample b when
    ``first[i] <= at[j] <= last[i]`` and ``q_ids[b, i] == s_ids[b, j] >= 0``; a None sets no condition.

    Attributes:
        first: first visible position of each query; a numpy array where it is known at trace time.
        last: last visible position of each query, inclusive.
        at: position of each source; None is ``0 .. s - 1``.
        q_ids: segment of each query.
        s_ids: segment of each source.
    """

    first: Int[Array, "q"] | Int[np.ndarray, "q"] | None = None
    last: Int[Array, "q"] | Int[np.ndarray, "q"] | None = None
    at: Int[Array, "s"] | Int[np.ndarray, "s"] | None = None
    q_ids: Int[Array, "b q"] | None = None
    s_ids: Int[Array, "b s"] | None = None


@runtime_checkable
class Core(Protocol):
    """A tiled attention: pads and tiles inside, accepts any length and head width it does not decline.

    Cores are hashable and hold no arrays. `q` is (b, q, h, e); `k` and `v` are (b, s, g, e) with ``h % g == 0``.
    """

    @property
    def fuses_rotary(self) -> bool:
        """Whether `forward` and `backward` turn q and k themselves; else they get them turned and `rotary` is None."""
        ...

    def forward(
        self, q: Array, k: Array, v: Array, rotary: Rotary | None, visible: Visible, options: AttentionOptions
    ) -> tuple[Float[Array, "b q h e"], Float[Array, "b h q"]]:
        """Output in the dtype of q, and ``log sum exp`` of each row in f32 (-inf and zeros for a blind row)."""
        ...

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
        """Gradients of ``(out * ct).sum()`` with respect to q, k and v; `saved` is what `forward` returned.

        `saved` may stem from an attention over more sources than `k` holds (a ring): the probabilities are
        ``exp(score - lse)`` with the given lse.
        """
        ...


def limits(bands: tuple[Band, ...], query: Any) -> tuple[Any, Any]:
    """First and last visible source of each query under all bands; numpy in, numpy out."""
    numpy = jnp if isinstance(query, jax.Array) else np
    first, last = 0 * query, 0 * query + FAR
    for band in bands:
        low, high = band.limits(query)
        first, last = numpy.maximum(first, low), numpy.minimum(last, high)
    return first, last


def visible(bands: tuple[Band, ...], queries: int, ids: tuple[Array, Array] | None) -> Visible:
    """The vectors of a mask whose parts are `bands` and merged `ids`."""
    first, last = limits(bands, np.arange(queries, dtype=np.int32)) if bands else (None, None)
    q_ids, s_ids = (None, None) if ids is None else ids
    return Visible(first=first, last=last, q_ids=q_ids, s_ids=s_ids)


class _Static(NamedTuple):
    core: Core
    bands: tuple[Band, ...]
    options: AttentionOptions


def flash(
    core: Core,
    q: Float[Array, "b q h e"],
    k: Float[Array, "b s g e"],
    v: Float[Array, "b s g e"],
    rotary: Rotary | None,
    mask: Mask | None,
    options: AttentionOptions,
) -> Float[Array, "b q h e"]:
    """Attention by `core`, differentiable in q, k, v, the coordinates and the frequencies.

    Raises:
        NotSupported: a mask that is not made of bands and ids.
    """
    bands, by_id = parts(mask)
    ids = merged_ids(by_id, q.shape[1], k.shape[1])
    if ids is not None:
        ids = tuple(jnp.broadcast_to(x, (q.shape[0], x.shape[-1])) for x in ids)
    if rotary is not None and not core.fuses_rotary:
        q, k, rotary = rotate(q, rotary), rotate(k, rotary), None
    return _flash(_Static(core, bands, options), q, k, v, rotary, ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(
    static: _Static, q: Array, k: Array, v: Array, rotary: Rotary | None, ids: tuple[Array, Array] | None
) -> Array:
    return _forward(static, q, k, v, rotary, ids)[0]


def _forward(
    static: _Static, q: Array, k: Array, v: Array, rotary: Rotary | None, ids: tuple[Array, Array] | None
) -> tuple[Array, Any]:
    seen = visible(static.bands, q.shape[1], ids)
    out, lse = static.core.forward(q, k, v, rotary, seen, static.options)
    return out, (q, k, v, rotary, ids, out, lse)


def _backward(static: _Static, saved: Any, ct: Array) -> tuple[Any, ...]:
    q, k, v, rotary, ids, out, lse = saved
    seen = visible(static.bands, q.shape[1], ids)
    dq, dk, dv = static.core.backward(q, k, v, rotary, seen, static.options, (out, lse), ct)
    turned = None if rotary is None else angle_gradient(rotary, (q, dq), (k, dk))
    return dq, dk, dv, turned, None


_flash.defvjp(_forward, _backward)


def declines_mask(case: Case) -> str | None:
    """The reason why no tiled core can serve a case: a mask without bands and ids."""
    try:
        parts(case.mask)
    except NotSupported as reason:
        return str(reason)
    return None
