"""Protocols on scores that another program saved: the same scoring functions, no model and no video."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stvl.core.errors import ConfigError
from stvl.data.sets.charades import read_charades
from stvl.data.sets.egomcq import read_questions
from stvl.data.sets.epic_recognition import read_epic_actions, read_epic_classes
from stvl.data.sets.msrvtt import read_caption_list, read_msrvtt
from stvl.eval.card import Split
from stvl.eval.metrics.accuracy import average_views, softmax
from stvl.eval.metrics.mcq import mcq_accuracy
from stvl.eval.metrics.multilabel import chance_map
from stvl.eval.protocols.charades_ego import CharadesEgo, label_matrix, score_charades
from stvl.eval.protocols.egomcq import EgoMCQ, unique_clips
from stvl.eval.protocols.epic_recognition import EpicRecognition, epic_chance, score_epic_recognition
from stvl.eval.protocols.recognition import Recognition, recognition_chance, score_recognition
from stvl.eval.protocols.retrieval import TextVideoRetrieval, score_retrieval
from stvl.eval.protocols.zero_shot import ZeroShot
from stvl.eval.result import Result
from stvl.eval.saved import load_scores, saved_card
from stvl.eval.views import Scores


@functools.singledispatch
def score_files(protocol: Any, files: Sequence[str]) -> Result:
    """Score saved arrays (.npy) by `protocol`; rows are in the order of the annotation file.

    Shapes: EgoMCQ (questions, choices); CharadesEgo (videos, classes); TextVideoRetrieval (texts, videos); Recognition
    and ZeroShot (clips, classes), or logits (clips, views, classes) whose views are then averaged as the protocol says;
    EpicRecognition two files of logits, verbs then nouns, (clips, classes) each.

    Raises:
        ConfigError: a protocol that takes no saved scores, another number of files, another shape.
        DataError: files that cannot be read, NaN.
    """
    raise ConfigError(f"{type(protocol).__name__} does not take saved scores")


def _arrays(protocol: Any, files: Sequence[str], count: int, rows: int, axes: tuple[int, ...] = (2,)) -> list:
    name = type(protocol).__name__
    if len(files) != count:
        raise ConfigError(
            f"{name} takes {count} file{'s' if count > 1 else ''} of scores, found {len(files)}"
        )
    arrays = [load_scores(file, "scores") for file in files]
    for file, array in zip(files, arrays, strict=True):
        if array.ndim not in axes or len(array) != rows:
            raise ConfigError(
                f"{file} is {array.shape}: {name} expects {' or '.join(map(str, axes))} axes and {rows} rows, one for"
                " each entry of the annotations"
            )
    return arrays


@score_files.register
def _(protocol: EgoMCQ, files: Sequence[str]) -> Result:
    questions = read_questions(protocol.json, "", protocol.pattern, check_files=False)
    table, _ = unique_clips(questions, protocol.json)
    (scores,) = _arrays(protocol, files, 1, len(questions))
    if scores.shape[1] != len(questions[0].choices):
        raise ConfigError(
            f"{files[0]} is {scores.shape}, the questions have {len(questions[0].choices)} choices"
        )
    answers = np.array([question.answer for question in questions])
    found = mcq_accuracy(scores, answers, [question.kind for question in questions])
    metrics = {f"mcq.{kind}": float(found[kind]) for kind in ("inter", "intra") if kind in found}
    split = Split(name=Path(protocol.json).stem, table=table, annotations=(protocol.json,))
    card = saved_card("EgoMCQ", split, tuple(files), kinds="from the videos of the choices")
    extra = {f"questions.{kind}": found.get(f"count.{kind}", 0) for kind in ("inter", "intra")}
    chance = 1 / len(questions[0].choices)
    return Result(metrics=metrics, baseline=dict.fromkeys(metrics, chance), card=card, extra=extra)


@score_files.register
def _(protocol: CharadesEgo, files: Sequence[str]) -> Result:
    data = read_charades(
        protocol.csv, "", protocol.classes, protocol.pattern, view=protocol.view, check_files=False
    )
    (scores,) = _arrays(protocol, files, 1, len(data.table))
    metrics, extra = score_charades(scores, data)
    split = Split(
        name=Path(protocol.csv).stem, table=data.table, annotations=(protocol.csv, protocol.classes)
    )
    card = saved_card(f"Charades-Ego ({protocol.setting})", split, tuple(files), view=protocol.view)
    chance, weighted = chance_map(label_matrix(data))
    baseline = {"map": chance, "weighted_map": weighted}
    return Result(metrics=metrics, baseline=baseline, card=card, extra=dict(extra))


@score_files.register
def _(protocol: TextVideoRetrieval, files: Sequence[str]) -> Result:
    if protocol.annotations.endswith(".json"):
        data = read_msrvtt(
            protocol.annotations, "", protocol.split, protocol.pattern, duration=lambda path: 1.0
        )
    else:
        data = read_caption_list(protocol.annotations, "", protocol.pattern, duration=lambda path: 1.0)
    (scores,) = _arrays(protocol, files, 1, len(data.texts))
    metrics, extra, baseline = score_retrieval(scores, data, protocol.ties, protocol.dual_softmax)
    split = Split(
        name=Path(protocol.annotations).stem,
        table=data.table,
        annotations=(protocol.annotations,),
        texts=data.texts,
    )
    card = saved_card("text-video retrieval", split, tuple(files), ties=protocol.ties)
    return Result(metrics=metrics, baseline=baseline, card=card, extra=extra)


@score_files.register(Recognition)
@score_files.register(ZeroShot)
def _(protocol: Recognition | ZeroShot, files: Sequence[str]) -> Result:
    data = protocol.data.load(duration=lambda path: 1.0)
    (scores,) = _arrays(protocol, files, 1, len(data.table), (2, 3))
    views = protocol.views
    if scores.ndim == 3:
        if scores.shape[1] != views.times * views.crops:
            raise ConfigError(f"{files[0]} is {scores.shape}: its second axis is not the {views.name} views")
        scores = average_views(scores, views.averaging)
    # One view of many is not known from saved means, so both names would say the same.
    found = Scores({"label": np.asarray(scores)}, {"label": np.asarray(scores)}, 0)
    metrics = {
        name: value
        for name, value in score_recognition(found, data, views).items()
        if name.endswith(f"@{views.name}")
    }
    source = protocol.data
    split = Split(name=Path(source.annotations).stem, table=data.table, annotations=source.files)
    name = "zero-shot classification" if isinstance(protocol, ZeroShot) else "recognition"
    card = saved_card(name, split, tuple(files), views=views.name, classes=len(data.names))
    return Result(metrics=metrics, baseline=recognition_chance(metrics, len(data.names)), card=card)


@score_files.register
def _(protocol: EpicRecognition, files: Sequence[str]) -> Result:
    data = read_epic_actions(protocol.csv, "", protocol.pattern, check_files=False)
    names = {"verb": read_epic_classes(protocol.verbs), "noun": read_epic_classes(protocol.nouns)}
    arrays = _arrays(protocol, files, 2, len(data.table))
    for (head, own), file, array in zip(names.items(), files, arrays, strict=True):
        if array.shape[1] != len(own):
            raise ConfigError(f"{file} is {array.shape}, there are {len(own)} {head} classes")
    verbs, nouns = (softmax(array) for array in arrays)
    metrics = score_epic_recognition(verbs, nouns, data, protocol.views.name, protocol.subsets())
    split = Split(
        name=Path(protocol.csv).stem,
        table=data.table,
        annotations=(protocol.csv, protocol.verbs, protocol.nouns),
    )
    card = saved_card("EPIC-KITCHENS-100 recognition", split, tuple(files), views=protocol.views.name)
    baseline = {name: epic_chance(name, len(names["verb"]), len(names["noun"])) for name in metrics}
    return Result(metrics=metrics, baseline=baseline, card=card)
