"""Segments of an interleaved sequence: text, images, videos, and tokens that stand outside of every grid."""

from __future__ import annotations

from stvl.core.config import config
from stvl.core.errors import ConfigError


def _positive(segment: object, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            kind = type(segment).__name__
            raise ConfigError(
                f"{kind}({name}={size}): a segment has at least one token; leave an empty one out"
            )


@config
class Text:
    """`length` text tokens.

    Raises:
        ConfigError: a length below one.
    """

    length: int

    def __post_init__(self) -> None:
        _positive(self, length=self.length)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.length


@config
class Prefix:
    """`length` class or register tokens: they stand at the origin, are not rotated and take no position.

    Raises:
        ConfigError: a length below one.
    """

    length: int = 1

    def __post_init__(self) -> None:
        _positive(self, length=self.length)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.length


@config
class Image:
    """``rows x columns`` tokens of one image, column fastest; the grid is the one that the attention sees (after merging).

    Raises:
        ConfigError: a side below one.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        _positive(self, rows=self.rows, columns=self.columns)

    @property
    def frames(self) -> int:
        """An image is a video of one frame."""
        return 1

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.rows * self.columns


@config
class Video:
    """``frames x rows x columns`` tokens of one video, time slowest, column fastest.

    Attributes:
        seconds_per_frame: time between two frames of tokens; read by schemes that count seconds.

    Raises:
        ConfigError: a side below one, or seconds that are not above 0.
    """

    frames: int
    rows: int
    columns: int
    seconds_per_frame: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, frames=self.frames, rows=self.rows, columns=self.columns)
        if not self.seconds_per_frame > 0:
            raise ConfigError(
                f"Video(seconds_per_frame={self.seconds_per_frame}): frames stand apart by more than 0 seconds"
            )

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.frames * self.rows * self.columns


Segment = Text | Prefix | Image | Video
