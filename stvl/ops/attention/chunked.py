"""Online softmax over tiles in plain JAX: memory linear in the number of tokens, on any device.

Milakov and Gimelshein, arXiv 1805.02867; FlashAttention-2, arXiv 2307.08691.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from stvl.core.sharding import target_platform
from stvl.ops.attention.core import Visible
from stvl.ops.attention.masks import FAR
from stvl.ops.attention.options import AttentionOptions
from stvl.ops.rotary import Rotary

#: Stands for minus infinity where a difference of two may be taken.
LOW = -1e30

#: Queries and sources in a tile by platform. The scores of a tile should fit the cache of a CPU: over 785, 1,025 and
#: 3,137 tokens with 12 to 24 heads, forward and gradient take 217, 229 and 466 ms of CPU time with 256 x 256, and 366,
#: 331 and 523 ms with 1,024 x 1,024.
BLOCKS = {"cpu": (256, 256)}
OTHER_BLOCKS = (1024, 512)


class ChunkedCore(NamedTuple):
    """`Core` that walks over tiles of queries and, inside, over tiles of sources.

    Products are taken in the dtype of the inputs, sums in f32. Tiles that nobody sees are passed over. Tile sizes come
    from the options, else from the core, else from `BLOCKS`.
    """

    block_q: int | None = None
    block_kv: int | None = None
    fuses_rotary: bool = False

    def forward(
        self, q: Array, k: Array, v: Array, rotary: Rotary | None, visible: Visible, options: AttentionOptions
    ) -> tuple[Float[Array, "b q h e"], Float[Array, "b h q"]]:
        """See `Core`."""
        tiles = _tiles(self, q, k, visible, options)
        queries, keys, values = tiles.queries(q), tiles.sources(k), tiles.sources(v)

        def one(index: Array, tile: Float[Array, "b g r q e"]) -> tuple[Array, Array]:
            def visit(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                top, total, out = carry
                scores = tiles.scores(tile, keys[j], index, j)
                new = jnp.maximum(top, scores.max(axis=-1))
                weights = jnp.exp(scores - new[..., None])
                shrink = jnp.exp(top - new)
                part = _product("bgrqs,bgse->bgrqe", weights.astype(v.dtype), values[j])
                return new, total * shrink + weights.sum(axis=-1), out * shrink[..., None] + part

            start = (jnp.full(tile.shape[:-1], LOW), jnp.zeros(tile.shape[:-1]), jnp.zeros(tile.shape))
            top, total, out = jax.lax.fori_loop(*tiles.span(index), visit, start)
            # A blind row has met nothing, or only scores of LOW: its weights are not probabilities.
            blind = top <= LOW / 2
            safe = jnp.where(blind, 1.0, total)
            out = jnp.where(blind[..., None], 0.0, out / safe[..., None])
            return out.astype(q.dtype), jnp.where(blind, -jnp.inf, top + jnp.log(safe))

        out, lse = jax.lax.map(lambda pair: one(*pair), (jnp.arange(queries.shape[0]), queries))
        return tiles.whole_queries(out), tiles.whole_rows(lse)

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
        tiles = _tiles(self, q, k, visible, options)
        queries, keys, values, cts = tiles.queries(q), tiles.sources(k), tiles.sources(v), tiles.queries(ct)
        lses = tiles.rows(lse)
        drops = tiles.rows(jnp.einsum("bqhe,bqhe->bhq", out.astype(jnp.float32), ct.astype(jnp.float32)))
        scale = q.shape[-1] ** -0.5

        def one(carry: tuple[Array, Array], tile: Any) -> tuple[tuple[Array, Array], Array]:
            index, query, towards, row, drop = tile
            row = jnp.where(jnp.isfinite(row), row, FAR)  # exp(score - FAR) is 0: a blind row gives nothing

            def visit(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                dk, dv, dq = state
                weights = jnp.exp(tiles.scores(query, keys[j], index, j) - row[..., None])
                dv = dv.at[j].add(_product("bgrqs,bgrqe->bgse", weights.astype(ct.dtype), towards))
                slope = _product("bgrqe,bgse->bgrqs", towards, values[j])
                change = (weights * (slope - drop[..., None]) * scale).astype(q.dtype)
                dk = dk.at[j].add(_product("bgrqs,bgrqe->bgse", change, query))
                return dk, dv, dq + _product("bgrqs,bgse->bgrqe", change, keys[j])

            dk, dv, dq = jax.lax.fori_loop(*tiles.span(index), visit, (*carry, jnp.zeros(query.shape)))
            return (dk, dv), dq.astype(q.dtype)

        zeros = (jnp.zeros(keys.shape), jnp.zeros(values.shape))
        indices = jnp.arange(queries.shape[0])
        (dk, dv), dq = jax.lax.scan(one, zeros, (indices, queries, cts, lses, drops))
        return tiles.whole_queries(dq), tiles.whole_sources(dk, k.dtype), tiles.whole_sources(dv, v.dtype)


def _product(equation: str, left: Array, right: Array) -> Array:
    precision = "highest" if left.dtype == jnp.float32 else None
    return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=jnp.float32)


class _Tiles(NamedTuple):
    """Cuts tokens into tiles and puts them together again; knows which pairs of a tile are visible."""

    sizes: tuple[int, int, int, int]  # q, s, g, r
    blocks: tuple[int, int]
    first: Int[Array, "q"]
    last: Int[Array, "q"]
    at: Int[Array, "s"]
    q_ids: Int[Array, "b q"] | None
    s_ids: Int[Array, "b s"] | None
    masked: bool

    def queries(self, x: Float[Array, "b q h e"]) -> Float[Array, "m b g r c e"]:
        """Tiles of queries, the heads split into groups."""
        b, _, _, e = x.shape
        x = _padded(x, self.blocks[0], 1)
        x = x.reshape(b, -1, self.blocks[0], *self.sizes[2:], e)
        return x.transpose(1, 0, 3, 4, 2, 5)

    def sources(self, x: Float[Array, "b s g e"]) -> Float[Array, "m b g c e"]:
        """Tiles of sources."""
        b, _, g, e = x.shape
        return _padded(x, self.blocks[1], 1).reshape(b, -1, self.blocks[1], g, e).transpose(1, 0, 3, 2, 4)

    def rows(self, x: Float[Array, "b h q"]) -> Float[Array, "m b g r c"]:
        """Tiles of a number a query."""
        x = _padded(x, self.blocks[0], 2)
        return x.reshape(x.shape[0], *self.sizes[2:], -1, self.blocks[0]).transpose(3, 0, 1, 2, 4)

    def whole_queries(self, x: Float[Array, "m b g r c e"]) -> Float[Array, "b q h e"]:
        """What `queries` cut."""
        m, b, g, r, c, e = x.shape
        return x.transpose(1, 0, 4, 2, 3, 5).reshape(b, m * c, g * r, e)[:, : self.sizes[0]]

    def whole_sources(self, x: Float[Array, "m b g c e"], dtype: Any) -> Float[Array, "b s g e"]:
        """What `sources` cut."""
        m, b, g, c, e = x.shape
        return x.transpose(1, 0, 3, 2, 4).reshape(b, m * c, g, e)[:, : self.sizes[1]].astype(dtype)

    def whole_rows(self, x: Float[Array, "m b g r c"]) -> Float[Array, "b h q"]:
        """What `rows` cut."""
        m, b, g, r, c = x.shape
        return x.transpose(1, 2, 3, 0, 4).reshape(b, g * r, m * c)[..., : self.sizes[0]]

    def scores(self, query: Array, key: Array, i: Array, j: Array) -> Float[Array, "b g r q s"]:
        """Scaled scores of one pair of tiles, LOW where the query may not see the source."""
        scores = _product("bgrqe,bgse->bgrqs", query, key) * query.shape[-1] ** -0.5
        if not self.masked:
            return scores
        allowed = self._allowed(i, j)
        return jnp.where(allowed[:, None, None] if allowed.ndim == 3 else allowed, scores, LOW)

    def _allowed(self, i: Array, j: Array) -> Bool[Array, "*b q s"]:
        at = _part(self.at, j, self.blocks[1])
        first, last = (_part(x, i, self.blocks[0])[:, None] for x in (self.first, self.last))
        allowed = (at >= first) & (at <= last)
        if self.q_ids is not None and self.s_ids is not None:
            q_ids, s_ids = _part(self.q_ids, i, self.blocks[0]), _part(self.s_ids, j, self.blocks[1])
            allowed = allowed & (q_ids[:, :, None] == s_ids[:, None, :]) & (q_ids[:, :, None] >= 0)
        return allowed

    def span(self, i: Array) -> tuple[Array, Array]:
        """First tile of sources that tile i of the queries sees, and the one after the last."""
        first = _part(self.first, i, self.blocks[0]).min()
        last = _part(self.last, i, self.blocks[0]).max()
        tiles = self.at.reshape(-1, self.blocks[1])
        touched = (tiles.max(axis=1) >= first) & (tiles.min(axis=1) <= last)
        count = tiles.shape[0]
        index = jnp.arange(count)
        return jnp.where(touched, index, count).min(), jnp.where(touched, index + 1, 0).max()


def _part(x: Array, index: Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=x.ndim - 1)


def _padded(x: Array, block: int, axis: int, value: int = 0) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % block)
    return jnp.pad(x, widths, constant_values=value)


def _even(tokens: int, most: int) -> int:
    """Size of the fewest tiles of at most `most` tokens, so that 1,025 tokens are two tiles of 520 and not of 1,024."""
    tiles = -(-tokens // most)
    return min(-(-tokens // (8 * tiles)) * 8, most, tokens)


def _tiles(core: ChunkedCore, q: Array, k: Array, visible: Visible, options: AttentionOptions) -> _Tiles:
    (_, queries, heads, _), (_, sources, groups, _) = q.shape, k.shape
    usual_q, usual_kv = BLOCKS.get(target_platform(), OTHER_BLOCKS)
    block_q = _even(queries, options.block_q or core.block_q or usual_q)
    block_kv = _even(sources, options.block_kv or core.block_kv or usual_kv)
    first = jnp.zeros(queries, jnp.int32) if visible.first is None else jnp.asarray(visible.first)
    last = jnp.full(queries, FAR, jnp.int32) if visible.last is None else jnp.asarray(visible.last)
    at = jnp.arange(sources, dtype=jnp.int32) if visible.at is None else jnp.asarray(visible.at)
    padded = bool(sources % block_kv)
    ids = [None if x is None else x for x in (visible.q_ids, visible.s_ids)]
    return _Tiles(
        sizes=(queries, sources, groups, heads // groups),
        blocks=(block_q, block_kv),
        # Padding queries see what the last one sees; padding sources lie behind every last position.
        first=jnp.pad(first, (0, -queries % block_q), mode="edge"),
        last=jnp.pad(last, (0, -queries % block_q), mode="edge"),
        at=_padded(at, block_kv, 0, FAR + 1),
        q_ids=None if ids[0] is None else _padded(ids[0], block_q, 1, -1),
        s_ids=None if ids[1] is None else _padded(ids[1], block_kv, 1, -1),
        masked=padded or any(x is not None for x in (visible.first, visible.at, *ids)),
    )
