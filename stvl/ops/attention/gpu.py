"""The attention core for GPUs: FlashAttention-2 with rotary inside, in Pallas with the Triton lowering.

Why Triton: it is the one lowering of Pallas for GPUs that takes the same kernel in jax 0.10 and 0.11, runs it step by
step on a CPU and lowers it for CUDA on a machine without one. jax 0.11 deprecates it in favour of Mosaic GPU, so it is
imported only when a kernel is built, and a jax without it makes this backend decline.

How heads are turned. The angles' sines and cosines are small f32 tables (n, e/2), computed once by XLA: taken in the
kernel they would cost about 60 instructions each, for every tile again. The tile that a program keeps (queries in the
forward pass) is turned as it is loaded, and its gradient is turned back as it is stored; both cost nothing that shows.
The tiles that a program walks over would be turned again by every program: where many programs load them they are
turned once ahead, which moves each key twice through memory (3 % of the time of 4,097 tokens at 500 TFLOP/s) and
leaves the inner loop and its copies to shared memory as they are without rotary.

FlashAttention-2, arXiv 2307.08691; RoFormer, arXiv 2104.09864, section 3.4.2 for the rotation.
"""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.core.sharding import target_platform
from stvl.ops.attention.backends import Case
from stvl.ops.attention.core import Visible, declines_mask
from stvl.ops.attention.gpu_tiles import LEAST, WIDEST, Tiles, choose, needed, power_of_two
from stvl.ops.attention.options import AttentionOptions
from stvl.ops.rotary import Rotary

DTYPES = ("float32", "bfloat16", "float16")


class GpuCore(NamedTuple):
    """`Core` of Pallas kernels that are lowered through Triton.

    Attributes:
        loads: programs that load a tile of the inner loop, above which it is turned once ahead instead.
        fuses_rotary: True.
    """

    loads: int = 2
    fuses_rotary: bool = True

    def forward(
        self, q: Array, k: Array, v: Array, rotary: Rotary | None, visible: Visible, options: AttentionOptions
    ) -> tuple[Float[Array, "b q h e"], Float[Array, "b h q"]]:
        """See `Core`."""
        rows = (q.shape[0], q.shape[2], q.shape[1])
        if 0 in q.shape or 0 in k.shape:
            return jnp.zeros_like(q), jnp.full(rows, -jnp.inf)
        from stvl.ops.attention.gpu_kernels import run
        from stvl.ops.attention.gpu_loads import Inputs

        tiles = _tiles("forward", q, k, options)
        plan, x = _prepared(
            self, q, k, v, rotary, visible, options, (False, _loads(q, tiles.block_q) > self.loads)
        )
        results = Inputs(
            ct=jax.ShapeDtypeStruct(q.shape, q.dtype), row=jax.ShapeDtypeStruct(rows, jnp.float32)
        )
        found = run("forward", x, results, plan, tiles)
        return found.ct, found.row

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
        if 0 in q.shape or 0 in k.shape:
            return jnp.zeros_like(q), jnp.zeros_like(k), jnp.zeros_like(v)
        from stvl.ops.attention.gpu_kernels import run
        from stvl.ops.attention.gpu_loads import LOG2_E, NEVER, Inputs

        out, lse = saved
        by_query, by_source = (_tiles(kernel, q, k, options) for kernel in ("queries", "sources"))
        ahead = (_loads(k, by_source.block_kv) > self.loads, _loads(q, by_query.block_q) > self.loads)
        plan, x = _prepared(self, q, k, v, rotary, visible, options, ahead)
        x = x._replace(
            ct=ct.astype(v.dtype),
            row=jnp.where(jnp.isfinite(lse), lse * LOG2_E, NEVER),
            drop=(out.astype(jnp.float32) * ct.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2),
        )
        shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (q, k, v)]
        dq = run("queries", x, Inputs(q=shapes[0]), plan, by_query).q
        found = run("sources", x, Inputs(k=shapes[1], v=shapes[2]), plan, by_source)
        return dq, found.k, found.v


def _tiles(kernel: str, q: Array, k: Array, options: AttentionOptions) -> Tiles:
    return choose(kernel, (q.shape[1], k.shape[1]), q.shape[3], q.dtype.itemsize, options)


def _loads(other: Array, block: int) -> int:
    return -(-other.shape[1] // block)


def _prepared(
    core: GpuCore,
    q: Array,
    k: Array,
    v: Array,
    rotary: Rotary | None,
    visible: Visible,
    options: AttentionOptions,
    ahead: tuple[bool, bool],
) -> tuple[Any, Any]:
    """Plan and inputs of a kernel; `ahead` says whether q and k are turned before it starts."""
    from stvl.ops.attention.gpu_loads import Inputs, Plan

    turns_q, turns_k = (rotary is not None and not first for first in ahead)
    interpret = options.interpret
    plan = Plan(
        queries=q.shape[1],
        sources=k.shape[1],
        heads=q.shape[2],
        groups=k.shape[2],
        width=q.shape[3],
        turns_q=turns_q,
        turns_k=turns_k,
        turned=rotary is not None,
        interpret=target_platform() != "gpu" if interpret is None else interpret,
    )
    x = Inputs(q=q, k=k, v=v, **needed(visible, k.shape[1])._asdict())
    if rotary is None:
        return plan, x
    cos, sin = _tables(rotary)
    if ahead[0]:
        x = x._replace(q=_turned(q, cos, sin, plan.half))
    if ahead[1]:
        x = x._replace(k=_turned(k, cos, sin, plan.half))
    return plan, x._replace(cos=cos, sin=sin)


def _tables(rotary: Rotary) -> tuple[Float[Array, "*lead n p"], Float[Array, "*lead n p"]]:
    """Cosines and sines of the angles."""
    coords, frequencies = (jnp.asarray(part, jnp.float32) for part in rotary)
    angles = jnp.matmul(coords, frequencies, precision="highest")
    return jnp.cos(angles), jnp.sin(angles)


def _turned(x: Array, cos: Array, sin: Array, half: int) -> Float[Array, "b n h w"]:
    """Turned heads, each half padded to `half` columns, rounded to the dtype of `x`."""
    cos, sin = cos[..., None, :], sin[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    both = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-2).astype(x.dtype)
    both = jnp.pad(both, [(0, 0)] * 4 + [(0, half - first.shape[-1])])
    return both.reshape(*x.shape[:-1], 2 * half)


def declines(case: Case) -> str | None:
    """The reason why the GPU kernels cannot serve a case, or None."""
    reason = declines_mask(case)
    if reason is not None:
        return reason
    options, width = case.options, case.q.shape[3]
    if case.q.dtype.name not in DTYPES or case.k.dtype != case.q.dtype:
        return f"it takes one of {', '.join(DTYPES)} for all, found {case.q.dtype} and {case.k.dtype}"
    if width > WIDEST:
        return f"tiles of heads {width} wide do not fit into shared memory, {WIDEST} is the widest"
    for name in ("block_q", "block_kv", "block_q_backward", "block_kv_backward"):
        size = getattr(options, name)
        if size is not None and (size < LEAST or size != power_of_two(size)):
            return f"tiles have a power of two of rows, {LEAST} or more, found {name}={size}"
    if importlib.util.find_spec("jax.experimental.pallas.triton") is None:
        return f"jax {jax.__version__} has no Triton lowering of Pallas"
    if case.platform != "gpu" and options.interpret is False:
        return f"it runs on a GPU, here is a {case.platform}; interpret=None would run it step by step"
    return None
