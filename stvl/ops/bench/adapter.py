"""What the bench needs to know about an op, and the adapters by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from stvl.core.errors import ConfigError, nearest


class Blocks(NamedTuple):
    """Tile sizes (queries, sources) forward and backward; None leaves them to the backend."""

    forward: tuple[int, int] | None = None
    backward: tuple[int, int] | None = None

    def __str__(self) -> str:
        parts = [f"{pair[0]}x{pair[1]}" for pair in self if pair is not None]
        return ":".join(parts[:1] if self.forward == self.backward else parts)


class Work(NamedTuple):
    """What a call has to do at least.

    Attributes:
        flops: floating-point operations of its matrix products; 0 where it has none.
        bytes: bytes of its inputs and outputs.
    """

    flops: int
    bytes: int


@runtime_checkable
class Adapter(Protocol):
    """An op as the bench sees it. `shape` is one of its named shapes, `impl` the name of a backend."""

    @property
    def name(self) -> str:
        """Name of the op."""
        ...

    @property
    def inputs_differentiated(self) -> int:
        """How many of the inputs, from the first, gradients are taken of."""
        ...

    def shapes(self) -> Mapping[str, Any]:
        """Named shapes."""
        ...

    def default_shapes(self, platform: str) -> tuple[str, ...]:
        """Names of the shapes that are measured unless others are asked for."""
        ...

    def default_batch(self, platform: str) -> int | None:
        """Samples of the default shapes; None for their own."""
        ...

    def resized(self, shape: Any, batch: int) -> Any:
        """The shape with another number of samples."""
        ...

    def impls(self) -> Mapping[str, Any]:
        """Backends."""
        ...

    def default_impls(self, platform: str) -> tuple[str, ...]:
        """Names of the backends that are measured unless others are asked for: those that the rules name."""
        ...

    def tries(self, impl: str) -> tuple[Blocks, ...]:
        """Tile sizes to try with a backend unless others are asked for."""
        ...

    def inputs(self, shape: Any, dtype: jnp.dtype, seed: jax.Array) -> tuple[Any, ...]:
        """Random inputs; traceable."""
        ...

    def output(self, shape: Any, dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the answer."""
        ...

    def declines(self, shape: Any, impl: str, dtype: jnp.dtype, blocks: Blocks) -> str | None:
        """The reason of a backend not to serve the shape, or None."""
        ...

    def call(self, shape: Any, impl: str, blocks: Blocks) -> Callable[..., Any]:
        """The op as a function of the inputs."""
        ...

    def rows(self, shape: Any) -> Int[np.ndarray, " rows"] | None:
        """Indices along axis 1 of the output at which the reference is computed; None for all."""
        ...

    def reference(self, shape: Any, rows: Int[np.ndarray, " rows"] | None) -> Callable[..., Any]:
        """The op in f32, at `rows` of the output, as a function of the inputs."""
        ...

    def work(self, shape: Any, dtype: jnp.dtype, backward: bool) -> Work:
        """Operations and bytes of a forward pass, or of forward and gradients."""
        ...


def adapter(name: str) -> Adapter:
    """The adapter of an op.

    Raises:
        ConfigError: an unknown name, with the nearest one.
    """
    # Each op is imported when it is asked for: kernels of one that fail to import do not stop the others.
    if name == "attention":
        from stvl.ops.bench.of_attention import AttentionAdapter

        return AttentionAdapter()
    if name == "rotary":
        from stvl.ops.bench.of_rotary import RotaryAdapter

        return RotaryAdapter()
    if name == "pairwise":
        from stvl.ops.bench.of_pairwise import PairwiseAdapter

        return PairwiseAdapter()
    raise ConfigError(f"no bench for {name!r}{nearest(name, ('attention', 'rotary', 'pairwise'))}")


def read_blocks(text: str) -> Blocks:
    """Read ``512x1024``, or ``512x1024:1024x512`` for other sizes in the backward pass.

    Raises:
        ConfigError: another form.
    """
    match = re.fullmatch(r"(\d+)x(\d+)(?::(\d+)x(\d+))?", text.strip())
    if match is None or "0" in match.groups():
        raise ConfigError(
            f"block sizes read QUERIESxSOURCES[:QUERIESxSOURCES], e.g. 512x1024, found {text!r}"
        )
    first, second, third, fourth = match.groups()
    forward = (int(first), int(second))
    return Blocks(forward, forward if third is None else (int(third), int(fourth)))


def chosen(what: str, names: tuple[str, ...], known: Mapping[str, Any]) -> tuple[str, ...]:
    """The names, each checked.

    Raises:
        ConfigError: an unknown name, with the nearest one.
    """
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown {what} {name!r}{nearest(name, known)}")
    return names


def platform_impls(choices: Any, platform: str) -> tuple[str, ...]:
    """Backends that a table of choices names for a platform, in its order."""
    return tuple(dict.fromkeys(choice.impl for choice in choices if choice.platform == platform))


def interpreted(impl: str, platform: str, choices: Any) -> str | None:
    """The reason not to time a kernel of another platform, which at best runs step by step in Python here."""
    homes = {choice.platform for choice in choices if choice.impl == impl}
    if impl in ("cpu", "gpu", "tpu"):
        homes.add(impl)
    if not homes or platform in homes:
        return None
    where = " and ".join(sorted(homes))
    return f"a kernel for {where}; on {platform} it would be interpreted, and its time would mean nothing"
