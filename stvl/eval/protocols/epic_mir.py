"""EPIC-KITCHENS-100 multi-instance retrieval, and accuracy on opposite motions over files of the same format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stvl.core.config import config
from stvl.core.errors import ConfigError, DataError
from stvl.data.records import Clip, ClipTable
from stvl.data.sets.epic import read_epic, read_sentences
from stvl.eval.card import Split, protocol_card
from stvl.eval.embed import Progress, embed_table, embed_texts
from stvl.eval.encoders import Encoders
from stvl.eval.metrics.mir import mir, random_mir, relevancy
from stvl.eval.metrics.recall import opposites_accuracy, recall
from stvl.eval.metrics.recall import recall_chance as _chance
from stvl.eval.result import Result


@config
class EpicMIR:
    """Clips against unique sentences, both ways: mAP over exact matches, nDCG over graded ones, recall at 1, 5, 10.

    The codes of a sentence are those of the clip with its ``narration_id``.

    Attributes:
        csv: ``EPIC_100_retrieval_test.csv``.
        sentences: ``EPIC_100_retrieval_test_sentence.csv``.
        videos: the folder of video files.
        pattern: a video's file in `videos`, with column names in braces.
        batch: clips at once.
        threads: that decode.
        seeds: of the random baseline.

    Source: Damen et al., "Rescaling Egocentric Vision", 2022, section 4.5.
    """

    csv: str
    sentences: str
    videos: str
    pattern: str = "{participant_id}/{video_id}.mp4"
    batch: int = 32
    threads: int = 2
    seeds: tuple[int, ...] = (0,)

    def run(self, encoders: Encoders, progress: Progress | None = None) -> Result:
        """Embed, rank, score.

        Raises:
            DataError: a damaged clip or annotation, a sentence whose ``narration_id`` is no clip's.
        """
        table = read_epic(self.csv, self.videos, pattern=self.pattern)
        texts, sources = self.matched(table)
        graded = relevancy(
            np.array([clip.verb for clip in table.clips]),
            [clip.nouns for clip in table.clips],
            np.array([clip.verb for clip in sources]),
            [clip.nouns for clip in sources],
        )
        baseline = random_mir(graded, self.seeds)
        videos = embed_table(encoders, table, self.batch, self.threads, progress)
        similarity = videos.embeddings @ embed_texts(encoders, texts).T
        metrics = mir(similarity, graded)
        extra: dict[str, Any] = {"sentences": len(texts), "exact_pairs": int((graded == 1).sum())}
        extra["related_share"] = float((graded > 0).mean())
        for way, scores, right in (("v2t", similarity, graded == 1), ("t2v", similarity.T, graded.T == 1)):
            found = recall(scores, right)
            extra[f"median_rank.{way}"] = found.pop("median_rank")
            metrics |= {f"{name}.{way}": value for name, value in found.items()}
            baseline |= {f"{name}.{way}": _chance(right, int(name.removeprefix("r@"))) for name in found}
        split = Split(
            name=Path(self.csv).stem, table=table, annotations=(self.csv, self.sentences), texts=texts
        )
        card = protocol_card(
            encoders, "EPIC-KITCHENS-100 MIR", split, batch=self.batch, baseline_seeds=list(self.seeds)
        )
        return Result(metrics=metrics, baseline=baseline, card=card, extra=extra)

    def matched(self, table: ClipTable) -> tuple[tuple[str, ...], tuple[Clip, ...]]:
        """The sentences in file order, and for each the clip that lends it its codes.

        Raises:
            DataError: no sentences, or one that belongs to no clip.
        """
        clips = {clip.id: clip for clip in table.clips}
        rows = read_sentences(self.sentences)
        if not rows:
            raise DataError(f"{self.sentences} holds no sentences")
        for number, (key, text) in enumerate(rows, 1):
            if key not in clips:
                raise DataError(
                    f"{self.sentences}, row {number}: narration_id {key!r} ({text!r}) is not in {self.csv}; do the two"
                    " files belong to one split?"
                )
        return tuple(text for _, text in rows), tuple(clips[key] for key, _ in rows)


@config
class Opposites:
    """Does a clip score its own narration above the narration of the opposite motion of the same thing? Chance is 50 %.

    For every clip of a pair's verbs, the table gives the distinct narrations with the other verb and the same nouns. The
    clip is compared with each and their mean counts. The two verbs of a pair weigh the same, so that liking one of them
    whatever is seen earns 50 %.

    Attributes:
        csv: annotations in EPIC-KITCHENS-100 retrieval format.
        videos: the folder of video files.
        pattern: a video's file in `videos`, with column names in braces.
        pairs: verb classes that are each other's opposite.
        batch: clips at once.
        threads: that decode.
    """

    csv: str
    videos: str
    pattern: str = "{participant_id}/{video_id}.mp4"
    pairs: tuple[tuple[int, int], ...]
    batch: int = 32
    threads: int = 2

    def __post_init__(self) -> None:
        if not self.pairs or any(len(pair) != 2 or pair[0] == pair[1] for pair in self.pairs):
            raise ConfigError(
                f"pairs are two different verb classes each, one pair or more, found {self.pairs}"
            )

    def run(self, encoders: Encoders, progress: Progress | None = None) -> Result:
        """Embed the clips of the pairs and compare.

        Raises:
            DataError: a damaged clip, or a pair of which a verb has no clip with an opposite narration.
        """
        full = read_epic(self.csv, self.videos, pattern=self.pattern)
        verbs = {verb for pair in self.pairs for verb in pair}
        table = full.subset([i for i, clip in enumerate(full.clips) if clip.verb in verbs])
        told = {
            pair: {verb: _rivals(table, verb, other) for verb, other in (pair, pair[::-1])}
            for pair in self.pairs
        }
        for pair, sides in told.items():
            for verb, rivals in sides.items():
                if not rivals:
                    raise DataError(
                        f"{self.csv}: no clip of verb class {verb} has a narration of its opposite in pair {pair} with the"
                        " same nouns"
                    )
        texts = tuple(dict.fromkeys(table.texts))
        column = {text: i for i, text in enumerate(texts)}
        videos = embed_table(encoders, table, self.batch, self.threads, progress)
        similarity = videos.embeddings @ embed_texts(encoders, texts).T
        metrics: dict[str, float] = {}
        counts: dict[str, int] = {}
        for pair, sides in told.items():
            name = f"{pair[0]}-{pair[1]}"
            metrics[f"opposites.{name}"] = float(
                np.mean([_accuracy(similarity, table, column, rivals) for rivals in sides.values()])
            )
            counts[name] = sum(len(rivals) for rivals in sides.values())
        metrics["opposites.mean"] = float(np.mean(list(metrics.values())))
        split = Split(name=Path(self.csv).stem, table=table, annotations=(self.csv,), texts=texts)
        card = protocol_card(
            encoders, "opposite motions", split, batch=self.batch, pairs=[list(p) for p in self.pairs]
        )
        extra = {"clips_by_pair": counts}
        return Result(metrics=metrics, baseline=dict.fromkeys(metrics, 0.5), card=card, extra=extra)


def _rivals(table: ClipTable, verb: int, other: int) -> dict[int, list[str]]:
    """Table index of each clip of `verb` -> distinct narrations of `other` with its nouns, where there are any."""
    texts: dict[frozenset[int], dict[str, None]] = {}
    for clip in table.clips:
        if clip.verb == other:
            texts.setdefault(frozenset(clip.nouns), {})[clip.text] = None
    found = {i: texts.get(frozenset(clip.nouns)) for i, clip in enumerate(table.clips) if clip.verb == verb}
    return {i: list(rivals) for i, rivals in found.items() if rivals}


def _accuracy(
    similarity: np.ndarray, table: ClipTable, column: dict[str, int], rivals: dict[int, list[str]]
) -> float:
    rows = [
        (i, column[table[i].text], column[text], 1 / len(texts))
        for i, texts in rivals.items()
        for text in texts
    ]
    clip, own, opposite = np.array([row[:3] for row in rows]).T
    return opposites_accuracy(
        similarity[clip, own], similarity[clip, opposite], np.array([row[3] for row in rows])
    )
