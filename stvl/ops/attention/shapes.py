"""Named shapes of real models, shared by tests, benchmarks and the choice of backends."""

from __future__ import annotations

import dataclasses

from stvl.core.errors import nearest
from stvl.ops.attention.masks import Causal, Full, Mask


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """One attention as a model asks for it.

    Attributes:
        b: samples.
        q: queries.
        s: sources.
        h: query heads.
        g: key heads.
        e: head width.
        axes: coordinate axes of the rotation, 0 for none.
        mask: who may see whom.
        source: where the shape comes from.
    """

    b: int
    q: int
    s: int
    h: int
    g: int
    e: int
    axes: int = 0
    mask: Mask = dataclasses.field(default_factory=Full)
    source: str = ""

    def smaller(self, tokens: int, heads: int, samples: int = 1) -> AttentionShape:
        """The same kind of case with at most this many tokens, heads and samples, for tests; odd stays odd."""
        groups = max(1, heads * self.g // self.h)
        q, s = (min(n, tokens + n % 2) for n in (self.q, self.s))
        return dataclasses.replace(self, b=min(self.b, samples), q=q, s=s, h=heads, g=groups)

    def flops(self) -> int:
        """Floating-point operations of the two products of a forward pass, as if nothing were masked."""
        return 4 * self.b * self.h * self.q * self.s * self.e


def _joint(tokens: int, heads: int, samples: int, source: str) -> AttentionShape:
    return AttentionShape(samples, tokens, tokens, heads, heads, 64, 3, source=source)


SHAPES: dict[str, AttentionShape] = {
    "b16-4f": _joint(785, 12, 16, "EVA02-AT-B/16, 4 frames of 224 px: 4 x 196 + 1"),
    "b16-16f": _joint(3137, 12, 4, "EVA02-AT-B/16, 16 frames of 224 px: 16 x 196 + 1"),
    "l14-4f": _joint(1025, 16, 8, "EVA02-AT-L/14, 4 frames of 224 px: 4 x 256 + 1"),
    "l14-16f": _joint(4097, 16, 4, "EVA02-AT-L/14, 16 frames of 224 px: 16 x 256 + 1"),
    "l14-16f-nocls": _joint(4096, 16, 4, "the same without a class token"),
    "l14-336-16f": _joint(9217, 16, 1, "EVA02-AT-L/14, 16 frames of 336 px: 16 x 576 + 1"),
    "text-77": AttentionShape(64, 77, 77, 8, 8, 64, mask=Causal(), source="CLIP text tower"),
    "space-only": _joint(197, 12, 64, "divided attention over space: 196 + 1 tokens, a sample a frame"),
    "time-only": AttentionShape(3136, 16, 16, 12, 12, 64, 1, source="divided attention over time: 16 frames"),
    "window-8x7x7": AttentionShape(256, 392, 392, 6, 6, 32, source="Video Swin: windows of 8 x 7 x 7"),
    "grouped-8k": AttentionShape(
        1, 8192, 8192, 28, 4, 128, 3, Causal(), "Qwen2-VL-7B language model: M-RoPE, GQA"
    ),
    "ring-64k": AttentionShape(1, 65536, 65536, 16, 16, 64, 3, source="hour-long video over a ring"),
}


def shape(name: str) -> AttentionShape:
    """Look a named shape up.

    Raises:
        ValueError: an unknown name, with the nearest one.
    """
    if name not in SHAPES:
        raise ValueError(f"unknown attention shape {name!r}{nearest(name, SHAPES)}")
    return SHAPES[name]
