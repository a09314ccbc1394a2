"""How the TPU kernels cut an attention up: heads side by side in the 128 lanes, tiles of queries, runs of sources."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stvl.core.sharding import target_platform
from stvl.ops.attention.options import AttentionOptions
from stvl.ops.rotary import Rotary

LANES = 128
#: Head widths that fill the lanes: 4 or 2 heads side by side, or one head on 1 or 2 lane tiles.
WIDTHS = (32, 64, 128, 256)
#: Rows under the transposed values that are all ones: the product with the weights then holds their sum as well.
ONES = 16
#: Stands for minus infinity where a difference of two may be taken.
LOW = -1e30
LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453

_TILES = (512, 640, 384, 768, 256, 896, 1024, 128)


class Layout(NamedTuple):
    """Static sizes of one kernel call.

    Attributes:
        per: heads side by side in one lane block.
        width: head width e, one of `WIDTHS`.
        repeats: query lane blocks that share one key lane block (grouped heads of width 128 and above).
        block_q: queries in a tile.
        tiles: tiles of queries.
        chunk: sources whose scores are computed at once.
        body: chunks in one trip of the loop over sources.
        queries: true number of queries.
        sources: true number of sources.
        masked: whether scores are masked inside the kernel.
        rotary: whether q and k are turned inside the kernel.
        scale: factor of the scores.
        exact: whether products are taken in f32: for f32 inputs, and off TPU, where not every bf16 product exists.
    """

    per: int
    width: int
    repeats: int
    block_q: int
    tiles: int
    chunk: int
    body: int
    queries: int
    sources: int
    masked: bool
    rotary: bool
    scale: float
    exact: bool

    @property
    def lanes(self) -> int:
        """Lanes of a block of heads."""
        return self.per * self.width

    @property
    def padded_sources(self) -> int:
        """Sources rounded up to whole lane tiles."""
        return -(-self.sources // LANES) * LANES

    @property
    def trips(self) -> int:
        """Full trips of the loop over sources."""
        return self.padded_sources // (self.chunk * self.body)

    @property
    def run(self) -> int:
        """Sources in one trip."""
        return self.chunk * self.body

    def tail(self) -> list[tuple[int, int]]:
        """Start and size of the chunks behind the last full trip."""
        starts = range(self.trips * self.run, self.padded_sources, self.chunk)
        return [(start, min(self.chunk, self.padded_sources - start)) for start in starts]


def native_width(width: int) -> int:
    """The narrowest kernel width that holds heads of this width.

    Raises:
        ValueError: heads wider than the widest.
    """
    for size in WIDTHS:
        if width <= size:
            return size
    raise ValueError(f"the TPU kernel serves heads up to {WIDTHS[-1]} wide, found {width}")


def tile_of(queries: int, asked: int | None) -> int:
    """Queries in a tile: what was asked for, rounded up to lanes, else the size that pads least (512 if it may)."""
    if asked is not None:
        return -(-asked // LANES) * LANES
    padded = {size: -(-queries // size) * size for size in _TILES}
    least = min(padded.values())
    # Up to 3 % more padding is worth a size that comes earlier in the list.
    return next(size for size in _TILES if padded[size] <= 1.03 * least)


def chunks_of(sources: int, asked: int | None, most: int) -> tuple[int, int]:
    """Sources in a chunk and chunks in a trip: chunks of 512, and as many in a trip as divide best, at most `most`."""
    chunk = 512 if asked is None else -(-asked // LANES) * LANES
    whole = -(-sources // LANES) * LANES // chunk
    if whole == 0:
        return chunk, 1
    # The chunks left over run once behind the loop; a trip of more chunks hides more latency.
    return chunk, min(range(1, min(most, whole) + 1), key=lambda body: (whole % body, -body))


def interpreted(options: AttentionOptions) -> bool:
    """Whether the kernels run in interpret mode: by default wherever the program is not for a TPU."""
    return target_platform() != "tpu" if options.interpret is None else options.interpret


def tables(rotary: Rotary, layout: Layout) -> tuple[Float[Array, "*lead n w"], Float[Array, "*lead n w"]]:
    """Cosines, and sines with the sign of the half that they multiply, laid out over the lanes of a block of heads."""
    coords, frequencies = (jnp.asarray(part, jnp.float32) for part in rotary)
    angles = jnp.matmul(coords, frequencies, precision="highest")
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    halves = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    first, second = (jnp.concatenate([half] * layout.per, axis=-1) for half in halves)
    return first, second


def by_lanes(x: Float[Array, "b n h e"], layout: Layout) -> Float[Array, "b n w"]:
    """Heads side by side, zero-padded to the kernel's width and to whole lane blocks."""
    b, n, h, e = x.shape
    widths = [(0, 0), (0, 0), (0, -h % layout.per), (0, layout.width - e)]
    if any(pad for _, pad in widths):
        x = jnp.pad(x, widths)
    return x.reshape(b, n, -1)


def by_heads(x: Float[Array, "b n w"], heads: int, width: int, layout: Layout) -> Float[Array, "b n h e"]:
    """What `by_lanes` laid out."""
    return x.reshape(*x.shape[:2], -1, layout.width)[:, :, :heads, :width]


def row_of_tiles(x: jax.Array | np.ndarray, layout: Layout, value: float | int) -> Array:
    """Pad the last axis, which counts queries, to whole tiles."""
    short = layout.tiles * layout.block_q - x.shape[-1]
    return jnp.pad(jnp.asarray(x), [(0, 0)] * (x.ndim - 1) + [(0, short)], constant_values=value)


def layout_of(
    q: Array, k: Array, rotary: Rotary | None, masked: bool, options: AttentionOptions, backward: bool = False
) -> Layout:
    """Choose the sizes for q (b, q, h, e) and k (b, s, h or g, e)."""
    (_, queries, heads, e), (_, sources, groups, _) = q.shape, k.shape
    width = native_width(e)
    per = max(1, LANES // width)
    asked_q, asked_kv = options.block_q, options.block_kv
    if backward:
        asked_q, asked_kv = options.block_q_backward or asked_q, options.block_kv_backward or asked_kv
    block_q = tile_of(queries, asked_q)
    chunk, body = chunks_of(sources, asked_kv, most=2 if backward else 4)
    return Layout(
        per=per,
        width=width,
        repeats=heads // groups,
        block_q=block_q,
        tiles=-(-queries // block_q),
        chunk=chunk,
        body=body,
        queries=queries,
        sources=sources,
        masked=masked,
        rotary=rotary is not None,
        scale=e**-0.5,
        exact=q.dtype == jnp.float32 or interpreted(options),
    )
