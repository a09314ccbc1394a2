"""Charades-Ego: which of 157 actions does a first-person video show? Mean average precision over the classes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool

from stvl.core.config import config
from stvl.core.errors import ConfigError
from stvl.data.sets.charades import View, read_charades
from stvl.data.sets.labelled import Labelled
from stvl.eval.card import Split, hash_texts, protocol_card
from stvl.eval.classifier import Classifier, as_classifier, head_of
from stvl.eval.embed import Progress
from stvl.eval.encoders import Encoders
from stvl.eval.metrics.multilabel import chance_map, multilabel_map
from stvl.eval.result import Result
from stvl.eval.views import Views, score_views


@config
class CharadesEgo:
    """Video to text: each video is scored against the names of the classes, and each class ranks the videos.

    Zero-shot and fine-tuned evaluation are the same computation on another model. `setting` says which it is, for the
    two stand in different columns of every published table.

    Attributes:
        csv: ``CharadesEgo_v1_test_only1st.csv`` (or ``CharadesEgo_v1_test.csv`` with `view`).
        classes: ``Charades_v1_classes.txt``.
        videos: the folder of video files.
        setting: ``zero-shot`` or ``fine-tuned``.
        view: which videos of the file count: first person as published, third, or both.
        pattern: a video's file in `videos`, with column names in braces.
        templates: with ``{}`` where the class goes.
        views: how often a video is looked at; one look over the whole video by default.
        batch: views at once.
        threads: that decode.

    Source: Sigurdsson et al., "Actor and Observer", 2018; EVA02-AT, arXiv 2506.14356, section V and Table II.
    """

    csv: str
    classes: str
    videos: str
    setting: Literal["zero-shot", "fine-tuned"] = "zero-shot"
    view: View = "first"
    pattern: str = "{id}.mp4"
    templates: tuple[str, ...] = ("{}",)
    views: Views = Views(averaging="logits")
    batch: int = 32
    threads: int = 2

    def __post_init__(self) -> None:
        if self.setting not in ("zero-shot", "fine-tuned"):
            raise ConfigError(f"setting is 'zero-shot' or 'fine-tuned', found {self.setting!r}")

    def run(self, model: Classifier | Encoders, progress: Progress | None = None) -> Result:
        """Score every video, rank, average.

        Raises:
            DataError: a damaged video or annotation.
        """
        data = read_charades(self.csv, self.videos, self.classes, self.pattern, view=self.view)
        scorer = as_classifier(model, {"label": data.names}, self.templates, 1.0)
        found = score_views(
            scorer, data.table, self.views, batch=self.batch, threads=self.threads, progress=progress
        )
        scores = head_of(found.mean, "label", len(data.names))
        metrics, extra = score_charades(scores, data)
        split = Split(name=Path(self.csv).stem, table=data.table, annotations=(self.csv, self.classes))
        card = protocol_card(
            scorer,
            f"Charades-Ego ({self.setting})",
            split,
            **self.views.describe(scorer.frames),
            view=self.view,
            classes=len(data.names),
            classes_sha256=hash_texts(data.names),
        )
        chance, weighted = chance_map(label_matrix(data))
        baseline = {"map": chance, "weighted_map": weighted}
        return Result(metrics=metrics, baseline=baseline, card=card, extra=extra)


def label_matrix(data: Labelled) -> Bool[np.ndarray, "clips classes"]:
    """True where a clip shows a class."""
    out = np.zeros((len(data.table), len(data.names)), bool)
    for row, own in zip(out, data.labels, strict=True):
        row[list(own)] = True
    return out


def score_charades(
    scores: np.ndarray, data: Labelled
) -> tuple[dict[str, float], dict[str, float | int | list[float | None]]]:
    """Metrics ``map`` and ``weighted_map`` of (videos, classes) scores, and counts.

    Raises:
        ConfigError: another shape than (videos, classes).
        DataError: NaN.
    """
    found = multilabel_map(scores, label_matrix(data))
    extra: dict[str, float | int | list[float | None]] = {
        "videos_without_label": found.empty,
        "classes_without_video": int((found.clips == 0).sum()),
        "ap": [None if np.isnan(value) else float(value) for value in found.ap],
    }
    return {"map": found.map, "weighted_map": found.weighted_map}, extra
