"""The pairwise op as the bench sees it: InfoNCE both ways over named batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stvl.ops.bench.adapter import Blocks, Work
from stvl.ops.pairwise.api import BACKENDS
from stvl.ops.pairwise.bench import infonce
from stvl.ops.pairwise.options import PairwiseOptions
from stvl.ops.pairwise.shapes import SHAPES, PairwiseShape

#: Inverse temperature of the logits.
SCALE = 20.0

#: Rows that the reference takes at a time.
BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class PairwiseAdapter:
    """See `Adapter`. Blocks give the rows of a chunk by their first number."""

    name: str = "pairwise"
    inputs_differentiated: int = 3

    def shapes(self) -> Mapping[str, PairwiseShape]:
        """Batches of real recipes."""
        return SHAPES

    def default_shapes(self, platform: str) -> tuple[str, ...]:
        """Up to 4,096 pairs a side on a CPU."""
        return ("pretrain-b", "pod-4k") if platform == "cpu" else ("pretrain-b", "pod-4k", "pod-16k")

    def default_batch(self, platform: str) -> int | None:
        """The shape says it."""
        return None

    def resized(self, shape: PairwiseShape, batch: int) -> PairwiseShape:
        """The shape with another number of rows."""
        columns = batch if shape.columns == shape.rows else shape.columns
        return dataclasses.replace(shape, rows=batch, columns=columns)

    def impls(self) -> Mapping[str, Any]:
        """The registry of backends."""
        return BACKENDS

    def default_impls(self, platform: str) -> tuple[str, ...]:
        """All: each decides by itself whether it can serve."""
        return tuple(BACKENDS)

    def tries(self, impl: str) -> tuple[Blocks, ...]:
        """The backend's own."""
        return (Blocks(),)

    def inputs(
        self, shape: PairwiseShape, dtype: jnp.dtype, seed: Array
    ) -> tuple[Float[Array, "q o"], Float[Array, "s o"], Float[Array, ""]]:
        """Unit features of clips and texts, and the scale of the logits."""
        one, two = jax.random.split(jax.random.key(seed))
        x = jax.random.normal(one, (shape.rows, shape.width))
        y = jax.random.normal(two, (shape.columns, shape.width))
        x, y = (a / jnp.linalg.norm(a, axis=-1, keepdims=True) for a in (x, y))
        return x.astype(dtype), y.astype(dtype), jnp.float32(SCALE)

    def output(self, shape: PairwiseShape, dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
        """The loss."""
        return jax.ShapeDtypeStruct((), jnp.float32)

    def declines(self, shape: PairwiseShape, impl: str, dtype: jnp.dtype, blocks: Blocks) -> str | None:
        """The backend's own reason."""
        return BACKENDS[impl].declines(_options(blocks))

    def call(self, shape: PairwiseShape, impl: str, blocks: Blocks) -> Callable[..., Float[Array, ""]]:
        """InfoNCE by `impl`."""
        return lambda x, y, scale: infonce(x, y, scale, {}, {}, options=_options(blocks), impl=impl)

    def rows(self, shape: PairwiseShape) -> Int[np.ndarray, " rows"] | None:
        """All: the answer is one number."""
        return None

    def reference(
        self, shape: PairwiseShape, rows: Int[np.ndarray, " rows"] | None
    ) -> Callable[..., Float[Array, ""]]:
        """``mean_i lse_j s_ij + mean_j lse_i s_ij - 2 mean_i s_ii`` in f32, a block of rows at a time."""
        block = next(size for size in range(min(BLOCK, shape.rows), 0, -1) if shape.rows % size == 0)
        size = min(shape.rows, shape.columns)

        def run(x: Array, y: Array, scale: Array) -> Array:
            @jax.checkpoint
            def add(columns: Array, part: Array) -> tuple[Array, Array]:
                logits = scale * jnp.matmul(part, y.T, precision="highest")
                return jnp.logaddexp(columns, jax.nn.logsumexp(logits, axis=0)), jax.nn.logsumexp(
                    logits, axis=1
                )

            start = jnp.full(shape.columns, -jnp.inf)
            columns, rows = jax.lax.scan(add, start, x.reshape(-1, block, shape.width))
            own = scale * (x[:size] * y[:size]).sum(axis=-1).mean()
            return rows.mean() + columns.mean() - 2 * own

        return run

    def work(self, shape: PairwiseShape, dtype: jnp.dtype, backward: bool) -> Work:
        """One product forward, three with gradients; what a backend computes twice counts once."""
        features = (shape.rows + shape.columns) * shape.width * dtype.itemsize
        return Work((3 if backward else 1) * 2 * shape.pairs * shape.width, (2 if backward else 1) * features)


def _options(blocks: Blocks) -> PairwiseOptions:
    return PairwiseOptions(chunk=None if blocks.forward is None else blocks.forward[0])
