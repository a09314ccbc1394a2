"""EgoMCQ: which of five clips does a narration tell of?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from stvl.core.config import config
from stvl.core.errors import DataError
from stvl.data.records import Clip, ClipTable
from stvl.data.sets.egomcq import Question, read_questions
from stvl.eval.card import Split, hash_texts, protocol_card
from stvl.eval.embed import Progress, embed_table, embed_texts
from stvl.eval.encoders import Encoders
from stvl.eval.metrics.mcq import mcq_accuracy
from stvl.eval.result import Result


@config
class EgoMCQ:
    """Accuracy over text queries with five clips each, for inter-video and intra-video questions apart.

    Inter questions take their five clips from five videos and are the easy ones; intra questions take neighbouring clips
    of one video. Which is which is decided from the videos of the choices, since the file's ``types`` field has been read
    both ways: (1) the comment in EgoVLP's data loader says 1 is inter and 2 is intra, while (2) its metric, and LaViLa's
    after it, print type 1 as "Intra" and type 2 as "Inter", so that published logs carry swapped names. The result
    counts how the stated types fall on what the data say, and warns where inter comes out below intra.

    Attributes:
        json: ``egomcq.json``.
        videos: the folder of video files.
        pattern: a video's file in `videos`, with the fields of a choice in braces.
        batch: clips at once.
        threads: that decode.

    Source: EgoVLP, arXiv 2206.01670, section 3.3.
    """

    json: str
    videos: str
    pattern: str = "{video_uid}.mp4"
    batch: int = 32
    threads: int = 2

    def run(self, encoders: Encoders, progress: Progress | None = None) -> Result:
        """Embed every clip and query once, score, count.

        Raises:
            DataError: a damaged clip or annotation, or questions with different numbers of choices.
        """
        questions = read_questions(self.json, self.videos, pattern=self.pattern)
        table, picks = unique_clips(questions, self.json)
        texts = tuple(dict.fromkeys(question.query for question in questions))
        column = {text: i for i, text in enumerate(texts)}
        videos = embed_table(encoders, table, self.batch, self.threads, progress)
        queries = embed_texts(encoders, texts)[[column[question.query] for question in questions]]
        scores = np.einsum("qko,qo->qk", videos.embeddings[picks], queries)
        answers = np.array([question.answer for question in questions])
        found = mcq_accuracy(scores, answers, [question.kind for question in questions])
        metrics = {f"mcq.{kind}": float(found[kind]) for kind in ("inter", "intra") if kind in found}
        split = Split(name=Path(self.json).stem, table=table, annotations=(self.json,), texts=texts)
        card = protocol_card(
            encoders,
            "EgoMCQ",
            split,
            batch=self.batch,
            questions=len(questions),
            questions_sha256=hash_texts([f"{question.id} {question.answer}" for question in questions]),
            kinds="from the videos of the choices",
        )
        baseline = {name: 1 / picks.shape[1] for name in metrics}
        return Result(metrics=metrics, baseline=baseline, card=card, extra=_notes(questions, found))


def unique_clips(questions: tuple[Question, ...], source: str) -> tuple[ClipTable, np.ndarray]:
    """A table in which each stretch of video stands once, and the row of every choice, int64 (questions, choices).

    Raises:
        DataError: no questions, or questions with different numbers of choices.
    """
    if not questions:
        raise DataError(f"{source} holds no questions")
    usual = Counter(len(question.choices) for question in questions).most_common(1)[0][0]
    for question in questions:
        if len(question.choices) != usual:
            raise DataError(
                f"{source}: question {question.id!r} has {len(question.choices)} choices, others {usual}"
            )
    rows: dict[tuple[str, float, float], int] = {}
    clips: list[Clip] = []
    picks = np.empty((len(questions), len(questions[0].choices)), np.int64)
    for i, question in enumerate(questions):
        for j, clip in enumerate(question.choices):
            key = (clip.path, clip.start, clip.end)
            if key not in rows:
                rows[key] = len(clips)
                clips.append(clip)
            picks[i, j] = rows[key]
    return ClipTable(tuple(clips), source), picks


def _notes(questions: tuple[Question, ...], found: dict[str, float | int]) -> dict[str, Any]:
    notes: dict[str, Any] = {
        f"questions.{kind}": found.get(f"count.{kind}", 0) for kind in ("inter", "intra")
    }
    stated: dict[str, dict[str, int]] = {}
    for question in questions:
        kinds = stated.setdefault(str(question.stated_type), {"inter": 0, "intra": 0})
        kinds[question.kind] += 1
    notes["stated_types"] = stated
    if "inter" in found and "intra" in found and found["inter"] < found["intra"]:
        notes["warning"] = (
            f"inter accuracy {100 * found['inter']:.1f} % is below intra {100 * found['intra']:.1f} %: inter questions are"
            " the easy ones, so look for clips cut from the wrong place or a model that has not learnt"
        )
    return notes
