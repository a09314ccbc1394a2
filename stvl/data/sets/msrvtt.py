"""Videos with one caption or many: MSR-VTT and lists like it.

Source: Xu et al., "MSR-VTT", 2016 (``MSRVTT_data.json``: ``{"videos": [{"video_id", "split", ...}], "sentences":
[{"video_id", "caption", "sen_id"}]}``); the 1k-A test list of Yu et al., "A Joint Sequence Fusion Model", 2018
(``MSRVTT_JSFUSION_test.csv``: ``key,vid_key,video_id,sentence``, 1,000 videos with one caption each).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from stvl.core.errors import DataError
from stvl.data.records import Clip, ClipTable
from stvl.data.sets.labelled import Duration, field, probed, read_json
from stvl.data.sets.rows import check_clips, fill, read_rows


@dataclasses.dataclass(frozen=True, slots=True)
class Captions:
    """Videos, texts, and for each text the video that it was written for (a place in `table`)."""

    table: ClipTable
    texts: tuple[str, ...]
    video: tuple[int, ...]


def read_caption_list(
    csv_path: str | Path,
    videos: str | Path,
    pattern: str = "{video_id}.mp4",
    *,
    duration: Duration | None = None,
) -> Captions:
    """Read a CSV with the columns ``video_id,sentence``, such as the 1k-A list; a video may have several rows.

    Args:
        csv_path: the file.
        videos: folder of the video files.
        pattern: file of a row below `videos`; names in braces are columns.
        duration: file to seconds; its header by default.

    Raises:
        DataError: see `read_rows`; an empty field, a video file that is not there or cannot be read.
    """
    pairs = []
    for row in read_rows(csv_path, ("video_id", "sentence")):
        path = str(Path(videos) / fill(pattern, row.fields, row.where))
        pairs.append((row.number, row.text("video_id"), path, row.text("sentence")))
    return _captions(pairs, str(csv_path), duration)


def read_msrvtt(
    json_path: str | Path,
    videos: str | Path,
    split: str = "test",
    pattern: str = "{video_id}.mp4",
    *,
    duration: Duration | None = None,
) -> Captions:
    """Read the videos of a split of ``MSRVTT_data.json`` (or ``videodatainfo_2017.json``) with all their captions.

    The ``test`` of this file is the full test set (2,990 videos, 20 captions each), whose scores are not those of 1k-A.

    Raises:
        DataError: no such file or split, a caption of no video, a video without a caption, a missing video file.
    """
    data = read_json(json_path, dict)
    splits: dict[str, str] = {}
    for number, item in enumerate(data.get("videos") or [], 1):
        where = f"{json_path}, video {number}"
        splits[field(item, "video_id", where)] = field(item, "split", where)
    if split not in splits.values():
        found = ", ".join(sorted(set(splits.values()))) or "none"
        raise DataError(f"{json_path}: no video is of the split {split!r}; there are: {found}")
    pairs = []
    for number, item in enumerate(data.get("sentences") or [], 1):
        where = f"{json_path}, sentence {number}"
        name = field(item, "video_id", where)
        if name not in splits:
            raise DataError(f"{where}: the video {name!r} is not listed")
        if splits[name] == split:
            path = str(Path(videos) / fill(pattern, {"video_id": name}, where))
            pairs.append((number, name, path, field(item, "caption", where)))
    silent = {name for name, of in splits.items() if of == split} - {name for _, name, _, _ in pairs}
    if silent:
        raise DataError(
            f"{json_path}: {len(silent)} videos of {split!r} have no sentence, first {min(silent)}"
        )
    return _captions(pairs, str(json_path), duration)


def _captions(pairs: Sequence[tuple[int, str, str, str]], source: str, duration: Duration | None) -> Captions:
    length, places, clips = duration or probed, {}, []
    for row, name, path, text in pairs:
        if name in places:
            continue
        if duration is None and not Path(path).is_file():
            raise DataError(f"{source}, row {row}: no video file {path}")
        places[name] = len(clips)
        clips.append(Clip(id=name, path=path, start=0.0, end=length(path), text=text, row=row, video=name))
    table = ClipTable(check_clips(clips, source, check_files=False), source)
    texts = tuple(text for _, _, _, text in pairs)
    return Captions(table, texts, tuple(places[name] for _, name, _, _ in pairs))
