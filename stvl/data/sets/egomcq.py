"""EgoMCQ questions: a narration and five clips, one of which shows it.

Source: Lin et al., Egocentric Video-Language Pretraining (2022), section 3.3; the file egomcq.json of its release:
``{"0": {"answer": 3, "query": {clip}, "choices": {"0": {clip}, ... "4": {clip}}, "types": 1}, ...}`` in which a clip
holds ``video_uid``, ``clip_start``, ``clip_end`` (seconds in the video) and ``clip_text``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from stvl.core.errors import DataError, nearest
from stvl.data.records import Clip
from stvl.data.sets.rows import fill


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question.

    Attributes:
        id: its key in the file.
        query: the narration.
        choices: the clips to choose from; a clip's id is ``question/choice``, its row the question's place (1-based).
        answer: which choice shows the query.
        kind: ``inter``: every choice is from another video; ``intra`` otherwise.
        stated_type: what the file says in ``types``, whose meaning differs between releases; -1 where it says nothing.
    """

    id: str
    query: str
    choices: tuple[Clip, ...]
    answer: int
    kind: Literal["inter", "intra"]
    stated_type: int = -1


def read_questions(
    json_path: str | Path, videos: str | Path, pattern: str = "{video_uid}.mp4", *, check_files: bool = True
) -> tuple[Question, ...]:
    """Read an EgoMCQ file; starts before the video's begin become 0.

    Args:
        json_path: the file.
        videos: folder of the video files.
        pattern: file of a clip below `videos`; names in braces are keys of the clip.
        check_files: look that every video file is there.

    Raises:
        DataError: no such file, no JSON, a key that is missing (with the nearest), fewer than two choices, an answer
            that is no choice, ``clip_start >= clip_end``, a video file that is not there; each names the question.
    """
    path = Path(json_path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (ValueError, OSError) as problem:
        raise DataError(f"{path}: is not a JSON file ({problem})") from problem
    if not isinstance(data, dict) or not data:
        raise DataError(
            f"{path}: expected an object of questions by id, found {type(data).__name__} of {len(data or ())}"
        )
    place = _Place(Path(videos), pattern, check_files, {})
    return tuple(
        _question(str(name), item, number, f"{path}, question {name}", place)
        for number, (name, item) in enumerate(data.items(), start=1)
    )


@dataclasses.dataclass(frozen=True)
class _Place:
    videos: Path
    pattern: str
    check_files: bool
    known: dict[str, bool]

    def find(self, item: Mapping[str, Any], where: str) -> str:
        path = str(self.videos / fill(self.pattern, item, where))
        if self.check_files and path not in self.known:
            self.known[path] = Path(path).is_file()
        if not self.known.get(path, True):
            raise DataError(f"{where}: no video file {path}")
        return path


def _question(name: str, item: Any, number: int, where: str, place: _Place) -> Question:
    choices = _get(item, "choices", where)
    if not isinstance(choices, dict) or set(choices) != {str(index) for index in range(len(choices))}:
        raise DataError(f'{where}: choices are an object with the keys "0", "1", ..., found {choices!r:.200}')
    clips = tuple(
        _clip(f"{name}/{index}", choices[str(index)], number, f"{where}, choice {index}", place)
        for index in range(len(choices))
    )
    answer = _number(item, "answer", where)
    if len(clips) < 2 or answer not in range(len(clips)):
        raise DataError(f"{where}: answer {answer:g} is not one of {len(clips)} choices")
    query = str(_get(_get(item, "query", where), "clip_text", f"{where}, query")).strip()
    if not query:
        raise DataError(f"{where}: the query's clip_text is empty")
    stated = int(_number(item, "types", where)) if "types" in item else -1
    kind = "inter" if len({clip.video for clip in clips}) == len(clips) else "intra"
    return Question(id=name, query=query, choices=clips, answer=int(answer), kind=kind, stated_type=stated)


def _clip(name: str, item: Any, number: int, where: str, place: _Place) -> Clip:
    start, end = max(0.0, _number(item, "clip_start", where)), _number(item, "clip_end", where)
    if not start < end:
        raise DataError(f"{where}: clip_start {start:g} s is not before clip_end {end:g} s")
    video = str(_get(item, "video_uid", where))
    path = place.find(item, where)
    text = str(_get(item, "clip_text", where)).strip()
    return Clip(id=name, path=path, start=start, end=end, text=text, row=number, video=video)


def _get(item: Any, key: str, where: str) -> Any:
    if not isinstance(item, dict):
        raise DataError(f"{where}: expected an object, found {item!r:.80}")
    if key not in item:
        raise DataError(f"{where}: {key!r} is missing{nearest(key, map(str, item))}")
    return item[key]


def _number(item: Any, key: str, where: str) -> float:
    value = _get(item, key, where)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {key} is a number, found {value!r:.80}")
    return number
