"""What a rotary scheme answers, and the sequence rule that schemes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from stvl.core.errors import ConfigError
from stvl.rope.coords import with_prefix
from stvl.rope.segments import Image, Prefix, Segment, Text, Video

Placed = tuple[Float[np.ndarray, "n a"], float]


@runtime_checkable
class RopeScheme(Protocol):
    """What a scheme answers; arrays are numpy and static, so that they fold into the compiled program."""

    def frequencies(self, head_width: int) -> Float[np.ndarray, "a p"]:
        """Matrix F with ``angles = coords @ F``, in radians; ``p = head_width / 2``."""
        ...

    def coords(self, frames: int, rows: int, columns: int, prefix: int = 1) -> Float[np.ndarray, "n a"]:
        """Coordinates of `prefix` unrotated tokens and then of the grid's tokens."""
        ...


@runtime_checkable
class SequenceScheme(RopeScheme, Protocol):
    """A scheme that also places interleaved sequences; all schemes of this room do."""

    #: Names of the axes of coords.
    axes: ClassVar[tuple[str, ...]]

    def sequence(self, segments: Sequence[Segment]) -> Float[np.ndarray, "n a"]:
        """Coordinates of all tokens of a sequence."""
        ...

    def next_position(self, segments: Sequence[Segment]) -> float:
        """Where the text token behind the sequence stands, on every axis."""
        ...


class Sequenced:
    """The sequence rule of RoPE-Tie and M-RoPE, which schemes without a published rule take as well.

    Text tokens have one index on all axes and step by 1. The grid of an image or video is moved so that its origin
    is the next index. What follows starts at the largest coordinate of the grid, over all axes, plus 1. `Prefix`
    tokens stand at 0 and take no index. A scheme overrides `coords`, or `place` if it has a rule of its own.

    Source: Qwen2-VL, arXiv 2409.12191, Section 2.1.
    """

    axes: ClassVar[tuple[str, ...]] = ()

    def coords(self, frames: int, rows: int, columns: int, prefix: int = 1) -> Float[np.ndarray, "n a"]:
        """Coordinates of `prefix` unrotated tokens and then of the grid's tokens, as a video at index 0."""
        return with_prefix(self.place(Video(frames=frames, rows=rows, columns=columns), 0.0)[0], prefix)

    def sequence(self, segments: Sequence[Segment]) -> Float[np.ndarray, "n a"]:
        """Coordinates of all tokens of a sequence, one row a token.

        Raises:
            ConfigError: a sequence without segments.
        """
        return self._lay(segments)[0]

    def next_position(self, segments: Sequence[Segment]) -> float:
        """Where the text token behind the sequence stands, on every axis: generation goes on here.

        Qwen2-VL's ``rope_delta`` is this minus the number of tokens.
        """
        return self._lay(segments)[1]

    def place(self, segment: Text | Image | Video, start: float) -> Placed:
        """Coordinates of one segment whose first index is `start`, and the first index behind it."""
        if isinstance(segment, Text):
            return self.place_text(segment, start)
        coords = start + self.coords(segment.frames, segment.rows, segment.columns, 0)
        return coords, float(coords.max()) + 1

    def place_text(self, segment: Text, start: float) -> Placed:
        """``start, start + 1, ...`` on every axis."""
        index = start + np.arange(segment.length, dtype=np.float64)
        return np.repeat(index[:, None], len(self.axes), axis=1), start + segment.length

    def _lay(self, segments: Sequence[Segment]) -> Placed:
        if not segments:
            raise ConfigError(
                "a sequence has at least one segment, found none: pass Text(length=...) or Video(...)"
            )
        parts, start = [], 0.0
        for segment in segments:
            if isinstance(segment, Prefix):
                parts.append(np.zeros((segment.length, len(self.axes))))
            else:
                part, start = self.place(segment, start)
                parts.append(part)
        return np.concatenate(parts), start
