"""Where every parameter lies: its logical axes, the mesh axes that split it, its bytes, and why something stays whole."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from stvl.core.sharding import Rules
from stvl.dist.mesh import RULES
from stvl.train.experiment import Experiment
from stvl.train.state import abstract_inputs, build

#: A tensor above this many bytes that is whole on every device is worth a line.
BIG = 2**20


@dataclasses.dataclass(frozen=True)
class Placed:
    """One tensor of the state.

    Attributes:
        path: its place in the tree, apart by slashes.
        shape: of the whole tensor.
        dtype: of its elements.
        axes: logical axis names, as far as it has any.
        spec: for every axis the mesh axes that split it.
        bytes: on one device.
        whole: bytes of the whole tensor.
        reasons: for every axis that the rules could split and that is not split, why.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...]
    spec: tuple[tuple[str, ...], ...]
    bytes: int
    whole: int
    reasons: tuple[str, ...] = ()

    @property
    def replicated(self) -> bool:
        """Whether no axis is split."""
        return not any(self.spec)


def path_text(path: tuple[Any, ...]) -> str:
    """``video/stack/layers/mlp/up/kernel``."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def boxed_params(experiment: Experiment) -> Any:
    """Shapes of the parameters with the logical axes that they carry."""
    model, _ = build(experiment)
    return jax.eval_shape(model.init, jax.random.key(0), *abstract_inputs(experiment, 1))["params"]


def explained(boxed: Any, shardings: Any, rules: Rules = RULES) -> list[Placed]:
    """Every parameter of the boxed tree (shapes with logical axes) with the sharding that it gets, largest first."""
    found = []
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_boxed)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        value = leaf.value if _is_boxed(leaf) else leaf
        names = tuple(leaf.names) if _is_boxed(leaf) else ()
        found.append(placed(path_text(path), value, sharding, names, rules))
    return sorted(found, key=lambda one: (-one.bytes, one.path))


def _is_boxed(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def placed(
    path: str, value: Any, sharding: Any, names: tuple[str | None, ...] = (), rules: Rules = RULES
) -> Placed:
    """One tensor (anything with shape and dtype) under a NamedSharding."""
    sizes: Mapping[str, int] = sharding.mesh.shape
    entries = [*sharding.spec, *[None] * (len(value.shape) - len(sharding.spec))]
    spec = tuple(
        () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry) for entry in entries
    )
    whole = math.prod(value.shape) * value.dtype.itemsize
    local = math.prod(
        -(-size // math.prod(sizes[axis] for axis in axes))
        for size, axes in zip(value.shape, spec, strict=True)
    )
    reasons = _reasons(value.shape, names, spec, sizes, rules)
    return Placed(
        path,
        tuple(value.shape),
        str(value.dtype),
        names,
        spec,
        local * value.dtype.itemsize,
        whole,
        tuple(reasons),
    )


def _reasons(
    shape: tuple[int, ...],
    names: tuple[str | None, ...],
    spec: tuple[tuple[str, ...], ...],
    sizes: Mapping[str, int],
    rules: Rules,
) -> list[str]:
    wide = [axis for axis, size in sizes.items() if size > 1]
    used = {axis for axes in spec for axis in axes}
    if not names:
        return ["it carries no logical axes"]
    told = []
    for name, size, axes in zip(names, shape, spec, strict=True):
        wanted = [axis for axis in (rules.get(name, ()) if name else ()) if axis in wide]
        for axis in wanted:
            if axis in axes:
                continue
            if axis in used:
                told.append(f"{name}: {axis} already splits another axis")
            else:
                told.append(f"{name}: {axis} = {sizes[axis]} does not divide {size}")
    if not told and not used:
        named = ", ".join(name for name in names if name)
        told.append(f"no rule splits {named or 'its axes'} over a mesh axis that has more than one device")
    return told


def replicated_big(found: list[Placed], sizes: Mapping[str, int], limit: int = BIG) -> list[Placed]:
    """Tensors over `limit` bytes that are whole on every device, on a mesh with fsdp or tensor slices."""
    if sizes.get("fsdp", 1) * sizes.get("tensor", 1) == 1:
        return []
    return [one for one in found if one.replicated and one.whole > limit]


def tree_bytes(tree: Any, shardings: Any) -> int:
    """Bytes of one device's part of a tree of shapes."""
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in leaves)
