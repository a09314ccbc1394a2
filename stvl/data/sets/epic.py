"""EPIC-KITCHENS-100 multi-instance retrieval annotations.

Source: Damen et al., Rescaling Egocentric Vision (2022), section 4.6; the files EPIC_100_retrieval_{train,test}.csv and
EPIC_100_retrieval_test_sentence.csv.
"""

from __future__ import annotations

from pathlib import Path

from stvl.core.errors import DataError
from stvl.data.records import Clip, ClipTable
from stvl.data.sets.rows import check_clips, fill, read_rows

COLUMNS = (
    "narration_id",
    "participant_id",
    "video_id",
    "start_timestamp",
    "stop_timestamp",
    "narration",
    "verb_class",
    "all_noun_classes",
)


def read_epic(
    csv_path: str | Path,
    videos: str | Path,
    pattern: str = "{participant_id}/{video_id}.mp4",
    *,
    check_files: bool = True,
) -> ClipTable:
    """Read a retrieval CSV; the clip's id is the narration id, its nouns are the set ``all_noun_classes``.

    Args:
        csv_path: the file.
        videos: folder of the video files.
        pattern: file of a row below `videos`; names in braces are columns.
        check_files: look that every video file is there.

    Raises:
        DataError: see `read_rows`, `check_clips` and `fill`; an empty narration, a class that is not a whole number.
    """
    clips = []
    for row in read_rows(csv_path, COLUMNS):
        clips.append(
            Clip(
                id=row.text("narration_id"),
                path=str(Path(videos) / fill(pattern, row.fields, row.where)),
                start=row.seconds("start_timestamp"),
                end=row.seconds("stop_timestamp"),
                text=row.text("narration"),
                row=row.number,
                verb=row.whole("verb_class"),
                nouns=row.numbers("all_noun_classes"),
                video=row.text("video_id"),
            )
        )
    return ClipTable(check_clips(clips, str(csv_path), check_files), str(csv_path))


def read_sentences(csv_path: str | Path) -> tuple[tuple[str, str], ...]:
    """Read ``narration_id,narration``: the unique sentences that retrieval runs over, in file order.

    The id is that of one clip with that narration, from which the sentence takes its verb and noun classes.

    Raises:
        DataError: see `read_rows`; an empty field, an id that is there twice.
    """
    seen: dict[str, str] = {}
    for row in read_rows(csv_path, ("narration_id", "narration")):
        name = row.text("narration_id")
        if name in seen:
            raise DataError(f"{row.where}: the narration_id {name!r} is there twice; ids must be unique")
        seen[name] = row.text("narration")
    return tuple(seen.items())
