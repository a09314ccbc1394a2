"""Rotary on GPU (Pallas, Triton): angles from coordinates inside the kernel, once for all heads of a token."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from stvl.ops.rotary.trig import sincos

#: Elements of the tile of angles that one program holds.
TILE = 1024


def rotate_gpu(
    x: Float[Array, "b n h e"],
    coords: Float[Array, "*lead n a"],
    frequencies: Float[Array, "a p"],
    block_n: int | None = None,
    interpret: bool = False,
) -> Float[Array, "b n h e"]:
    """Turn heads as `rotate_reference` does; angles in f32."""
    b, n, _, e = x.shape
    pairs = pl.next_power_of_2(e // 2)
    block_n = pl.next_power_of_2(block_n or max(TILE // pairs, 1))
    block_n = min(block_n, pl.next_power_of_2(n))
    return pl.pallas_call(
        functools.partial(_kernel, block_n=block_n, pairs=pairs),
        grid=(pl.cdiv(n, block_n), b),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="rotary_gpu",
    )(coords.astype(jnp.float32), frequencies.astype(jnp.float32), x)


def _kernel(
    coords_ref: Any, frequencies_ref: Any, x_ref: Any, out_ref: Any, *, block_n: int, pairs: int
) -> None:
    _, n, heads, width = x_ref.shape
    half, sample = width // 2, pl.program_id(1)
    # Tiles are powers of two; what lies behind the tokens and the pairs is masked.
    token = pl.program_id(0) * block_n + jnp.arange(block_n)
    pair = jnp.arange(pairs)
    inside = (token < n)[:, None] & (pair < half)[None, :]
    angle = jnp.zeros((block_n, pairs), jnp.float32)
    for axis in range(frequencies_ref.shape[0]):
        where = (
            coords_ref.at[token, axis] if len(coords_ref.shape) == 2 else coords_ref.at[sample, token, axis]
        )
        at = plgpu.load(where, mask=token < n, other=0.0)
        per_unit = plgpu.load(frequencies_ref.at[axis, pair], mask=pair < half, other=0.0)
        angle = angle + at[:, None] * per_unit[None, :]
    sine, cosine = sincos(angle)

    def visit(head: Array, _: None) -> None:
        rows, columns = token[:, None], pair[None, :]
        first_at, second_at = (
            ref_part for ref_part in ((sample, rows, head, columns), (sample, rows, head, columns + half))
        )
        first, second = (
            plgpu.load(x_ref.at[at], mask=inside, other=0.0).astype(jnp.float32)
            for at in (first_at, second_at)
        )
        for at, turned in (
            (first_at, first * cosine - second * sine),
            (second_at, second * cosine + first * sine),
        ):
            plgpu.store(out_ref.at[at], turned.astype(out_ref.dtype), mask=inside)

    jax.lax.fori_loop(0, heads, visit, None)
