"""Which stretches of which files an index holds: sliding windows over a folder, or the rows of a manifest."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
from pathlib import Path

from stvl.core.errors import ConfigError, DataError
from stvl.data.decode import Decoder
from stvl.data.sets.manifest import read_manifest

#: Files of these endings are taken for videos.
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".3gp")
)


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a file: path relative to the folder, first and last second, and a text where a manifest gave one."""

    path: str
    start: float
    end: float
    text: str = ""


def sliding_windows(duration: float, window: float | None, stride: float | None) -> list[tuple[float, float]]:
    """(start, end) of windows over `duration` seconds, the last clipped at the end; the first to reach it is the last."""
    if window is None or stride is None or window >= duration:
        return [(0.0, duration)]
    # Nothing shorter than this can hold a frame of its own at any usual rate.
    least = 1e-3
    out: list[tuple[float, float]] = []
    for number in range(math.ceil(duration / stride)):
        start = number * stride
        end = min(start + window, duration)
        if end - start > least:
            out.append((start, end))
        if end >= duration:
            break
    return out


def slide(
    folder: Path, decoder: Decoder, window: float | None, stride: float | None
) -> tuple[list[Window], dict[str, str]]:
    """Windows over every video under `folder`, and file -> reason for those whose header cannot be read.

    Raises:
        ConfigError: window or stride not above 0.
        DataError: no folder, or no videos in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    stride = window / 2 if stride is None and window is not None else stride
    if (window is not None and not window > 0) or (stride is not None and not stride > 0):
        raise ConfigError(f"window and stride are seconds above 0, found {window} and {stride}")
    files = sorted(
        file for file in folder.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file()
    )
    if not files:
        raise DataError(f"there are no videos under {folder} (endings: {' '.join(sorted(VIDEO_SUFFIXES))})")
    plan: list[Window] = []
    skipped: dict[str, str] = {}
    for file in files:
        name = file.relative_to(folder).as_posix()
        try:
            duration = decoder.probe(str(file)).duration
        except DataError as problem:
            skipped[name] = reason(problem)
            continue
        if not (duration > 0 and math.isfinite(duration)):
            skipped[name] = f"its duration reads {duration}"
            continue
        plan += [Window(name, start, end) for start, end in sliding_windows(duration, window, stride)]
    return plan, skipped


def reason(problem: Exception) -> str:
    """What went wrong, without the path where it is kept apart: the index names the file relative to its folder."""
    return getattr(problem, "reason", None) or str(problem)


def from_manifest(folder: Path, windows: str) -> list[Window]:
    """Windows and texts from a CSV: the path of one, or ``"manifest"`` for the only fitting one in `folder`.

    Raises:
        DataError: no manifest or more than one, or a row that cannot be used.
    """
    table = read_manifest(str(_manifest(folder, windows)), root=str(folder))
    return [
        Window(Path(os.path.relpath(clip.path, folder)).as_posix(), clip.start, clip.end, clip.text)
        for clip in table.clips
    ]


def _manifest(folder: Path, windows: str) -> Path:
    if windows != "manifest":
        if not windows.endswith(".csv"):
            raise ConfigError(f"windows are 'sliding', 'manifest' or the path of a CSV, found {windows!r}")
        return Path(windows)
    found = []
    for file in sorted(folder.glob("*.csv")):
        with open(file, newline="", encoding="utf-8-sig", errors="replace") as lines:
            if {"path", "start", "end", "text"} <= {name.strip() for name in next(csv.reader(lines), [])}:
                found.append(file)
    if len(found) != 1:
        listed = ", ".join(file.name for file in found) or "none"
        raise DataError(
            f"windows='manifest' needs one CSV with columns path,start,end,text in {folder}, found {listed}"
        )
    return found[0]
