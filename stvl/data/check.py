"""Look at every video file before a run does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from stvl.core.errors import DataError
from stvl.data.decode import DecodeError, Decoder, PyAVDecoder, VideoInfo
from stvl.data.pipeline import refuse_short
from stvl.data.records import Clip, ClipTable
from stvl.data.sets.manifest import read_manifest
from stvl.data.sources import find_videos

#: Names of the annotation files that `check_folder` looks for.
MANIFESTS = ("manifest.csv", "captions.csv")
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: the file, the row of the annotation that names it (0: none does), and why."""

    path: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}{f' (row {self.row})' if self.row else ''}: {self.reason}"


@dataclasses.dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found.

    Attributes:
        good: files without a problem, sorted.
        bad: problems, by file and row.
    """

    good: tuple[str, ...]
    bad: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.bad


def check_table(
    table: ClipTable,
    decoder: Decoder | None = None,
    *,
    workers: int = 2,
    deep: bool = False,
    progress: Progress | None = None,
) -> CheckReport:
    """Open every file; of every clip decode the first, middle and last picture and compare it with the file's length.

    Args:
        table: the clips.
        decoder: how files are read.
        workers: files that are looked at at a time (threads).
        deep: decode every picture of every file too.
        progress: called with (files done, files in all).
    """
    files: dict[str, list[Clip]] = {}
    for clip in table.clips:
        files.setdefault(clip.path, []).append(clip)
    return _check(files, PyAVDecoder() if decoder is None else decoder, workers, deep, progress)


def check_folder(
    folder: str | Path,
    decoder: Decoder | None = None,
    *,
    workers: int = 2,
    deep: bool = False,
    progress: Progress | None = None,
) -> CheckReport:
    """Check all videos in a folder, and the clips of the ``manifest.csv`` or ``captions.csv`` in it if there is one.

    Raises:
        DataError: no such folder, nothing in it, or a CSV file that cannot be read.
    """
    files: dict[str, list[Clip]] = {str(path): [] for path in find_videos(folder)}
    for name in MANIFESTS:
        path = Path(folder) / name
        if path.is_file():
            for clip in read_manifest(path, check_files=False).clips:
                files.setdefault(clip.path, []).append(clip)
            break
    if not files:
        raise DataError(f"{folder}: no video file")
    return _check(files, PyAVDecoder() if decoder is None else decoder, workers, deep, progress)


def _check(
    files: dict[str, list[Clip]], decoder: Decoder, workers: int, deep: bool, progress: Progress | None
) -> CheckReport:
    good: list[str] = []
    bad: list[Problem] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="stvl-check") as pool:
        jobs = [
            (path, pool.submit(_file, path, clips, decoder, deep)) for path, clips in sorted(files.items())
        ]
        for done, (path, job) in enumerate(jobs, start=1):
            problems = job.result()
            bad.extend(problems)
            if not problems:
                good.append(path)
            if progress is not None:
                progress(done, len(jobs))
    return CheckReport(tuple(good), tuple(bad))


def _file(path: str, clips: Sequence[Clip], decoder: Decoder, deep: bool) -> list[Problem]:
    first = min((clip.row for clip in clips), default=0)
    try:
        info = decoder.probe(path)
        _pictures(decoder, path, 0.0, info.duration, info)
        if deep:
            _every_picture(decoder, path, info)
    except DecodeError as problem:
        more = f" (and {len(clips) - 1} more clips of this file)" if len(clips) > 1 else ""
        return [Problem(path, first, problem.reason + more)]
    problems = []
    for clip in sorted(clips, key=lambda clip: clip.row):
        try:
            _clip(decoder, clip, info)
        except DecodeError as problem:
            problems.append(Problem(path, clip.row, problem.reason))
    return problems


def _clip(decoder: Decoder, clip: Clip, info: VideoInfo) -> None:
    refuse_short(clip, info)
    # The header's duration and the annotator's clock may disagree by one frame.
    if clip.end > info.duration + 1.0 / info.fps + 1e-3:
        raise DecodeError(clip.path, f"the clip ends at {clip.end:.2f} s, the video at {info.duration:.2f} s")
    _pictures(decoder, clip.path, clip.start, clip.end, info)


def _pictures(decoder: Decoder, path: str, start: float, end: float, info: VideoInfo) -> None:
    last = max(start, min(end, info.duration) - 0.5 / info.fps)
    decoder.frames(path, np.array([start, (start + last) / 2, last]))


def _every_picture(decoder: Decoder, path: str, info: VideoInfo) -> None:
    if isinstance(decoder, PyAVDecoder):
        decoder.scan(path)
        return
    step = 64 / info.fps
    for first in np.arange(0.0, info.duration, step):
        last = min(first + step, info.duration - 0.5 / info.fps)
        decoder.frames(path, np.arange(first, last, 1.0 / info.fps))
