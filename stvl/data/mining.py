"""Hard mining: a clip is trained with a text drawn from all that are relevant enough to it, not always its own."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float64, Int

from stvl.core.config import config
from stvl.core.errors import ConfigError, DataError
from stvl.data.records import Clip, ClipTable

#: Relevancies are fractions of small numbers; one that equals the threshold must do so in floating point too.
_ROUNDING = 1e-9


@config
class HardMining:
    """For clip i draw the text uniformly from ``{j : c_ij > threshold}`` over the distinct texts of the table.

    Attributes:
        threshold: relevancy that a text must exceed; 0.1.
        inclusive: whether the threshold itself is enough. The loaders of EgoVLP, LaViLa and SMS compare with ``>``; the
            paper writes ``>=``. On EK-100 they differ: c = 0.1 is a text that shares one noun of five.

    Source: arXiv 2506.14356, Section III and Fig. 4.
    """

    threshold: float = 0.1
    inclusive: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ConfigError(f"threshold is a relevancy of at least 0 and below 1, found {self.threshold}")

    def candidates(self, relevancy: Float64[np.ndarray, " s"]) -> Int[np.ndarray, " _"]:
        """Numbers of the texts that are relevant enough."""
        least = self.threshold - _ROUNDING if self.inclusive else self.threshold + _ROUNDING
        # Without a threshold a text of no relevancy at all is still no candidate.
        return np.flatnonzero((relevancy > least) & (relevancy > 0))


@dataclasses.dataclass(frozen=True)
class TextPool:
    """The distinct texts of a table, each with the codes of the first clip that has it.

    EK-100's own list of the test clips' sentences has the same texts with the same codes, 3,835 in all, and seven of
    them a second time with the codes of another clip.

    Attributes:
        texts: in table order.
        verbs: verb class of each, -1 where unknown.
        nouns: noun classes of each, every class once, filled up with -1.
        rule: which texts a clip may draw.
    """

    texts: tuple[str, ...]
    verbs: Int[np.ndarray, " s"]
    nouns: Int[np.ndarray, "s n"]
    rule: HardMining

    @classmethod
    def of(cls, table: ClipTable, rule: HardMining) -> TextPool:
        """The pool of a table.

        Raises:
            DataError: a table without any class codes.
        """
        first: dict[str, Clip] = {}
        for clip in table.clips:
            first.setdefault(clip.text, clip)
        if all(clip.verb < 0 and not clip.nouns for clip in first.values()):
            raise DataError(
                f"{table.source}: hard mining compares verb and noun classes, and no row has any: "
                "train without loader.mining"
            )
        sets = [tuple(dict.fromkeys(clip.nouns)) for clip in first.values()]
        nouns = np.full((len(sets), max(map(len, sets)) or 1), -1, np.int32)
        for row, codes in zip(nouns, sets, strict=True):
            row[: len(codes)] = codes
        verbs = np.array([clip.verb for clip in first.values()], np.int32)
        return cls(tuple(first), verbs, nouns, rule)

    def relevancy(self, clip: Clip) -> Float64[np.ndarray, " s"]:
        """``c_ij = 0.5 [same verb] + 0.5 IoU(noun sets)`` of a clip and every text; two empty sets have IoU 0."""
        own = list(dict.fromkeys(clip.nouns))
        common = np.isin(self.nouns, own).sum(1) if own else np.zeros(len(self.texts), np.int64)
        either = (self.nouns >= 0).sum(1) + len(own) - common
        same = (self.verbs == clip.verb) & (clip.verb >= 0)
        return 0.5 * same + 0.5 * common / np.maximum(either, 1)

    def draw(self, clip: Clip, rng: np.random.Generator) -> int:
        """Number of the text that stands beside a clip this time.

        Raises:
            DataError: no text is relevant enough, which means that the clip has no codes.
        """
        found = self.rule.candidates(self.relevancy(clip))
        if not len(found):
            raise DataError(
                f"clip {clip.id!r} (row {clip.row}) has verb {clip.verb} and nouns {list(clip.nouns)}: no text has a "
                f"relevancy above {self.rule.threshold:g} to it; give it class codes or leave it out"
            )
        return int(found[rng.integers(len(found))])
