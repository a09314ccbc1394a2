"""EPIC-KITCHENS-100 action recognition: one verb class and one noun class a clip.

Source: Damen et al., "Rescaling Egocentric Vision", 2022, section 4.1; the files EPIC_100_{train,validation}.csv,
EPIC_100_{verb,noun}_classes.csv, EPIC_100_unseen_participant_ids_validation.csv and EPIC_100_tail_{verbs,nouns}.csv.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from stvl.core.errors import DataError
from stvl.data.records import ClipTable
from stvl.data.sets.epic import read_epic
from stvl.data.sets.rows import read_rows


@dataclasses.dataclass(frozen=True, slots=True)
class EpicActions:
    """Clips with one verb, one noun (the first of the narration) and the participant each."""

    table: ClipTable
    verbs: Int64[np.ndarray, " clips"]
    nouns: Int64[np.ndarray, " clips"]
    participants: tuple[str, ...]


def read_epic_actions(
    csv_path: str | Path,
    videos: str | Path,
    pattern: str = "{participant_id}/{video_id}.mp4",
    *,
    check_files: bool = True,
) -> EpicActions:
    """Read a recognition (or retrieval) CSV with its column ``noun_class``.

    Raises:
        DataError: as `stvl.data.sets.epic.read_epic`; a noun class that is not a whole number.
    """
    table = read_epic(csv_path, videos, pattern, check_files=check_files)
    rows = list(read_rows(csv_path, ("noun_class", "participant_id")))
    return EpicActions(
        table=table,
        verbs=np.array([clip.verb for clip in table.clips], np.int64),
        nouns=np.array([row.whole("noun_class") for row in rows], np.int64),
        participants=tuple(row.text("participant_id") for row in rows),
    )


def read_epic_classes(csv_path: str | Path) -> tuple[str, ...]:
    """The names of ``id,key,...`` rows as people say them: ``put-down`` -> "put down", ``cupboard:door`` -> "door cupboard".

    A key with colons is written head first, so its parts are turned round.

    Raises:
        DataError: see `read_rows`; ids that are not 0, 1, 2, ... in order.
    """
    names = []
    for row in read_rows(csv_path, ("id", "key")):
        if row.whole("id") != len(names):
            raise DataError(
                f"{row.where}: ids run 0, 1, 2, ...; expected {len(names)}, found {row.whole('id')}"
            )
        parts = row.text("key").split(":")
        names.append(" ".join(reversed(parts)).replace("-", " "))
    return tuple(names)


def read_epic_column(csv_path: str | Path, column: str) -> tuple[str, ...]:
    """One column of a small file: ``participant_id`` of unseen participants, ``verb`` or ``noun`` of tail classes.

    Raises:
        DataError: see `read_rows`; an empty field.
    """
    return tuple(row.text(column) for row in read_rows(csv_path, (column,)))
