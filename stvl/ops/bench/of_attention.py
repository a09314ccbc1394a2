"""The attention op as the bench sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from stvl.core.sharding import target_platform
from stvl.ops.attention import BACKENDS, AttentionOptions, attention
from stvl.ops.attention.backends import Case
from stvl.ops.attention.core import limits
from stvl.ops.attention.masks import Mask, parts
from stvl.ops.attention.rules import CHOICES
from stvl.ops.attention.shapes import SHAPES, AttentionShape
from stvl.ops.bench.adapter import Blocks, Work, interpreted, platform_impls
from stvl.ops.rotary import Rotary
from stvl.ops.rotary.reference import rotate_reference

#: Bytes of f32 scores that the reference may hold; of a longer attention it computes some rows.
REFERENCE_BYTES = 64 * 2**20

#: Products of a forward pass, and of forward and backward: q k, p v; then q k again, do v, p do, ds k, ds q.
PRODUCTS = (2, 7)

#: Tile sizes from which the best is taken where splash attention is compared with.
SPLASH_BLOCKS = tuple(
    Blocks(pair, pair) for pair in ((512, 512), (512, 1024), (1024, 1024), (1024, 512), (2048, 512))
)


@dataclasses.dataclass(frozen=True)
class _Rows(Mask):
    """Some rows of another mask, as an array."""

    allowed: Any

    def as_array(self, queries: int, sources: int) -> Bool[np.ndarray, "q s"]:
        """The rows."""
        return self.allowed


@dataclasses.dataclass(frozen=True)
class AttentionAdapter:
    """See `Adapter`."""

    name: str = "attention"
    inputs_differentiated: int = 3

    def shapes(self) -> Mapping[str, AttentionShape]:
        """The shapes of real models."""
        return SHAPES

    def default_shapes(self, platform: str) -> tuple[str, ...]:
        """A few seconds of a CPU; all that fit one accelerator."""
        if platform == "cpu":
            return ("text-77", "b16-4f")
        return tuple(name for name in SHAPES if not name.startswith("ring"))

    def default_batch(self, platform: str) -> int | None:
        """Few on a CPU."""
        return 4 if platform == "cpu" else None

    def resized(self, shape: AttentionShape, batch: int) -> AttentionShape:
        """The shape with another number of samples."""
        return dataclasses.replace(shape, b=batch)

    def impls(self) -> Mapping[str, Any]:
        """The registry of backends."""
        return BACKENDS

    def default_impls(self, platform: str) -> tuple[str, ...]:
        """Those of the rules."""
        return platform_impls(CHOICES, platform)

    def tries(self, impl: str) -> tuple[Blocks, ...]:
        """Several for splash attention, which leaves the choice to its caller; ours choose by themselves."""
        return SPLASH_BLOCKS if impl == "splash" else (Blocks(),)

    def inputs(self, shape: AttentionShape, dtype: jnp.dtype, seed: Array) -> tuple[Any, ...]:
        """Normal q, k and v; with a rotation, whole-numbered coordinates and one ladder of frequencies for all axes."""
        keys = jax.random.split(jax.random.key(seed), 4)
        sizes = ((shape.q, shape.h), (shape.s, shape.g), (shape.s, shape.g))
        arrays = [
            jax.random.normal(key, (shape.b, tokens, heads, shape.e), dtype)
            for key, (tokens, heads) in zip(keys, sizes, strict=False)
        ]
        return (
            (*arrays, rotary_inputs(keys[3], shape.q, shape.axes, shape.e)) if shape.axes else tuple(arrays)
        )

    def output(self, shape: AttentionShape, dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
        """Like the queries."""
        return jax.ShapeDtypeStruct((shape.b, shape.q, shape.h, shape.e), dtype)

    def declines(self, shape: AttentionShape, impl: str, dtype: jnp.dtype, blocks: Blocks) -> str | None:
        """The backend's own reason, or that it is no backend of this platform."""
        q = jax.ShapeDtypeStruct((shape.b, shape.q, shape.h, shape.e), dtype)
        k = jax.ShapeDtypeStruct((shape.b, shape.s, shape.g, shape.e), dtype)
        platform = target_platform()
        case = Case(q, k, bool(shape.axes), shape.mask, options(blocks), platform)
        return interpreted(impl, platform, CHOICES) or BACKENDS[impl].declines(case)

    def call(self, shape: AttentionShape, impl: str, blocks: Blocks) -> Callable[..., Array]:
        """Attention by `impl`."""

        def run(q: Array, k: Array, v: Array, rotary: Rotary | None = None) -> Array:
            return attention(q, k, v, rotary=rotary, mask=shape.mask, options=options(blocks), impl=impl)

        return run

    def rows(self, shape: AttentionShape) -> Int[np.ndarray, " rows"] | None:
        """As many queries as the reference can hold: the first, the last, and others over the whole length."""
        count = REFERENCE_BYTES // (4 * shape.b * shape.h * shape.s)
        if count >= shape.q:
            return None
        return np.unique(np.linspace(0, shape.q - 1, max(4, count)).round().astype(np.int64))

    def reference(self, shape: AttentionShape, rows: Int[np.ndarray, " rows"] | None) -> Callable[..., Array]:
        """The reference backend in f32; a rotation is applied first, so that some rows can be taken."""
        index = np.arange(shape.q) if rows is None else rows
        first, last = limits(parts(shape.mask)[0], index[:, None])
        at = np.arange(shape.s)
        allowed = np.broadcast_to((at >= first) & (at <= last), (len(index), shape.s))

        def run(q: Array, k: Array, v: Array, rotary: Rotary | None = None) -> Array:
            if rotary is not None:
                q, k = rotate_reference(q, *rotary), rotate_reference(k, *rotary)
            return BACKENDS["reference"].run(q[:, index], k, v, None, _Rows(allowed), AttentionOptions())

        return run

    def work(self, shape: AttentionShape, dtype: jnp.dtype, backward: bool) -> Work:
        """Two products forward and five backward, over the pairs that the mask lets meet."""
        bands, ids = parts(shape.mask)
        if ids:
            raise ValueError("the pairs of a mask by ids depend on data; named shapes have masks of bands")
        first, last = limits(bands, np.arange(shape.q, dtype=np.int64))
        pairs = int(np.maximum(np.minimum(last, shape.s - 1) - np.maximum(first, 0) + 1, 0).sum())
        flops = 2 * PRODUCTS[backward] * shape.b * shape.h * pairs * shape.e
        tensors = 2 * shape.q * shape.h + 2 * shape.s * shape.g
        return Work(flops, (2 if backward else 1) * tensors * shape.b * shape.e * dtype.itemsize)


def options(blocks: Blocks) -> AttentionOptions:
    """Tile sizes as options."""
    forward, backward = blocks.forward or (None, None), blocks.backward or (None, None)
    return AttentionOptions(
        block_q=forward[0], block_kv=forward[1], block_q_backward=backward[0], block_kv_backward=backward[1]
    )


def rotary_inputs(key: Array, tokens: int, axes: int, width: int) -> Rotary:
    """Coordinates 0 .. 31 on each axis, and frequencies ``10000 ** (-2 k / width)`` for every axis."""
    coords = jax.random.randint(key, (tokens, axes), 0, 32).astype(jnp.float32)
    ladder = 10000.0 ** (-2 * jnp.arange(width // 2, dtype=jnp.float32) / width)
    return Rotary(coords, jnp.broadcast_to(ladder, (axes, width // 2)))
