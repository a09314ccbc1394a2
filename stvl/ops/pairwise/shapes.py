"""Named shapes of real losses over pairs, shared by tests and benchmarks."""

from __future__ import annotations

import dataclasses

from stvl.core.errors import nearest


@dataclasses.dataclass(frozen=True)
class PairwiseShape:
    """One pair matrix as a recipe asks for it.

    Attributes:
        rows: clips of the global batch.
        columns: texts that each clip is compared with.
        width: width of the features.
        dtype: of the features.
        source: where the shape comes from.
    """

    rows: int
    columns: int
    width: int
    dtype: str = "float32"
    source: str = ""

    @property
    def pairs(self) -> int:
        """Entries of the matrix."""
        return self.rows * self.columns

    def flops(self) -> int:
        """Floating-point operations of the three products of forward and backward; what is done twice counts once."""
        return 6 * self.pairs * self.width


SHAPES: dict[str, PairwiseShape] = {
    "ek100": PairwiseShape(256, 256, 256, source="EVA02-AT on EK-100: global batch 64 x 4"),
    "pretrain-l": PairwiseShape(512, 512, 256, source="EVA02-AT-L pre-training"),
    "pretrain-b": PairwiseShape(1024, 1024, 256, source="EVA02-AT-B pre-training"),
    "pod-4k": PairwiseShape(4096, 4096, 256, source="a pod's batch"),
    "pod-16k": PairwiseShape(16384, 16384, 256, source="a large pod's batch; the shape of record"),
    "pod-16k-bf16": PairwiseShape(16384, 16384, 256, "bfloat16", "the same with bf16 features"),
    "clip-32k": PairwiseShape(32768, 32768, 512, source="CLIP ViT-B's batch and width"),
    "queue-64k": PairwiseShape(256, 65536, 128, source="MoCo's queue"),
}


def shape(name: str) -> PairwiseShape:
    """Look a named shape up.

    Raises:
        ValueError: an unknown name, with the nearest one.
    """
    if name not in SHAPES:
        raise ValueError(f"unknown pairwise shape {name!r}{nearest(name, SHAPES)}")
    return SHAPES[name]
