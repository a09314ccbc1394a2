"""What a dataset is to stvl: a table of clips, each a stretch of a video file with a text and, where known, class codes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One annotated stretch of one video file.

    Attributes:
        id: unique name of the clip inside its table (narration id, or ``row N``).
        path: the video file, joined with the table's folder.
        start: first second.
        end: last second, > start.
        text: narration or caption.
        row: 1-based row in the annotation file, header not counted, for error messages.
        verb: verb class, -1 where unknown.
        nouns: set of noun classes, empty where unknown.
        video: name of the recording that the clip was cut from (EK-100 ``video_id``, Ego4D ``video_uid``).
    """

    id: str
    path: str
    start: float
    end: float
    text: str
    row: int = 0
    verb: int = -1
    nouns: tuple[int, ...] = ()
    video: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ClipTable:
    """An ordered, immutable list of clips and the annotation file that it was read from."""

    clips: tuple[Clip, ...]
    source: str

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        return self.clips[index]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(clip.text for clip in self.clips)

    @property
    def sha256(self) -> str:
        """Hash over every field of every clip but the folder of its file: the identity of the data in a protocol card."""
        digest = hashlib.sha256()
        for clip in self.clips:
            row = [
                clip.id,
                Path(clip.path).name,
                clip.start,
                clip.end,
                clip.text,
                clip.verb,
                list(clip.nouns),
                clip.video,
            ]
            digest.update(json.dumps(row, ensure_ascii=False).encode())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int]) -> ClipTable:
        """The clips at `indices`, in that order."""
        return ClipTable(tuple(self.clips[index] for index in indices), self.source)
