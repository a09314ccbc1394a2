"""Ring attention: tokens are split over the devices of one mesh axis, and keys and values travel around it.

With P devices each holds N/P queries, keys and values. One half of its keys and values goes to the next device, the
other half to the one before, so both directions of every link are in use; after P steps each query has met all of them.
A step sends first and computes then, so the transfer runs beside the attention of the pair of shards at hand. Partial
results are joined with a running maximum and denominator: with ``lse_i`` the log-sum-exp of part i,

    out = sum_i exp(lse_i - lse) out_i,    lse = log sum_i exp(lse_i).

Backward is a second ring in which keys and values travel with their gradients; every pair of shards gets its
probabilities from the joint ``lse``. P steps are sent where P - 1 would do, so that one loop body serves all steps.

Under a causal mask the later tokens have more to do. In the zig-zag order device i holds the chunks i and 2P - 1 - i of
2P, and at every step all devices have the same work. To bring q, k and v into this order and the output back, each
token is sent once: the cost of about two steps of the ring, and as much again backward. A caller whose tokens are in
this order already (`zigzag_order`) saves it with ``ring_ordered``.

Sources: Liu, Zaharia and Abbeel, arXiv 2310.01889; balance after Brandon et al., arXiv 2311.09431, in the form with one
early and one late chunk a device (Llama 3, arXiv 2407.21783, Section 3.3.2).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from stvl.core.errors import NotSupported, nearest
from stvl.core.sharding import Rules, mesh_in_force
from stvl.ops.attention.backends import Backend, Case
from stvl.ops.attention.chunked import ChunkedCore
from stvl.ops.attention.core import Core, declines_mask
from stvl.ops.attention.masks import Band, Full, Mask, merged_ids, parts
from stvl.ops.attention.options import AttentionOptions
from stvl.ops.attention.ring_plan import Plan, busiest, check_ordered, zigzag_order
from stvl.ops.attention.rules import CHOICES
from stvl.ops.attention.sharded import Split, inside_shard_map, local_case, split
from stvl.ops.rotary import Rotary, rotate

__all__ = ["ring_attention", "ring_backend", "zigzag_order"]

#: How much more the busiest device may have to do in the plain order than in the zig-zag order before the latter pays.
UNEVEN = 1.2


def ring_attention(
    q: Float[Array, "b q h e"],
    k: Float[Array, "b s g e"],
    v: Float[Array, "b s g e"],
    *,
    mesh: Mesh,
    rotary: Rotary | None = None,
    mask: Mask | None = None,
    local: Core | None = None,
    options: AttentionOptions | None = None,
) -> Float[Array, "b q h e"]:
    """``attention(q, k, v)`` with the tokens split over the mesh axis ``options.ring_axis``.

    Samples and heads are split as the rules in force for this mesh say; without rules they are whole on each device of
    the ring. Any length is served: tokens are padded inside. The result is in the order of `q`.

    Args:
        q: queries; `h` heads.
        k: keys; `g` heads with ``h % g == 0``.
        v: values, shaped like `k`.
        mesh: the devices.
        rotary: turns q and k before the ring, each device its own.
        mask: who may see whom, default everybody.
        local: the attention of one pair of shards, default `ChunkedCore`.
        options: axis, order and tile sizes.

    Raises:
        ValueError: lengths that do not fit ``ring_ordered``.
        NotSupported: an axis that the mesh lacks or that has one device, a mask that is not made of bands and ids, or a
            call from inside a shard_map.
    """
    options = AttentionOptions() if options is None else options
    queries, (bands, by_id) = q.shape[1], parts(mask)
    core: Any = ChunkedCore() if local is None else local
    plan, copies = _plan(q, k, mesh, bands, core, options)
    if not (q.size and k.size):
        return jnp.zeros_like(q)
    ids = merged_ids(by_id, queries, k.shape[1]) or (None, None)
    q_ids, s_ids = (x if x is None else jnp.broadcast_to(x, (q.shape[0], x.shape[-1])) for x in ids)
    q, k, v = (_padded(x, plan.block, 1) for x in (q, k, v))
    q_ids, s_ids = (x if x is None else _padded(x, plan.block, 1, -1) for x in (q_ids, s_ids))
    if rotary is not None:
        rotary = Rotary(_padded(rotary.coords, plan.block, rotary.coords.ndim - 2), rotary.frequencies)
        q, k = rotate(q, rotary), rotate(k, rotary)
    k, v = copies.over_heads(k), copies.over_heads(v)
    moves = plan.zigzag and not options.ring_ordered
    if moves:
        q, k, v, q_ids, s_ids = (x if x is None else _moved(plan, True, x) for x in (q, k, v, q_ids, s_ids))
    out: Any = _ring(plan, q, k, v, (q_ids, s_ids))
    if moves:
        out = _moved(plan, False, out)
    return out[:, :queries]


def _plan(
    q: Array, k: Array, mesh: Mesh, bands: tuple[Band, ...], core: Core, options: AttentionOptions
) -> tuple[Plan, Split]:
    reason = _no_ring(mesh, options.ring_axis)
    if reason is not None:
        raise NotSupported(reason)
    found = mesh_in_force()
    rules: Rules = found[1] if found is not None and found[0] == mesh else {}
    place = split(q.shape, k.shape, mesh, rules, without=(options.ring_axis,))
    queries, sources, devices = q.shape[1], k.shape[1], mesh.shape[options.ring_axis]
    zigzag = _choose_order(bands, queries, sources, devices, options)
    plan = Plan(core, mesh, place.batch, place.heads, bands, options, zigzag, sources)
    return plan, place


def ring_backend(backends: Mapping[str, Backend]) -> Backend:
    """The ring over the mesh in force, around the core of one of `backends` (which may be completed later)."""

    def run(
        q: Array, k: Array, v: Array, rotary: Rotary | None, mask: Mask | None, options: AttentionOptions
    ) -> Array:
        found = mesh_in_force()
        if found is None:
            raise NotSupported(_NO_MESH)
        q_shape, k_shape = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k))
        platform = found[0].devices.flat[0].platform
        case = Case(q_shape, k_shape, False, Full() if mask is None else mask, options, platform, found)
        core = backends[_local(case, backends)].core
        return ring_attention(q, k, v, mesh=found[0], rotary=rotary, mask=mask, local=core, options=options)

    def declines(case: Case) -> str | None:
        if case.mesh is None:
            return _NO_MESH
        reason = _no_ring(case.mesh[0], case.options.ring_axis) or declines_mask(case)
        if reason is not None:
            return reason
        name = case.options.ring_local
        if name is None:
            return None
        if name not in backends:
            raise ValueError(
                f"unknown local backend {name!r} of the ring{nearest(name, _with_core(backends))}"
            )
        if backends[name].core is None:
            return f"backend {name!r} cannot work on a part of the sources{nearest('', _with_core(backends))}"
        reason = backends[name].declines(local_case(case, case.options.ring_axis))
        return None if reason is None else f"its local backend {name!r}: {reason}"

    return Backend(run, declines)


_NO_MESH = "no mesh is in force: trace inside stvl.core.sharding.activation_sharding(mesh, rules)"


def _with_core(backends: Mapping[str, Backend]) -> list[str]:
    return [name for name, backend in backends.items() if backend.core is not None]


def _local(case: Case, backends: Mapping[str, Backend]) -> str:
    """The backend that works on one device: the one named, or the first with a core that the rules take."""
    if case.options.ring_local is not None:
        return case.options.ring_local
    part = local_case(case, case.options.ring_axis)._replace(rotary=False)
    for choice in CHOICES:
        backend = backends.get(choice.impl)
        if choice.platform == case.platform and backend is not None and backend.core is not None:
            if choice.passes_over(part) is None and backend.declines(part) is None:
                return choice.impl
    return "chunked"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(plan: Plan, q: Array, k: Array, v: Array, ids: tuple[Any, Any]) -> Array:
    return _forward(plan, q, k, v, ids)[0]


@functools.partial(jax.jit, static_argnums=0)
def _forward(plan: Plan, q: Array, k: Array, v: Array, ids: tuple[Any, Any]) -> tuple[Array, Array]:
    def local(q: Array, k: Array, v: Array, ids: tuple[Any, Any]) -> tuple[Array, Array]:
        sizes = (q.shape[1], k.shape[1])

        def step(carry: Any, number: Array) -> tuple[Any, None]:
            held, total = carry
            # What comes next is asked for before the present is used, so that it travels in the meantime.
            coming = plan.send(held)

            def one(_: None, half: Any) -> tuple[None, tuple[Array, Array]]:
                way, (pair, s_ids) = half
                seen = plan.visible(number, way, (ids[0], s_ids), sizes)
                return None, plan.core.forward(q, pair[0], pair[1], None, seen, plan.options)

            _, found = jax.lax.scan(one, None, (jnp.arange(2), held))
            return (coming, _joined(total, found)), None

        b, n, h, _ = q.shape
        nothing = jnp.zeros(q.shape, jnp.float32), jnp.full((b, h, n), -jnp.inf)
        start = _travellers(plan, k, v, ids[1])
        (_, (out, lse)), _ = jax.lax.scan(step, (start, nothing), jnp.arange(plan.devices))
        return out.astype(q.dtype), lse

    heads, by_id, lse = plan.specs
    return plan.mapped(local, (heads, heads, heads, by_id), (heads, lse))(q, k, v, ids)


@functools.partial(jax.jit, static_argnums=0)
def _backward(plan: Plan, saved: Any, ct: Array) -> tuple[Array, Array, Array]:
    def local(saved: Any, ct: Array) -> tuple[Array, Array, Array]:
        q, k, v, ids, out, lse = saved
        sizes = (q.shape[1], k.shape[1])

        def step(carry: Any, number: Array) -> tuple[Any, None]:
            held, behind, dq = carry
            # The gradients follow one step behind what they belong to. Those that arrive are added after the products,
            # so that both transfers run beside them.
            coming, arrived = plan.send(held), plan.send(behind)

            def one(dq: Array, half: Any) -> tuple[Array, Array]:
                way, (pair, s_ids) = half
                seen = plan.visible(number, way, (ids[0], s_ids), sizes)
                saved = out, lse
                more, *own = plan.core.backward(q, pair[0], pair[1], None, seen, plan.options, saved, ct)
                return dq + more.astype(jnp.float32), jnp.stack(own)

            dq, found = jax.lax.scan(one, dq, (jnp.arange(2), held))
            return (coming, arrived + found.astype(jnp.float32), dq), None

        start = _travellers(plan, k, v, ids[1])
        carry = (start, jnp.zeros(start[0].shape, jnp.float32), jnp.zeros(q.shape, jnp.float32))
        (_, behind, dq), _ = jax.lax.scan(step, carry, jnp.arange(plan.devices))
        dk, dv = (plan.whole(x) for x in plan.send(behind).swapaxes(0, 1))
        return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)

    heads, by_id, lse = plan.specs
    in_specs = ((heads, heads, heads, by_id, heads, lse), heads)
    return plan.mapped(local, in_specs, (heads, heads, heads))(saved, ct)


def _ring_forward(plan: Plan, q: Array, k: Array, v: Array, ids: tuple[Any, Any]) -> tuple[Array, Any]:
    out, lse = _forward(plan, q, k, v, ids)
    return out, (q, k, v, ids, out, lse)


def _ring_backward(plan: Plan, saved: Any, ct: Array) -> tuple[Any, ...]:
    return (*_backward(plan, saved, ct), None)


_ring.defvjp(_ring_forward, _ring_backward)


def _travellers(plan: Plan, k: Array, v: Array, s_ids: Array | None) -> tuple[Array, Array | None]:
    """Both halves of keys and values, (2 halves, k and v, b, s/2, g, e), and of the ids, (2 halves, b, s/2).

    Keys and values travel as one array: XLA for TPUs keeps about four transfers under way, and backward has gradients
    to send as well.
    """
    return jnp.stack([plan.halves(k), plan.halves(v)], axis=1), None if s_ids is None else plan.halves(s_ids)


def _joined(
    total: tuple[Float[Array, "b q h e"], Float[Array, "b h q"]],
    found: tuple[Float[Array, "w b q h e"], Float[Array, "w b h q"]],
) -> tuple[Float[Array, "b q h e"], Float[Array, "b h q"]]:
    """Output and log-sum-exp over the sources of `total` and of both halves of `found`, in f32."""
    outs, lses = found[0].astype(jnp.float32), jnp.concatenate([total[1][None], found[1]])
    top = lses.max(axis=0)
    top = jnp.where(jnp.isfinite(top), top, 0.0)  # a row that is blind so far
    weights = jnp.exp(lses - top)
    mass = weights.sum(axis=0)
    safe = jnp.where(mass > 0, mass, 1.0)
    shares = (weights / safe).swapaxes(2, 3)[..., None]
    out = shares[0] * total[0] + shares[1] * outs[0] + shares[2] * outs[1]
    return out, jnp.where(mass > 0, top + jnp.log(safe), -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
@functools.partial(jax.jit, static_argnums=(0, 1))
def _moved(plan: Plan, into: bool, x: Array) -> Array:
    """Tokens (axis 1) brought into the zig-zag order, or back out of it; each token is sent once.

    In plain order device j holds the chunks 2j and 2j + 1. No two devices send their even chunks to one place, nor
    their odd ones; what a device gets of the even chunks is its early chunk when its own number is even.
    """
    size = plan.devices
    homes = [[c if c < size else 2 * size - 1 - c for c in range(parity, 2 * size, 2)] for parity in range(2)]

    def local(x: Array) -> Array:
        first, second = jnp.split(x, 2, axis=1)
        is_even = jax.lax.axis_index(plan.axis) % 2 == 0
        if into:
            even, odd = (
                jax.lax.ppermute(part, plan.axis, list(enumerate(home)))
                for part, home in zip((first, second), homes, strict=True)
            )
            return jnp.concatenate([jnp.where(is_even, even, odd), jnp.where(is_even, odd, even)], axis=1)
        even, odd = jnp.where(is_even, first, second), jnp.where(is_even, second, first)
        back = [
            jax.lax.ppermute(part, plan.axis, [(there, here) for here, there in enumerate(home)])
            for part, home in zip((even, odd), homes, strict=True)
        ]
        return jnp.concatenate(back, axis=1)

    spec = plan.specs[0 if x.ndim == 4 else 1]
    return plan.mapped(local, (spec,), spec)(x)


# A permutation's transpose is its inverse.
_moved.defvjp(
    lambda plan, into, x: (_moved(plan, into, x), None),
    lambda plan, into, _, ct: (_moved(plan, not into, ct),),
)


def _padded(x: Array, block: int, axis: int, value: int = 0) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % block)
    return jnp.pad(x, widths, constant_values=value) if widths[axis][1] else x


def _choose_order(
    bands: tuple[Band, ...], queries: int, sources: int, devices: int, options: AttentionOptions
) -> bool:
    if options.ring_ordered:
        if options.ring_zigzag is False:
            raise ValueError(
                "ring_ordered tokens are in zig-zag order: ring_zigzag must be True or None, found False"
            )
        check_ordered(queries, devices)
        check_ordered(sources, devices)
        return True
    if options.ring_zigzag is not None:
        return options.ring_zigzag
    plain, zigzag = busiest(bands, queries, sources, devices)
    return plain > UNEVEN * zigzag


def _no_ring(mesh: Mesh, axis: str) -> str | None:
    if axis not in mesh.shape:
        return f"the mesh has no axis {axis!r}{nearest(axis, mesh.shape)}: set ring_axis to the one that splits the tokens"
    if mesh.shape[axis] == 1:
        return f"the mesh axis {axis!r} has one device: give it more, or use another backend"
    inside = inside_shard_map()
    if inside:
        return f"this is inside a shard_map over {inside} already: call the ring outside of it"
    return None
