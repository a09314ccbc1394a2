"""Where clips come from, as configs: what to read, and a `load` that reads it."""

from __future__ import annotations

from pathlib import Path

from stvl.core.config import config
from stvl.core.errors import DataError
from stvl.data.records import ClipTable
from stvl.data.sets.epic import read_epic
from stvl.data.sets.manifest import read_manifest

#: Endings of the files that count as videos in a folder.
VIDEO_SUFFIXES = frozenset(
    (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
)


@config
class ManifestSource:
    """A CSV file ``path,start,end,text``.

    Attributes:
        csv: the file.
        root: folder that paths are relative to; None: the CSV file's folder.
        exclude: names of video files whose rows are left out.
    """

    csv: str
    root: str | None = None
    exclude: tuple[str, ...] = ()

    def load(self) -> ClipTable:
        """Read the table. Raises: DataError."""
        return read_manifest(self.csv, self.root, exclude=self.exclude)


@config
class EpicSource:
    """An EPIC-KITCHENS-100 retrieval CSV.

    Attributes:
        csv: the file.
        videos: folder of the videos.
        pattern: file of a row below `videos`; names in braces are columns.
    """

    csv: str
    videos: str
    pattern: str = "{participant_id}/{video_id}.mp4"

    def load(self) -> ClipTable:
        """Read the table. Raises: DataError."""
        return read_epic(self.csv, self.videos, self.pattern)


def find_videos(folder: str | Path) -> list[Path]:
    """All video files in a folder and the folders below it, by their endings, sorted; hidden ones are left out.

    Raises:
        DataError: the folder is not there.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
