"""Rotary on TPU (Pallas, Mosaic): angles from coordinates inside the kernel, once for all heads of a token.

Heads lie side by side in the lanes, so that no lane is empty for heads narrower than 128. A pair's partner stands half
a head away: a lane roll and a select bring it, ``y = x cos + partner sin``, with the sign of the sine in the angle.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from stvl.ops.rotary.trig import sincos

LANES = 128
#: Tokens that are turned at once. On v5e, 16 heads of 64 take 10.5, 7.8, 6.1 cycles a token with 16, 32, 64 rows.
ROWS = 64
#: Bytes of a block of heads; input and output are both held twice.
BLOCK_BYTES = 2**20
#: Bytes of VMEM that the blocks may take: v5e grants a kernel 16 MiB.
VMEM_BYTES = 12 * 2**20


def vmem_bytes(shape: tuple[int, int, int, int], itemsize: int) -> int:
    """Bytes of the smallest blocks of heads (b, n, h, e)."""
    return 4 * ROWS * -(-shape[2] * shape[3] // LANES) * LANES * itemsize


def rotate_tpu(
    x: Float[Array, "b n h e"],
    coords: Float[Array, "*lead n a"],
    frequencies: Float[Array, "a p"],
    block_n: int | None = None,
    interpret: bool = False,
) -> Float[Array, "b n h e"]:
    """Turn heads as `rotate_reference` does; angles in f32 on the vector unit."""
    b, n, h, e = x.shape
    axes = coords.shape[-1]
    signed = jnp.concatenate([-frequencies, frequencies], axis=-1).astype(jnp.float32)
    # One column of angles for a lane of a chunk; narrow heads share a chunk.
    if LANES % e == 0:
        signed = jnp.tile(signed, (1, LANES // e))
    if block_n is None:
        block_n = BLOCK_BYTES // (h * e * x.dtype.itemsize)
    block_n = min(max(block_n // ROWS, 1), pl.cdiv(n, ROWS)) * ROWS
    if coords.ndim == 2:
        grid, at = (pl.cdiv(n, block_n), b), lambda i, j: (j, i, 0)
        coords_spec = pl.BlockSpec((block_n, axes), lambda i, j: (i, 0))
    else:
        grid, at = (b, pl.cdiv(n, block_n)), lambda i, j: (i, j, 0)
        coords_spec = pl.BlockSpec((None, block_n, axes), at)
    heads_spec = pl.BlockSpec((None, block_n, h * e), at)
    out = pl.pallas_call(
        functools.partial(_kernel, width=e),
        grid=grid,
        in_specs=[coords_spec, pl.BlockSpec(signed.shape, lambda i, j: (0, 0)), heads_spec],
        out_specs=heads_spec,
        out_shape=jax.ShapeDtypeStruct((b, n, h * e), x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="rotary_tpu",
    )(coords.astype(jnp.float32), signed, x.reshape(b, n, h * e))
    return out.reshape(x.shape)


def _kernel(coords_ref: Any, frequencies_ref: Any, x_ref: Any, out_ref: Any, *, width: int) -> None:
    rows, lanes = x_ref.shape
    chunk = frequencies_ref.shape[1]

    def visit(step: Array, _: None) -> None:
        at = pl.ds(pl.multiple_of(step * ROWS, ROWS), ROWS)
        coords, frequencies = coords_ref[at, :], frequencies_ref[:, :]
        angle = coords[:, 0:1] * frequencies[0:1, :]
        for axis in range(1, coords.shape[1]):
            angle = angle + coords[:, axis : axis + 1] * frequencies[axis : axis + 1, :]
        sine, cosine = sincos(angle)
        for start in range(0, lanes, chunk):
            part = min(chunk, lanes - start)
            x = x_ref[at, start : start + part].astype(jnp.float32)
            turned = x * cosine[:, :part] + _partner(x, width) * sine[:, :part]
            out_ref[at, start : start + part] = turned.astype(out_ref.dtype)

    jax.lax.fori_loop(0, rows // ROWS, lambda step, _: visit(step, None), None)


def _partner(x: Float[Array, "n l"], width: int) -> Float[Array, "n l"]:
    """Lane l takes the lane half a head away within its head."""
    lanes, half = x.shape[1], width // 2
    if lanes == LANES:
        after = pltpu.roll(x, LANES - half, 1)
        if width == LANES:
            return after
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        return jnp.where(lane % width < half, after, pltpu.roll(x, half, 1))
    halves = [x[:, start : start + half] for start in range(0, lanes, half)]
    return jnp.concatenate([halves[i ^ 1] for i in range(len(halves))], axis=1)
