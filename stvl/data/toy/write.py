"""Writes a toy world to disk: videos, annotation files, and ``toy.json`` with the options that made it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stvl.core.config import diff, from_dict, to_dict
from stvl.core.errors import DataError
from stvl.data.toy.annotations import write_annotations
from stvl.data.toy.plan import VideoSpec, actions, plan_videos
from stvl.data.toy.render import render_scene
from stvl.data.toy.video import write_video
from stvl.data.toy.world import ToyOptions

MARKER = "toy.json"
# Raise it when frames or annotations of equal options change: older folders are then not taken for the same world.
VERSION = 1

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class ToySummary:
    """What a toy world holds and where.

    Attributes:
        root: its folder.
        counts: videos, clips, sentences, questions, frames by name.
        paths: annotation files and the folders of training and test videos by name.
        seconds: time that writing took; 0 for a world that was there.
        reused: whether an equal world was found and left as it is.
    """

    root: Path
    counts: dict[str, int]
    paths: dict[str, Path]
    seconds: float
    reused: bool

    def __str__(self) -> str:
        counts = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in self.counts.items())
        how = "reused (same options)" if self.reused else f"written in {self.seconds:.1f} s"
        return f"toy world {self.root}: {how}; {counts}"


def world_paths(root: Path) -> dict[str, Path]:
    """The files of a toy world by name. EgoMCQ questions are over the videos in ``test_videos``."""
    names = {
        "train": "EPIC_100_retrieval_train.csv",
        "test": "EPIC_100_retrieval_test.csv",
        "train_sentence": "EPIC_100_retrieval_train_sentence.csv",
        "test_sentence": "EPIC_100_retrieval_test_sentence.csv",
        "verb_classes": "EPIC_100_verb_classes.csv",
        "noun_classes": "EPIC_100_noun_classes.csv",
        "egomcq": "egomcq.json",
        "train_manifest": "manifest_train.csv",
        "test_manifest": "manifest_test.csv",
        "videos": "videos",
        "train_videos": "videos/P01",
        "test_videos": "videos/P02",
    }
    return {name: root / path for name, path in names.items()}


def _write_one(job: tuple[VideoSpec, str, ToyOptions]) -> int:
    video, root, options = job
    scenes = (render_scene(scene, options.size) for scene in video.scenes)
    return write_video(Path(root) / video.file, scenes, video.fps, options)


def _write_all(jobs: list[tuple[VideoSpec, str, ToyOptions]], workers: int) -> Iterator[int]:
    if workers <= 1:
        yield from map(_write_one, jobs)
        return
    # A forked child of a process that runs threads can hang; a spawned one imports this room only, which is quick.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_write_one, jobs, chunksize=4)


def _read_marker(root: Path) -> dict[str, object] | None:
    """The content of ``toy.json``, or None where there is no such file or it is no toy world's."""
    try:
        data = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and data.get("kind") == "stvl toy world" else None


def _reusable(root: Path, options: ToyOptions, overwrite: bool) -> ToySummary | None:
    """The world at `root` if it can stand for `options`; None if one is to be written; DataError if neither."""
    if not root.exists():
        return None
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder for the toy world, found a file; name another path")
    if not any(root.iterdir()):
        return None
    marker = _read_marker(root)
    if marker is None:
        raise DataError(
            f"{root}: expected an empty folder or a toy world ({MARKER}), found other files, which would be lost; "
            "name another folder"
        )
    if overwrite:
        return None
    if marker.get("version") != VERSION:
        raise DataError(
            f"{root}: holds a toy world of version {marker.get('version')}, this code writes version {VERSION}; "
            "overwrite it or name another folder"
        )
    stored = from_dict(marker["options"])
    if stored != options:
        changes = ", ".join(
            f"{path} = {old!r} there, {new!r} asked" for path, old, new in diff(stored, options)
        )
        raise DataError(
            f"{root}: holds a toy world of other options ({changes}); overwrite it or name another folder"
        )
    counts = {str(name): int(value) for name, value in dict(marker["counts"]).items()}  # type: ignore[call-overload]
    videos = sum(1 for _ in (root / "videos").rglob("*.mp4"))
    lacking = [path.name for path in world_paths(root).values() if not path.exists()]
    if lacking or videos != counts["train_videos"] + counts["test_videos"]:
        what = ", ".join(lacking) or f"{counts['train_videos'] + counts['test_videos'] - videos} videos"
        raise DataError(f"{root}: this toy world lacks {what}; overwrite it or name another folder")
    return ToySummary(root, counts, world_paths(root), 0.0, True)


def _install(made: Path, root: Path) -> None:
    """Put the finished folder `made` at `root`, whose old content (an empty folder or a toy world) goes away."""
    if not root.exists():
        made.rename(root)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{root.name}.old-", dir=root.parent))
    os.replace(root, old / root.name)
    made.rename(root)
    shutil.rmtree(old)


def write_world(
    out: str | Path,
    options: ToyOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    workers: int = 1,
) -> ToySummary:
    """Render a toy world into the folder `out`: H.264 videos and annotations in EK-100, EgoMCQ and manifest format.

    Everything is made in a folder beside `out` and moved there at the end: an interrupted run leaves no half world.
    Equal options give equal annotation files byte by byte and equal frames bit by bit, whatever `workers` is.

    Args:
        out: the folder; new, empty, or a toy world.
        options: sizes, difficulty and seed; defaults where None.
        overwrite: replace a toy world that is there. Without it an equal one is kept and another one is an error.
        progress: called as ``progress(videos done, videos in all)``.
        workers: processes that render; 1 renders in this one.

    Raises:
        DataError: `out` holds other files or a toy world of other options; a video cannot be written.
    """
    options = ToyOptions() if options is None else options
    root = Path(out).expanduser().absolute()
    known = _reusable(root, options, overwrite)
    if known is not None:
        return known
    began = time.monotonic()
    root.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{root.name}.partial-", dir=root.parent))
    made.chmod(0o755)
    try:
        counts = _fill(made, options, progress, workers)
        _install(made, root)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return ToySummary(root, counts, world_paths(root), time.monotonic() - began, False)


def _fill(folder: Path, options: ToyOptions, progress: Progress | None, workers: int) -> dict[str, int]:
    train, test = plan_videos(options, "train"), plan_videos(options, "test")
    clips = {"train": actions(train), "test": actions(test)}
    for name in ("train_videos", "test_videos"):
        world_paths(folder)[name].mkdir(parents=True)
    written = write_annotations(folder, clips["train"], clips["test"], options)
    jobs = [(video, str(folder), options) for video in train + test]
    frames = 0
    for done, count in enumerate(_write_all(jobs, workers), start=1):
        frames += count
        if progress is not None:
            progress(done, len(jobs))
    counts = {
        "train_videos": len(train),
        "train_clips": len(clips["train"]),
        "test_videos": len(test),
        "test_clips": len(clips["test"]),
        **written,
        "frames": frames,
    }
    marker = {"kind": "stvl toy world", "version": VERSION, "options": to_dict(options), "counts": counts}
    (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    return counts
