"""Attention kernels over a mesh: every device runs the kernel on its samples and its heads.

XLA splits its own operations over a mesh, but not a Pallas call: it would gather the whole q, k and v on every device.
Attention couples neither samples nor heads, so a kernel may run on each device's part without any transfer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from stvl.core.axes import AXES
from stvl.core.sharding import Rules, mesh_in_force, partition_spec
from stvl.ops.attention.backends import Case
from stvl.ops.attention.masks import Mask
from stvl.ops.attention.options import AttentionOptions
from stvl.ops.rotary import Rotary

#: ``run(q, k, v, rotary, mask, options)`` of a backend.
Run = Callable[..., Array]


class Split(NamedTuple):
    """How an attention lies on a mesh.

    Attributes:
        batch: mesh axes that split the samples.
        heads: mesh axes that split the heads.
        copies: how often each key head is repeated so that the key heads can be split like the query heads.
    """

    batch: tuple[str, ...]
    heads: tuple[str, ...]
    copies: int

    def over_heads(self, x: Array) -> Array:
        """Keys or values (b, s, g, e) with every head repeated `copies` times."""
        return x if self.copies == 1 else jnp.repeat(x, self.copies, axis=2)


def split(
    q: tuple[int, ...], k: tuple[int, ...], mesh: Mesh, rules: Rules, without: Collection[str] = ()
) -> Split:
    """Mesh axes for samples and heads of queries (b, q, h, e) and keys (b, s, g, e) by the rules.

    Samples or heads that an axis does not divide stay whole over it, and its devices do the same work twice. Axes in
    `without` are not used.
    """
    kept = {name: tuple(axis for axis in axes if axis not in without) for name, axes in rules.items()}
    spec = partition_spec((AXES["b"], None, AXES["h"], None), q, mesh, kept)
    batch, heads = _axes(spec[0]), _axes(spec[2])
    # Query heads are a multiple of the key heads and of the parts, so also of their least common multiple.
    parts = math.prod(mesh.shape[axis] for axis in heads)
    return Split(batch, heads, math.lcm(k[2], parts) // k[2])


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def local_case(case: Case, axis: str | None = None) -> Case:
    """One device's part of a case under its mesh; with `axis` also the tokens are split, over that mesh axis."""
    if case.mesh is None:
        return case
    mesh, rules = case.mesh
    place = split(case.q.shape, case.k.shape, mesh, rules, without=() if axis is None else (axis,))
    samples, heads = (math.prod(mesh.shape[name] for name in names) for names in (place.batch, place.heads))
    ring = 1 if axis is None else mesh.shape[axis]

    def part(x: jax.ShapeDtypeStruct, copies: int) -> jax.ShapeDtypeStruct:
        b, n, h, e = x.shape
        return jax.ShapeDtypeStruct((b // samples, -(-n // ring), h * copies // heads, e), x.dtype)

    return case._replace(q=part(case.q, 1), k=part(case.k, place.copies), mesh=None)


def inside_shard_map() -> tuple[str, ...]:
    """Mesh axes over which the function being traced already runs once a device."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def over_mesh(run: Run) -> Run:
    """Wrap a kernel in `jax.shard_map` over the mesh in force; without one, or inside a shard_map, it runs as it is.

    Tokens stay whole, so over a mesh axis that splits tokens each device does the same work; the ring backend is the
    one that splits them.
    """

    def wrapped(
        q: Array, k: Array, v: Array, rotary: Rotary | None, mask: Mask | None, options: AttentionOptions
    ) -> Array:
        found = mesh_in_force()
        if found is None or found[0].size == 1 or inside_shard_map():
            return run(q, k, v, rotary, mask, options)
        mesh, rules = found
        place = split(q.shape, k.shape, mesh, rules)
        k, v = place.over_heads(k), place.over_heads(v)
        # Axes of one device are named as well: the gradient is summed over axes that a spec does not name.
        samples = (*place.batch, *(axis for axis, size in mesh.shape.items() if size == 1)) or None
        by_head = PartitionSpec(samples, None, place.heads or None)
        turns = [] if rotary is None else [jnp.asarray(part) for part in rotary]
        leaves, tree = jax.tree.flatten(mask)
        moved = [number for number, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]

        def local(q: Array, k: Array, v: Array, turns: list[Array], arrays: list[Array]) -> Array:
            whole = list(leaves)
            for number, array in zip(moved, arrays, strict=True):
                whole[number] = array
            turn = Rotary(*turns) if turns else None
            return run(q, k, v, turn, jax.tree.unflatten(tree, whole), options)

        def by_sample(x: Array) -> PartitionSpec:
            each = x.ndim > 0 and x.shape[0] == q.shape[0]
            return PartitionSpec(samples) if each else PartitionSpec()

        arrays = [jnp.asarray(leaves[number]) for number in moved]
        turn_specs = [by_sample(x) if x.ndim == 3 else PartitionSpec() for x in turns]
        specs = (by_head, by_head, by_head, turn_specs, [by_sample(x) for x in arrays])
        # Pallas calls do not say over which axes their results vary, so that check is off.
        mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=by_head, check_vma=False)
        return mapped(q, k, v, turns, arrays)

    return wrapped
