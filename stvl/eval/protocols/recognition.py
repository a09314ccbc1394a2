"""Action recognition on lists of trimmed videos: Kinetics, Something-Something and their like, in several views."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from stvl.core.config import config
from stvl.core.errors import ConfigError
from stvl.data.sets.actions import read_kinetics, read_label_list, read_something
from stvl.data.sets.labelled import Duration, Labelled
from stvl.eval.card import Split, hash_texts, protocol_card
from stvl.eval.classifier import Classifier, as_classifier, head_of
from stvl.eval.embed import Progress
from stvl.eval.encoders import Encoders
from stvl.eval.metrics.accuracy import mean_class_accuracy, topk_accuracy
from stvl.eval.result import Result
from stvl.eval.views import Scores, Views, score_views

#: Shapes of annotation files, see `stvl.data.sets.actions`.
Dialect = Literal["kinetics", "something", "list"]


@config
class ActionList:
    """Where the clips and classes of a recognition set are.

    Attributes:
        annotations: the list of videos.
        videos: folder of the video files.
        dialect: ``kinetics``: the official CSV; ``something``: the official JSON; ``list``: lines ``path label``.
        classes: names in the model's order, one a line; for ``something`` its labels file. Only ``kinetics`` does
            without: its labels in alphabetical order.
        pattern: a video's file in `videos`, with the fields of its entry in braces; the dialect's usual one by default.
        leave_out_missing: score what is there and say how much is missing, instead of refusing.
    """

    annotations: str
    videos: str
    dialect: Dialect = "kinetics"
    classes: str | None = None
    pattern: str | None = None
    leave_out_missing: bool = False

    def __post_init__(self) -> None:
        if self.dialect not in ("kinetics", "something", "list"):
            raise ConfigError(f"dialect is 'kinetics', 'something' or 'list', found {self.dialect!r}")
        if self.dialect != "kinetics" and self.classes is None:
            raise ConfigError(f"the dialect {self.dialect!r} needs `classes`, a file of class names")
        if self.dialect == "list" and self.pattern is not None:
            raise ConfigError("the dialect 'list' names its files itself; leave `pattern` out")

    def load(self, duration: Duration | None = None) -> Labelled:
        """Read the list. Raises: DataError."""
        more: dict[str, Any] = {"leave_out_missing": self.leave_out_missing, "duration": duration}
        if self.pattern is not None:
            more["pattern"] = self.pattern
        if self.dialect == "kinetics":
            return read_kinetics(self.annotations, self.videos, self.classes, **more)
        assert self.classes is not None
        if self.dialect == "something":
            return read_something(self.annotations, self.classes, self.videos, **more)
        return read_label_list(self.annotations, self.videos, self.classes, **more)

    @property
    def files(self) -> tuple[str, ...]:
        """The annotation files, for protocol cards."""
        return (self.annotations,) if self.classes is None else (self.annotations, self.classes)


@config
class Recognition:
    """Top-1 and top-5 accuracy and mean class accuracy, of all views (``top1@10x3``) and of one (``top1@1x1``).

    A model with a head is scored by it; encoders by the texts of the classes.

    Attributes:
        data: the list.
        views: how often a clip is looked at and how scores are averaged.
        templates: with ``{}`` where the class goes; only for encoders.
        scale: of cosine similarities, before a softmax; only for encoders.
        batch: views at once.
        threads: that decode.
    """

    data: ActionList
    views: Views = Views()
    templates: tuple[str, ...] = ("{}",)
    scale: float = 100.0
    batch: int = 32
    threads: int = 2

    def run(self, model: Classifier | Encoders, progress: Progress | None = None) -> Result:
        """Score every view, average, count.

        Raises:
            ConfigError: a model whose head has another number of classes.
            DataError: a damaged clip or annotation.
        """
        data = self.data.load()
        scorer = as_classifier(model, {"label": data.names}, self.templates, self.scale)
        found = score_views(
            scorer, data.table, self.views, batch=self.batch, threads=self.threads, progress=progress
        )
        metrics = score_recognition(found, data, self.views)
        return recognition_result("recognition", scorer, self.data, data, (self.views, found, metrics))


def score_recognition(found: Scores, data: Labelled, views: Views) -> dict[str, float]:
    """``top1@V``, ``top5@V`` and ``mean_class@V`` of the mean of the views, and of the single view where V is not 1x1.

    Raises:
        ConfigError: no head ``label`` of as many classes as there are names.
    """
    labels = np.array([own[0] for own in data.labels])
    metrics: dict[str, float] = {}
    for name, scores in dict([(views.name, found.mean), ("1x1", found.single)]).items():
        rows = head_of(scores, "label", len(data.names))
        metrics |= topk_accuracy(rows, labels, views=name)
        metrics[f"mean_class@{name}"] = mean_class_accuracy(rows, labels)
    return metrics


def recognition_result(
    protocol: str,
    scorer: Classifier,
    source: ActionList,
    data: Labelled,
    scored: tuple[Views, Scores, dict[str, float]],
) -> Result:
    """Scores of one list with their card, chance, and what there is to warn of."""
    views, found, metrics = scored
    classes = len(data.names)
    chance = recognition_chance(metrics, classes)
    split = Split(name=Path(source.annotations).stem, table=data.table, annotations=source.files)
    card = protocol_card(
        scorer,
        protocol,
        split,
        **views.describe(scorer.frames),
        classes=classes,
        classes_sha256=hash_texts(data.names),
        missing_videos=len(data.missing),
    )
    extra: dict[str, Any] = {"clips_with_coinciding_views": found.coincide}
    warnings = []
    if data.missing:
        share = len(data.missing) / (len(data.missing) + len(data.table))
        warnings.append(
            f"{len(data.missing)} listed videos ({share:.1%}) are missing: another split than the published"
        )
        extra["missing"] = list(data.missing[:100])
    if found.coincide:
        warnings.append(
            f"{found.coincide} of {len(data.table)} clips are no longer than a window, so their views in time are one"
        )
    if warnings:
        extra["warning"] = "; ".join(warnings)
    return Result(metrics=metrics, baseline=chance, card=card, extra=extra)


def recognition_chance(metrics: dict[str, float], classes: int) -> dict[str, float]:
    """Chance of each of `metrics`: k of the classes, drawn without looking."""
    return {name: min(5 if name.startswith("top5") else 1, classes) / classes for name in metrics}
