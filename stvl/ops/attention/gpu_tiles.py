"""Tile sizes of the GPU kernels, and which tiles of the other side a tile has to visit.

The sizes stand in `TABLE` and nowhere else. They are those that FlashAttention-2 in Triton is known to run well with
on Hopper; they have not been timed with this kernel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from stvl.ops.attention.core import Visible
from stvl.ops.attention.options import AttentionOptions

#: A product on the tensor cores takes at least this many rows, columns and terms.
LEAST = 16
#: Heads wider than this leave no room for two tiles in 227 KB of shared memory.
WIDEST = 256


class Tiles(NamedTuple):
    """Size of the tiles of one kernel and how it is compiled.

    Attributes:
        block_q: queries in a tile.
        block_kv: sources in a tile.
        warps: groups of 32 threads that share a tile.
        stages: tiles on their way from memory while one is being worked on, plus one.
    """

    block_q: int
    block_kv: int
    warps: int
    stages: int


class Spans(NamedTuple):
    """The tiles that each tile visits: ``start <= j < stop``, of which ``full_start <= j < full_stop`` need no mask.

    Attributes:
        bounds: start, full_start, full_stop, stop of each tile; one sample stands for all where ids are absent.
        fixed: the same four numbers where they are known and equal for all tiles.
        parts: whether any tile has tiles before, inside and behind the range that needs no mask.
        longest_last: whether the last tile visits more than the first, so that it had better be started first.
    """

    bounds: Int[Array, "b m 4"] | Int[np.ndarray, "b m 4"]
    fixed: tuple[int, int, int, int] | None
    parts: tuple[bool, bool, bool]
    longest_last: bool


def power_of_two(x: int) -> int:
    """The least power of two that is not below `x`."""
    return 1 << (x - 1).bit_length()


#: Kernel -> (bytes of a number, widest head) -> rows of the tile that a program keeps, rows of the tiles that it walks
#: over, warps, stages. Compiled for sm_90a (Triton 3.9) the lines for 2 bytes up to 128 columns spill at most 64
#: bytes a thread, and none takes more than 160 KB of shared memory.
TABLE: dict[str, dict[tuple[int, int], tuple[int, int, int, int]]] = {
    "forward": {
        (2, 64): (128, 64, 4, 3),
        (2, 128): (128, 64, 8, 3),
        (2, 256): (64, 64, 8, 2),
        (4, 64): (64, 32, 4, 2),
        (4, 128): (64, 32, 4, 2),
        (4, 256): (32, 16, 4, 1),
    },
    "queries": {
        (2, 64): (128, 64, 8, 2),
        (2, 128): (128, 64, 8, 2),
        (2, 256): (64, 32, 8, 1),
        (4, 64): (64, 32, 4, 2),
        (4, 128): (32, 32, 4, 1),
        (4, 256): (16, 16, 4, 1),
    },
    "sources": {
        (2, 64): (128, 64, 8, 2),
        (2, 128): (128, 32, 8, 2),
        (2, 256): (64, 32, 8, 1),
        (4, 64): (64, 32, 4, 2),
        (4, 128): (32, 32, 4, 1),
        (4, 256): (16, 16, 4, 1),
    },
}


def choose(
    kernel: str, tokens: tuple[int, int], width: int, itemsize: int, options: AttentionOptions
) -> Tiles:
    """Tiles of a kernel.

    Args:
        kernel: ``forward``, ``queries`` (the part of the backward pass that keeps a tile of queries and gives dq) or
            ``sources`` (the part that keeps a tile of sources and gives dk and dv).
        tokens: numbers of queries and sources.
        width: head width, at most `WIDEST`.
        itemsize: bytes of a number.
        options: sizes that the caller insists on.
    """
    lines = TABLE[kernel].items()
    outer, inner, warps, stages = next(
        sizes for (size, widest), sizes in lines if size >= itemsize and widest >= width
    )
    forward = kernel == "forward"
    asked_q = options.block_q if forward else options.block_q_backward
    asked_kv = options.block_kv if forward else options.block_kv_backward
    block_q, block_kv = (inner, outer) if kernel == "sources" else (outer, inner)
    block_q = asked_q or min(block_q, max(LEAST, power_of_two(tokens[0])))
    block_kv = asked_kv or min(block_kv, max(LEAST, power_of_two(tokens[1])))
    rows = block_kv if kernel == "sources" else block_q
    if rows < outer:  # a warp needs 16 rows of the kept tile to itself
        warps = max(1, min(warps, rows // LEAST))
    return Tiles(block_q, block_kv, warps, stages)


def needed(visible: Visible, sources: int) -> Visible:
    """`visible` without the conditions that are known to hold always."""
    first, last, at = visible.first, visible.last, visible.at
    place = np.arange(sources) if at is None else at
    if isinstance(place, np.ndarray) and sources:
        if isinstance(first, np.ndarray) and (first <= place.min()).all():
            first = None
        if isinstance(last, np.ndarray) and (last >= place.max()).all():
            last = None
    if first is None and last is None:
        at = None
    return visible._replace(first=first, last=last, at=at)


def spans(visible: Visible, queries: int, sources: int, tiles: Tiles, by_source: bool) -> Spans:
    """What each tile of queries (or of sources) visits; numpy and fixed where the mask is known at trace time."""
    vectors = (visible.first, visible.last, visible.at, visible.q_ids, visible.s_ids)
    static = not any(x is not None and not isinstance(x, np.ndarray) for x in vectors)
    xp: Any = np if static else jnp
    at = np.arange(sources, dtype=np.int32) if visible.at is None else visible.at
    at_min, at_max = _ends(at, tiles.block_kv, xp)
    count_q, count_kv = -(-queries // tiles.block_q), -(-sources // tiles.block_kv)
    touched = full = xp.ones((1, count_q, count_kv), bool)
    if visible.first is not None:
        low, high = (x[:, None] for x in _ends(visible.first, tiles.block_q, xp))
        touched, full = touched & (at_max >= low), full & (at_min >= high)
    if visible.last is not None:
        low, high = (x[:, None] for x in _ends(visible.last, tiles.block_q, xp))
        touched, full = touched & (at_min <= high), full & (at_max <= low)
    if visible.q_ids is not None and visible.s_ids is not None:
        q_min, q_max = (x[:, :, None] for x in _ends(visible.q_ids, tiles.block_q, xp))
        s_min, s_max = (x[:, None, :] for x in _ends(visible.s_ids, tiles.block_kv, xp))
        # A padding id is -1 and matches nothing; ends of 0 and above bound the ids that can match.
        touched = touched & (q_max >= 0) & (s_max >= xp.maximum(q_min, 0)) & (q_max >= xp.maximum(s_min, 0))
        full = full & (q_min >= 0) & (q_min == q_max) & (s_min == q_min) & (s_max == q_min)
    if by_source:
        touched, full = touched.swapaxes(-1, -2), full.swapaxes(-1, -2)
        whole = np.arange(1, count_q + 1) * tiles.block_q <= queries
    else:
        whole = np.arange(1, count_kv + 1) * tiles.block_kv <= sources
    return _spans(touched, full & whole, xp)


def _ends(x: Any, block: int, xp: Any) -> tuple[Any, Any]:
    """Least and greatest of each tile."""
    widths = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % block)]
    tiles = xp.pad(x, widths, mode="edge").reshape(*x.shape[:-1], -1, block)
    return tiles.min(-1), tiles.max(-1)


def _spans(touched: Any, full: Any, xp: Any) -> Spans:
    count = touched.shape[-1]
    index = np.arange(count)
    stop = xp.where(touched, index + 1, 0).max(-1)
    start = xp.minimum(xp.where(touched, index, count).min(-1), stop)
    full_start = xp.where(full, index, count).min(-1)
    # Only the first run of full tiles is taken: the sources of a ring may come in two pieces.
    full_stop = xp.where(~full & (index >= full_start[..., None]), index, count).min(-1)
    full_start, full_stop = (xp.where(full.any(-1), x, start) for x in (full_start, full_stop))
    bounds = xp.stack([start, full_start, full_stop, stop], axis=-1).astype(np.int32)
    if xp is jnp:
        return Spans(bounds, None, (True, True, True), False)
    steps = np.diff(bounds, axis=-1).reshape(-1, 3).any(0).tolist()
    fixed = bounds.reshape(-1, 4)[0].tolist() if (bounds == bounds[:, :1]).all() else None
    visits = (bounds[..., 3] - bounds[..., 0])[0]
    return Spans(bounds, None if fixed is None else tuple(fixed), tuple(steps), bool(visits[-1] > visits[0]))
