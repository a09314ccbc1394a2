"""The backends of the attention op by name, and what each needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jax import ShapeDtypeStruct
from jax.sharding import Mesh
from jaxtyping import Array

from stvl.core.sharding import Rules
from stvl.ops.attention.masks import Mask
from stvl.ops.attention.options import AttentionOptions


class Case(NamedTuple):
    """What a backend is asked to serve.

    Attributes:
        q: shape (b, q, h, e) and dtype of the queries.
        k: shape (b, s, g, e) and dtype of keys and values.
        rotary: whether q and k are turned.
        mask: who may see whom.
        options: tile sizes and switches.
        platform: ``cpu``, ``gpu`` or ``tpu``: where the program will run, which is not always where it is traced.
        mesh: the mesh in force and its rules; `q` and `k` are the whole arrays, not one device's part.
    """

    q: ShapeDtypeStruct
    k: ShapeDtypeStruct
    rotary: bool
    mask: Mask
    options: AttentionOptions
    platform: str
    mesh: tuple[Mesh, Rules] | None = None


@dataclasses.dataclass(frozen=True)
class Backend:
    """One way to compute attention.

    Attributes:
        run: ``run(q, k, v, rotary, mask, options)``, on arguments that the api has checked.
        declines: the reason why a case cannot be served, or None.
        kernel: whether XLA cannot split it over a mesh by itself, so that the api wraps it in shard_map.
        core: the `Core` that `run` is built on, for the ring; None where there is none.
    """

    run: Callable[..., Array]
    declines: Callable[[Case], str | None] = lambda case: None
    kernel: bool = False
    core: Any = None
