"""Annotation files of a toy world, in the public formats that real data comes in.

EPIC-KITCHENS-100 retrieval (Damen et al. 2022; annotation repository, ``retrieval_annotations``): clip CSVs, sentence
CSVs with one row per unique narration under the id of the first clip that has it, and the class lists.

EgoMCQ (Lin et al. 2022, EgoVLP, section 4): ``{"0": {"answer", "query", "choices": {"0".."4"}, "types"}}``, where the
query and each choice carry the fields of an EgoClip row, ``tag_verb`` and ``tag_noun`` being lists printed as text.

The number in ``types`` is read in two ways in the public code: a comment in EgoVLP's loader says 1 = inter-video and
2 = intra-video, while its metric (and others that copied it) pairs the sorted values with the names "Intra-video",
"Inter-video". Here 1 is inter and 2 is intra; a reader should rather decide by the choices, which come from five videos
(inter) or one (intra).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from stvl.data.toy.plan import Action
from stvl.data.toy.words import NOUNS, OPPOSITES, VERBS
from stvl.data.toy.world import ToyOptions, rate

INTER, INTRA = 1, 2
CHOICES = 5
CLIP_COLUMNS = (
    "narration_id",
    "participant_id",
    "video_id",
    "narration_timestamp",
    "start_timestamp",
    "stop_timestamp",
    "start_frame",
    "stop_frame",
    "narration",
    "verb",
    "verb_class",
    "noun",
    "noun_class",
    "all_nouns",
    "all_noun_classes",
)


def stamp(hundredths: int, digits: int = 2) -> str:
    """A time as EK-100 writes it, ``HH:MM:SS.ss`` (or more digits)."""
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 100:02d}.{rest % 100:02d}" + "0" * (digits - 2)


def frame_at(hundredths: int, fps: float) -> int:
    """EK-100's frame number of a time: frames count from 1, and it is ``max(1, floor(t fps))``."""
    return max(1, int(Fraction(hundredths, 100) * rate(fps) // 1))


def clip_row(action: Action) -> tuple[object, ...]:
    """One row of a retrieval CSV, in the order of `CLIP_COLUMNS`."""
    scene, video = action.scene, action.video
    return (
        action.id,
        video.participant,
        video.id,
        stamp((action.start + action.stop) // 2, 3),
        stamp(action.start),
        stamp(action.stop),
        frame_at(action.start, video.fps),
        frame_at(action.stop, video.fps),
        scene.narration,
        scene.verb_text,
        scene.verb,
        scene.noun_text,
        scene.noun,
        str([scene.noun_text]),
        str([scene.noun]),
    )


def sentence_rows(clips: Iterable[Action]) -> list[tuple[str, str]]:
    """(narration_id of the first clip, narration) for every unique narration, in order of first use."""
    first: dict[str, str] = {}
    for clip in clips:
        first.setdefault(clip.scene.narration, clip.id)
    return [(clip_id, narration) for narration, clip_id in first.items()]


def _table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _classes(path: Path, entries: Sequence[Any]) -> None:
    rows = [(index, item.key, str(list(item.instances)), item.category) for index, item in enumerate(entries)]
    _table(path, ("id", "key", "instances", "category"), rows)


def _ego_row(action: Action) -> dict[str, object]:
    middle = (action.start + action.stop) / 200
    return {
        "video_uid": action.video.id,
        "video_dur": action.video.seconds,
        "narration_source": "narration_pass_1",
        "narration_ind": action.index,
        "narration_time": middle,
        "clip_start": action.start / 100,
        "clip_end": action.stop / 100,
        "clip_text": action.scene.narration,
        "tag_verb": str([action.scene.verb]),
        "tag_noun": str([action.scene.noun]),
    }


def _question(
    rng: np.random.Generator, answer: Action, others: Sequence[Action], kind: int
) -> dict[str, object]:
    options = [answer, *others]
    order = [int(place) for place in rng.permutation(len(options))]
    return {
        "answer": order.index(0),
        "query": _ego_row(answer),
        "choices": {str(place): _ego_row(options[source]) for place, source in enumerate(order)},
        "types": kind,
    }


def _take(rng: np.random.Generator, items: Sequence[Any], count: int) -> list[Any]:
    return [items[int(index)] for index in rng.permutation(len(items))[:count]]


def questions(clips: Sequence[Action], options: ToyOptions) -> dict[str, dict[str, object]]:
    """EgoMCQ questions over `clips`: an inter question per clip, and an intra one per clip beside its opposite.

    The query is the answer's narration. No other choice has the answer's (verb class, noun class), so exactly one is
    right. An intra question's choices hold the opposite motion of the same object and three more scenes of the video.
    """
    rng = np.random.default_rng((options.seed, 2, 0))
    videos: dict[str, list[Action]] = {}
    for clip in clips:
        videos.setdefault(clip.video.id, []).append(clip)
    asked = []
    for clip in clips:
        names = _take(rng, [name for name in videos if name != clip.video.id], CHOICES - 1)
        others = [
            _take(rng, [peer for peer in videos[name] if peer.label != clip.label], 1)[0] for name in names
        ]
        asked.append(_question(rng, clip, others, INTER))
    for clip in clips:
        reverse = (OPPOSITES.get(clip.scene.verb), clip.scene.noun)
        peers = [peer for peer in videos[clip.video.id] if peer.label != clip.label]
        twins = [peer for peer in peers if peer.label == reverse]
        if twins:
            rest = [peer for peer in peers if peer is not twins[0]]
            asked.append(_question(rng, clip, [twins[0], *_take(rng, rest, CHOICES - 2)], INTRA))
    return {str(index): item for index, item in enumerate(asked)}


def write_annotations(
    folder: Path, train: Sequence[Action], test: Sequence[Action], options: ToyOptions
) -> dict[str, int]:
    """Write every annotation file into `folder`; returns counts of sentences and questions."""
    for split, clips in (("train", train), ("test", test)):
        stem = f"EPIC_100_retrieval_{split}"
        _table(folder / f"{stem}.csv", CLIP_COLUMNS, map(clip_row, clips))
        _table(folder / f"{stem}_sentence.csv", ("narration_id", "narration"), sentence_rows(clips))
        _table(folder / f"manifest_{split}.csv", ("path", "start", "end", "text"), map(manifest_row, clips))
    _classes(folder / "EPIC_100_verb_classes.csv", VERBS)
    _classes(folder / "EPIC_100_noun_classes.csv", NOUNS)
    asked = questions(test, options)
    (folder / "egomcq.json").write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    kinds = [item["types"] for item in asked.values()]
    return {
        "train_sentences": len(sentence_rows(train)),
        "test_sentences": len(sentence_rows(test)),
        "inter_questions": kinds.count(INTER),
        "intra_questions": kinds.count(INTRA),
    }


def manifest_row(clip: Action) -> tuple[str, str, str, str]:
    """A row of the plain manifest: path,start,end,text."""
    return clip.video.file, stamp_seconds(clip.start), stamp_seconds(clip.stop), clip.scene.narration


def stamp_seconds(hundredths: int) -> str:
    """A time in seconds with two digits, as the plain manifest has it."""
    return f"{hundredths // 100}.{hundredths % 100:02d}"
