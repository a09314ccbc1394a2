"""Activation shardings by axis letter: a no-op on one device, a constraint where a mesh is in force."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from stvl.core.axes import logical

#: Logical axis name -> mesh axes that it may be split over, most wanted first.
Rules = Mapping[str, tuple[str, ...]]

_IN_FORCE: contextvars.ContextVar[tuple[Mesh, Rules] | None] = contextvars.ContextVar(
    "stvl_sharding", default=None
)


@contextlib.contextmanager
def activation_sharding(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Let `constrain` speak about `mesh` while a function is traced inside this context."""
    token = _IN_FORCE.set((mesh, rules))
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


def mesh_in_force() -> tuple[Mesh, Rules] | None:
    """The mesh and rules of the surrounding `activation_sharding`, or None."""
    return _IN_FORCE.get()


def target_platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: what the program being traced will run on.

    The mesh in force decides, since a program may be compiled ahead of time for devices that are not here.
    """
    found = _IN_FORCE.get()
    return jax.default_backend() if found is None else found[0].devices.flat[0].platform


def partition_spec(
    names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, rules: Rules
) -> PartitionSpec:
    """Mesh axes for an array with logical axes `names`; an axis is left whole where its size does not divide.

    A mesh axis is used once in an array: the first logical axis that wants it takes it.
    """
    used: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for name, size in zip(names, shape, strict=True):
        chosen: list[str] = []
        for axis in rules.get(name, ()) if name else ():
            parts = mesh.shape[axis]
            for earlier in chosen:
                parts *= mesh.shape[earlier]
            if axis not in used and mesh.shape[axis] > 1 and size % parts == 0:
                chosen.append(axis)
                used.add(axis)
        entries.append(tuple(chosen) or None)
    return PartitionSpec(*entries)


def constrain(x: Shaped[Array, "..."], letters: str) -> Shaped[Array, "..."]:
    """Ask XLA to lay out `x`, whose axes are `letters` of the axis alphabet, by the rules in force."""
    found = _IN_FORCE.get()
    if found is None:
        return x
    mesh, rules = found
    # Activations may be split unevenly (4 N + 1 tokens over a context axis): XLA pads them.
    names = logical(letters)
    spec = PartitionSpec(*(tuple(a for a in rules.get(n, ()) if mesh.shape[a] > 1) or None for n in names))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
