"""The rotary op as the bench sees it: the query heads of the attention shapes that are turned."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from stvl.core.sharding import target_platform
from stvl.ops.attention.shapes import SHAPES, AttentionShape
from stvl.ops.bench.adapter import Blocks, Work, interpreted, platform_impls
from stvl.ops.bench.of_attention import rotary_inputs
from stvl.ops.rotary import BACKENDS, Rotary, RotaryOptions, rotate
from stvl.ops.rotary.backends import CHOICES, case_of
from stvl.ops.rotary.reference import rotate_reference


@dataclasses.dataclass(frozen=True)
class RotaryAdapter:
    """See `Adapter`."""

    name: str = "rotary"
    inputs_differentiated: int = 1

    def shapes(self) -> Mapping[str, AttentionShape]:
        """The attention shapes with a rotation; of each, the query heads are turned."""
        return {name: shape for name, shape in SHAPES.items() if shape.axes}

    def default_shapes(self, platform: str) -> tuple[str, ...]:
        """One on a CPU, all on an accelerator."""
        return ("b16-4f",) if platform == "cpu" else tuple(self.shapes())

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
        """Those of the table of choices."""
        return platform_impls(CHOICES, platform)

    def tries(self, impl: str) -> tuple[Blocks, ...]:
        """The backend's own."""
        return (Blocks(),)

    def inputs(self, shape: AttentionShape, dtype: jnp.dtype, seed: Array) -> tuple[Array, Rotary]:
        """Normal heads, whole-numbered coordinates, one ladder of frequencies."""
        one, two = jax.random.split(jax.random.key(seed))
        x = jax.random.normal(one, (shape.b, shape.q, shape.h, shape.e), dtype)
        return x, rotary_inputs(two, shape.q, shape.axes, shape.e)

    def output(self, shape: AttentionShape, dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
        """Like the queries."""
        return jax.ShapeDtypeStruct((shape.b, shape.q, shape.h, shape.e), dtype)

    def declines(self, shape: AttentionShape, impl: str, dtype: jnp.dtype, blocks: Blocks) -> str | None:
        """The backend's own reason, or that it is no backend of this platform."""
        x = jax.ShapeDtypeStruct((shape.b, shape.q, shape.h, shape.e), dtype)
        case: Any = case_of(x, shape.axes, _options(blocks))  # type: ignore[arg-type]
        return interpreted(impl, target_platform(), CHOICES) or BACKENDS[impl].declines(case)

    def call(self, shape: AttentionShape, impl: str, blocks: Blocks) -> Callable[..., Array]:
        """The rotation by `impl`."""
        return lambda x, rotary: rotate(x, rotary, options=_options(blocks), impl=impl)

    def rows(self, shape: AttentionShape) -> Int[np.ndarray, " rows"] | None:
        """All: the reference holds as much as the op."""
        return None

    def reference(self, shape: AttentionShape, rows: Int[np.ndarray, " rows"] | None) -> Callable[..., Array]:
        """The formula in f32."""
        return lambda x, rotary: rotate_reference(x, *rotary)

    def work(self, shape: AttentionShape, dtype: jnp.dtype, backward: bool) -> Work:
        """Heads are read and written once each way."""
        size = shape.b * shape.q * shape.h * shape.e * dtype.itemsize
        return Work(0, (4 if backward else 2) * size)


def _options(blocks: Blocks) -> RotaryOptions:
    return RotaryOptions(block_n=None if blocks.forward is None else blocks.forward[0])
