"""Options of the pairwise op that change its speed and memory, never its meaning."""

from __future__ import annotations

from stvl.core.config import config
from stvl.core.errors import ConfigError


@config
class PairwiseOptions:
    """Sizes of the tiled backends; None lets the op choose.

    Attributes:
        chunk: rows of a tile. The chunked and ring backends hold a few arrays of `chunk` x columns at a time.
        ring_axes: mesh axes over which the ring finds the batch split; None: those of the ``batch`` rule in force.
    """

    chunk: int | None = None
    ring_axes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise ConfigError(f"a tile has at least one row, found chunk = {self.chunk}")
        if self.ring_axes is not None and len(set(self.ring_axes)) != len(self.ring_axes):
            raise ConfigError(f"a ring goes over each mesh axis once, found ring_axes = {self.ring_axes}")
