"""EPIC-KITCHENS-100 action recognition: the verb, the noun, and both together."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from stvl.core.config import config
from stvl.core.errors import DataError
from stvl.data.sets.epic_recognition import (
    EpicActions,
    read_epic_actions,
    read_epic_classes,
    read_epic_column,
)
from stvl.eval.card import Split, hash_texts, protocol_card
from stvl.eval.classifier import Classifier, as_classifier, head_of
from stvl.eval.embed import Progress
from stvl.eval.encoders import Encoders
from stvl.eval.metrics.accuracy import action_ranks, label_ranks, mean_by_class, softmax
from stvl.eval.result import Result
from stvl.eval.views import Views, score_views


@config
class EpicRecognition:
    """Top-1, top-5 and mean class accuracy of verb, noun and action; also on unseen kitchens and tail classes if told.

    An action is a pair; pairs rank by ``P(verb) * P(noun)`` over all pairs of classes. A model with heads ``verb`` and
    ``noun`` is scored by them, encoders by the texts of the classes.

    Attributes:
        csv: ``EPIC_100_validation.csv``.
        verbs: ``EPIC_100_verb_classes.csv``.
        nouns: ``EPIC_100_noun_classes.csv``.
        videos: the folder of video files.
        unseen: ``EPIC_100_unseen_participant_ids_validation.csv``; adds ``unseen.*``.
        tail_verbs: ``EPIC_100_tail_verbs.csv``; with `tail_nouns` adds ``tail.*``.
        tail_nouns: ``EPIC_100_tail_nouns.csv``.
        pattern: a video's file in `videos`, with column names in braces.
        templates: with ``{}`` where the class goes; only for encoders.
        scale: of cosine similarities, before the softmax; only for encoders.
        views: how often a clip is looked at.
        batch: views at once.
        threads: that decode.

    Source: Damen et al., "Rescaling Egocentric Vision", 2022, section 4.1.
    """

    csv: str
    verbs: str
    nouns: str
    videos: str
    unseen: str | None = None
    tail_verbs: str | None = None
    tail_nouns: str | None = None
    pattern: str = "{participant_id}/{video_id}.mp4"
    templates: tuple[str, ...] = ("{}",)
    scale: float = 100.0
    views: Views = Views()
    batch: int = 32
    threads: int = 2

    def run(self, model: Classifier | Encoders, progress: Progress | None = None) -> Result:
        """Score every clip, rank verbs, nouns and pairs, count.

        Raises:
            ConfigError: a model without the heads ``verb`` and ``noun``, or of other sizes.
            DataError: a damaged clip or annotation.
        """
        data = read_epic_actions(self.csv, self.videos, self.pattern)
        names = {"verb": read_epic_classes(self.verbs), "noun": read_epic_classes(self.nouns)}
        scorer = as_classifier(model, names, self.templates, self.scale)
        found = score_views(
            scorer, data.table, self.views, batch=self.batch, threads=self.threads, progress=progress
        )
        parts = {head: head_of(found.mean, head, len(own)) for head, own in names.items()}
        if self.views.averaging == "logits":
            parts = {head: softmax(rows) for head, rows in parts.items()}
        metrics = score_epic_recognition(parts["verb"], parts["noun"], data, self.views.name, self.subsets())
        files = (self.csv, self.verbs, self.nouns, self.unseen, self.tail_verbs, self.tail_nouns)
        split = Split(
            name=Path(self.csv).stem, table=data.table, annotations=tuple(file for file in files if file)
        )
        card = protocol_card(
            scorer,
            "EPIC-KITCHENS-100 recognition",
            split,
            **self.views.describe(scorer.frames),
            actions="product of the probabilities of verb and noun",
            classes_sha256=hash_texts([*names["verb"], *names["noun"]]),
        )
        baseline = {name: epic_chance(name, len(names["verb"]), len(names["noun"])) for name in metrics}
        extra = {"unique_actions": len(set(zip(data.verbs.tolist(), data.nouns.tolist(), strict=True)))}
        return Result(metrics=metrics, baseline=baseline, card=card, extra=extra)

    def subsets(self) -> dict[str, Any]:
        """What `score_epic_recognition` takes as ``subsets``, from the files. Raises: DataError."""
        out: dict[str, Any] = {}
        if self.unseen:
            out["unseen"] = frozenset(read_epic_column(self.unseen, "participant_id"))
        if (self.tail_verbs is None) != (self.tail_nouns is None):
            raise DataError("tail classes need both files, tail_verbs and tail_nouns")
        if self.tail_verbs and self.tail_nouns:
            out["tail_verbs"] = frozenset(map(int, read_epic_column(self.tail_verbs, "verb")))
            out["tail_nouns"] = frozenset(map(int, read_epic_column(self.tail_nouns, "noun")))
        return out


def score_epic_recognition(
    verbs: np.ndarray,
    nouns: np.ndarray,
    data: EpicActions,
    views: str = "1x1",
    subsets: dict[str, Collection] | None = None,
) -> dict[str, float]:
    """``verb.top1@V``, ``verb.top5@V``, ``verb.mean_class@V``, the same of ``noun`` and ``action``, and of subsets.

    Args:
        verbs: probabilities, (clips, verb classes).
        nouns: probabilities, (clips, noun classes).
        data: the annotations.
        views: for the names.
        subsets: ``unseen``: participants; ``tail_verbs`` and ``tail_nouns``: classes. An action is of the tail where its
            verb or its noun is.

    Raises:
        ConfigError: shapes that do not fit.
        DataError: NaN, an unknown class, a subset without a clip.
    """
    pairs = data.verbs * (int(data.nouns.max(initial=0)) + 1) + data.nouns
    parts = {
        "verb": (label_ranks(verbs, data.verbs), data.verbs),
        "noun": (label_ranks(nouns, data.nouns), data.nouns),
        "action": (action_ranks(verbs, nouns, data.verbs, data.nouns), pairs),
    }
    metrics: dict[str, float] = {}
    for name, (ranks, classes) in parts.items():
        metrics |= {f"{name}.top{k}@{views}": float((ranks <= k).mean()) for k in (1, 5)}
        metrics[f"{name}.mean_class@{views}"] = mean_by_class(ranks <= 1, classes)
    for subset, masks in _masks(data, subsets or {}).items():
        for name, mask in masks.items():
            if not mask.any():
                raise DataError(f"no clip is of the subset {subset!r} ({name}): are its files of this split?")
            metrics[f"{subset}.{name}.top1@{views}"] = float((parts[name][0][mask] <= 1).mean())
    return metrics


def _masks(data: EpicActions, subsets: dict[str, Collection]) -> dict[str, dict[str, np.ndarray]]:
    out: dict[str, dict[str, np.ndarray]] = {}
    if "unseen" in subsets:
        mask = np.array([name in subsets["unseen"] for name in data.participants])
        out["unseen"] = dict.fromkeys(("verb", "noun", "action"), mask)
    if "tail_verbs" in subsets:
        verb = np.isin(data.verbs, list(subsets["tail_verbs"]))
        noun = np.isin(data.nouns, list(subsets["tail_nouns"]))
        out["tail"] = {"verb": verb, "noun": noun, "action": verb | noun}
    return out


def epic_chance(name: str, verbs: int, nouns: int) -> float:
    """Chance of a metric of `score_epic_recognition` for so many classes: k of them, drawn without looking."""
    part = name.split("@")[0].split(".")[-2]
    classes = {"verb": verbs, "noun": nouns, "action": verbs * nouns}[part]
    return min(5 if "top5" in name else 1, classes) / classes
