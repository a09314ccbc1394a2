"""The plain manifest: a CSV file with the columns path, start, end, text."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from stvl.data.records import Clip, ClipTable
from stvl.data.sets.rows import check_clips, read_rows

COLUMNS = ("path", "start", "end", "text")


def read_manifest(
    csv_path: str | Path,
    root: str | Path | None = None,
    *,
    exclude: Collection[str] = (),
    check_files: bool = True,
) -> ClipTable:
    """Read ``path,start,end,text`` rows (seconds or hh:mm:ss); further columns are ignored.

    Args:
        csv_path: the file.
        root: folder that paths are relative to; the CSV file's own folder by default.
        exclude: names of video files whose rows are left out.
        check_files: look that every video file is there.

    Raises:
        DataError: see `read_rows` and `check_clips`; an empty text or a time that is none.
    """
    folder = Path(csv_path).parent if root is None else Path(root)
    clips = []
    for row in read_rows(csv_path, COLUMNS):
        name = row.text("path")
        clips.append(
            Clip(
                id=f"row {row.number}",
                path=str(folder / name),
                start=row.seconds("start"),
                end=row.seconds("end"),
                text=row.text("text"),
                row=row.number,
                video=str(Path(name).with_suffix("")),
            )
        )
    return ClipTable(check_clips(clips, str(csv_path), check_files, exclude), str(csv_path))
