"""Shardings of parameters from the logical axes that they carry."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding

from stvl.core.sharding import Rules, partition_spec
from stvl.dist.mesh import RULES, replicated


def param_shardings(boxed: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Shardings for the tree that ``nn.unbox(boxed)`` gives; `boxed` holds shapes with logical axes from `init`."""

    def one(leaf: Any) -> NamedSharding:
        if isinstance(leaf, nn.LogicallyPartitioned):
            spec = partition_spec(tuple(leaf.names), leaf.value.shape, mesh, rules)
            return NamedSharding(mesh, spec)
        return replicated(mesh)

    return jax.tree.map(one, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


def like_params(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings for a tree that holds copies of `params` (optimizer moments, averages): copies like the parameters.

    A leaf counts as a copy where its path ends in the path of a parameter and the shapes agree; the rest is replicated.
    """
    known = {path: (leaf.shape, sharding) for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True)}

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            found = known.get(path[start:])
            if found is not None and found[0] == leaf.shape:
                return found[1]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, tree)
