"""Rotary schemes of video language models: one ladder for text, images and videos in one sequence.

In all of them a text token has one index on every axis, so that text alone is read as by `Rope1D`, and the weights of
a language model stay meaningful.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float

from stvl.core.config import config
from stvl.core.errors import ConfigError
from stvl.rope.base import Placed, Sequenced
from stvl.rope.coords import grid
from stvl.rope.frequencies import assign, check_sections, pairs_of
from stvl.rope.scaling import Scaling, Unscaled
from stvl.rope.segments import Image, Text, Video


@config
class MRope(Sequenced):
    """M-RoPE of Qwen2-VL: one ladder ``w[k] = base ** (-2k / e)`` cut into contiguous sections for t, y and x.

    The first section is time, so time has the highest frequencies. Sections count pairs and add up to ``e / 2``
    (16, 24, 24 at head width 128). An image or video starts at the next index on all axes; what follows starts at its
    largest index plus 1.

    Sources: arXiv 2409.12191, Section 2.1 and Figure 3, for the indices; the public implementation for the single
    ladder. Releases 5.3 and later of transformers go on behind a video at ``max(rows, columns)``, which lets text
    overlap videos of more frames than that; paper, Qwen's release and older transformers take the largest index of all
    three axes, and so does this one.

    Attributes:
        tokens_per_second: indices per second of video, as Qwen2.5-VL (arXiv 2502.13923, Section 2.1.2):
            frame f stands at ``floor(f * seconds_per_frame * tokens_per_second)``. None: at f.
    """

    axes: ClassVar[tuple[str, ...]] = ("t", "y", "x")

    sections: tuple[int, int, int] = (16, 24, 24)
    base: float = 1000000.0
    tokens_per_second: float | None = None
    scaling: Scaling = Unscaled()

    def __post_init__(self) -> None:
        if self.tokens_per_second is not None and self.tokens_per_second <= 0:
            raise ConfigError(f"MRope(tokens_per_second={self.tokens_per_second}): expected a number above 0")

    def frequencies(self, head_width: int) -> Float[np.ndarray, "a p"]:
        """The ladder, each pair in the row of its section's axis."""
        check_sections(self.sections, head_width, "MRope")
        row = self.scaling.ladder(head_width // 2, self.base)
        return assign(row, np.repeat(np.arange(3), self.sections).tolist(), 3)

    def place(self, segment: Text | Image | Video, start: float) -> Placed:
        """Indices of a grid: those of its frames, rows and columns, moved by `start`."""
        if isinstance(segment, Text):
            return self.place_text(segment, start)
        coords = grid(segment.frames, segment.rows, segment.columns)
        if isinstance(segment, Video) and self.tokens_per_second is not None:
            # f32, and in this order of products: the reference truncates f32 products.
            step = np.float32(self.tokens_per_second) * np.float32(segment.seconds_per_frame)
            coords[:, 0] = np.floor(coords[:, 0].astype(np.float32) * step)
        return start + coords, start + float(coords.max()) + 1


@config
class VRope(Sequenced):
    """VRoPE: four symmetric indices that run from the corners of a frame; pair k reads index ``k mod 4`` of one ladder.

    Token (f, y, x) of a video of H rows and W columns that starts at index s stands, with ``b = s + f (H + W - 1)``, at

        ``b + x + y,  b + x + (H-1-y),  b + (W-1-x) + (H-1-y),  b + (W-1-x) + y``

    The four add up to the same sum at every place of a frame, so no place is favoured, and the frame's centre lies on
    the line of text. Frames follow each other without overlap; text goes on at ``s + T (H + W - 1)``.

    Source: arXiv 2502.11664, Section 4, Eq. 6-9. The release takes the four in another order, which moves pairs between
    the two off-diagonal corners: ``corners = (0, 3, 1, 2)``. No pair is kept for time alone, in the paper as in the
    release.

    Attributes:
        corners: pair k reads the index ``corners[k mod 4]`` of the four above.
    """

    axes: ClassVar[tuple[str, ...]] = ("top left", "bottom left", "bottom right", "top right")

    base: float = 10000.0
    corners: tuple[int, int, int, int] = (0, 1, 2, 3)
    scaling: Scaling = Unscaled()

    def __post_init__(self) -> None:
        if sorted(self.corners) != [0, 1, 2, 3]:
            raise ConfigError(f"VRope: corners are an order of (0, 1, 2, 3), found {self.corners}")

    def frequencies(self, head_width: int) -> Float[np.ndarray, "a p"]:
        """The ladder dealt out over the four rows."""
        pairs = pairs_of(head_width, "VRope")
        row = self.scaling.ladder(pairs, self.base)
        return assign(row, [self.corners[pair % 4] for pair in range(pairs)], 4)

    def place(self, segment: Text | Image | Video, start: float) -> Placed:
        """Four indices a token."""
        if isinstance(segment, Text):
            return self.place_text(segment, start)
        t, y, x = grid(segment.frames, segment.rows, segment.columns).T
        up, left, step = segment.rows - 1 - y, segment.columns - 1 - x, segment.rows + segment.columns - 1
        corners = np.stack([x + y, x + up, left + up, left + y], axis=-1)
        return start + t[:, None] * step + corners, start + segment.frames * step


@config
class VideoRope(Sequenced):
    """VideoRoPE: time on the lowest frequencies, a diagonal layout, and an adjustable step of time.

    Low-frequency temporal allocation: of one ladder ``w[k] = base ** (-2k / e)`` the last pairs turn with t; on the
    others y and x alternate. Diagonal layout and spacing: token (f, y, x) of a video that starts at index s stands at
    ``t = s + spacing * f``, ``t + y - (H-1)//2``, ``t + x - (W-1)//2``, so the centre of a frame has three equal
    indices. Text goes on at the last t plus 1.

    Source: arXiv 2502.05173, Section 4, and the release, which differ. Taken from the release: alternation begins with
    y (Eq. 6: with x); centres are ``(H-1)//2`` (Eq. 7: ``H/2``, which for an odd H is no patch and contradicts the
    text's central patch at (t, t, t)); text follows at the last t plus 1 (Eq. 7: plus `spacing`, which breaks the
    symmetry of Eq. 5 unless spacing is 1). ``as_printed`` takes Eq. 6 and 7 to the letter. Indices of y and x near the
    end of a video may reach those of the text behind it, in both.

    Attributes:
        sections: pairs of (t, y, x); y and x alternate and so have equally many.
        spacing: indices from frame to frame (2 in the paper).
    """

    axes: ClassVar[tuple[str, ...]] = ("t", "y", "x")

    sections: tuple[int, int, int] = (16, 24, 24)
    base: float = 1000000.0
    spacing: float = 2.0
    as_printed: bool = False
    scaling: Scaling = Unscaled()

    def __post_init__(self) -> None:
        if self.sections[1] != self.sections[2]:
            raise ConfigError(
                f"VideoRope: y and x alternate and need equally many pairs, found sections {self.sections}"
            )
        if self.spacing <= 0:
            raise ConfigError(f"VideoRope(spacing={self.spacing}): expected a number above 0")

    def frequencies(self, head_width: int) -> Float[np.ndarray, "a p"]:
        """The ladder, y and x in turn and then t."""
        check_sections(self.sections, head_width, "VideoRope")
        row = self.scaling.ladder(head_width // 2, self.base)
        turn = [2, 1] if self.as_printed else [1, 2]
        return assign(row, turn * self.sections[1] + [0] * self.sections[0], 3)

    def place(self, segment: Text | Image | Video, start: float) -> Placed:
        """Indices around the diagonal."""
        if isinstance(segment, Text):
            return self.place_text(segment, start)
        sides = np.array([segment.rows, segment.columns])
        centre, after = (sides / 2, self.spacing) if self.as_printed else ((sides - 1) // 2, 1.0)
        places = grid(segment.frames, segment.rows, segment.columns)
        t = start + self.spacing * places[:, :1]
        return np.concatenate([t, t + places[:, 1:] - centre], axis=1), float(t[-1, 0]) + after
