"""Several views of one clip: windows or offsets in time, crops along the longer side, and the mean of their scores."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np
from jaxtyping import Float64, UInt8

from stvl.core.config import config
from stvl.core.errors import ConfigError, DataError
from stvl.data.augment import EvalTransform
from stvl.data.decode import Decoder, PyAVDecoder
from stvl.data.pipeline import refuse_short
from stvl.data.records import Clip, ClipTable
from stvl.eval.classifier import Classifier, batch_logits
from stvl.eval.embed import Progress
from stvl.eval.metrics.accuracy import Averaging, average_views, view_name
from stvl.eval.share import joined


@config
class Views:
    """How often a clip is looked at, and how the scores of the looks become one.

    Attributes:
        times: views in time.
        crops: views in space: 1, the transform's own, or 3 squares at the ends and the middle of the longer side.
        sampling: ``segments``: the clip is cut into as many equal segments as the model takes frames, and view i of n
            looks at ``(i + 1/2) / n`` of each (TSN; Something-Something's 2x3); ``dense``: windows of ``frames * stride``
            frames of the video, evenly spaced from the clip's begin to its end (Kinetics' 10x3, 5x3).
        stride: frames of the video between two frames of a view, for ``dense``.
        averaging: mean of the views' ``softmax`` or of their ``logits``.
    """

    times: int = 1
    crops: Literal[1, 3] = 1
    sampling: Literal["segments", "dense"] = "segments"
    stride: float = 4.0
    averaging: Averaging = "softmax"

    def __post_init__(self) -> None:
        if self.crops not in (1, 3):
            raise ConfigError(f"crops is 1 or 3, found {self.crops}")
        if self.sampling not in ("segments", "dense") or self.averaging not in ("softmax", "logits"):
            raise ConfigError(
                f"sampling is 'segments' or 'dense' and averaging 'softmax' or 'logits', found {self.sampling!r} and"
                f" {self.averaging!r}"
            )
        if not self.stride > 0:
            raise ConfigError(f"stride is a number of frames above 0, found {self.stride}")
        view_name(self.times, self.crops)

    @property
    def name(self) -> str:
        """``TxS``."""
        return view_name(self.times, self.crops)

    def describe(self, frames: int) -> dict[str, str]:
        """The fields of a protocol card that say how the scores of a clip came about."""
        how = {
            "segments": f"{self.times} offsets in each of {frames} equal segments of the clip"
            if self.times > 1
            else f"the centre of each of {frames} equal segments of the clip",
            "dense": f"{self.times} windows of {frames} frames, every {self.stride:g} frames of the video",
        }[self.sampling]
        mean = (
            "none, one view" if self.name == "1x1" else f"mean of the {self.averaging} of {self.name} views"
        )
        return {"views": self.name, "sampling": how, "averaging": mean}


@dataclasses.dataclass(frozen=True)
class Scores:
    """What `score_views` found for each head, one row a clip.

    Attributes:
        mean: of all views; probabilities or logits, as the views' `averaging` says.
        single: of the one view 1x1 (the same array where there is no other).
        coincide: clips whose views in time are all the same, for their window is as long as they are.
    """

    mean: dict[str, Float64[np.ndarray, "clips classes"]]
    single: dict[str, Float64[np.ndarray, "clips classes"]]
    coincide: int


def view_times(
    clip: tuple[float, float], frames: int, views: Views, fps: float = 0.0
) -> Float64[np.ndarray, "times t"]:
    """Seconds of the frames of each view in time of a clip (first and last second); `fps` is needed for ``dense``.

    Raises:
        DataError: a clip that ends before it begins, or ``dense`` without a frame rate.
    """
    start, end = clip
    if not start < end:
        raise DataError(f"a clip must end after it starts, found start {start:g} s and end {end:g} s")
    count, place = views.times, np.arange(frames)
    if views.sampling == "segments":
        offset = (np.arange(count) + 0.5) / count
        return start + (place[None, :] + offset[:, None]) * ((end - start) / frames)
    if not fps > 0:
        raise DataError(f"windows of frames need the video's frame rate, found {fps:g}")
    window = min(frames * views.stride / fps, end - start)
    share = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
    begin = start + share * (end - start - window)
    return begin[:, None] + (place[None, :] + 0.5) * (window / frames)


def crop_frames(
    pictures: UInt8[np.ndarray, "t y x c"], transform: EvalTransform, crops: int
) -> list[UInt8[np.ndarray, "t s s c"]]:
    """The views in space of some frames: 1, or squares at both ends and the middle of the longer side.

    Raises:
        ConfigError: three crops of a transform that squashes the whole frame.
    """
    if crops == 1:
        return [transform(pictures)]
    if transform.resize != "short_side":
        raise ConfigError(
            "three crops need a transform with resize 'short_side'; 'squash' sees the whole frame"
        )
    height, width = pictures.shape[1:3]
    side, spare = min(height, width), abs(height - width)
    out = []
    for offset in (0, round(spare / 2), spare):
        top, left = (offset, 0) if height > width else (0, offset)
        out.append(transform(pictures[:, top : top + side, left : left + side]))
    return out


def score_views(
    model: Classifier,
    table: ClipTable,
    views: Views,
    *,
    batch: int = 32,
    threads: int = 2,
    progress: Progress | None = None,
    decoder: Decoder | None = None,
) -> Scores:
    """Score every view of every clip, and once the single view 1x1; damage stops it, nothing is substituted.

    Raises:
        ConfigError: no clips, or logits of another shape than before.
        DataError: a damaged clip.
    """
    if not len(table):
        raise ConfigError(f"there are no clips to score in {table.source}")
    work = functools.partial(
        _score_rows, model, table, views, batch=batch, threads=threads, progress=progress, decoder=decoder
    )
    found = joined(len(table), work)
    by_kind: dict[str, dict[str, np.ndarray]] = {"mean": {}, "single": {}}
    for name, rows in found.items():
        kind, _, head = name.partition("/")
        if head:
            by_kind[kind][head] = rows
    mean = by_kind["mean"]
    return Scores(mean, mean if views.name == "1x1" else by_kind["single"], int(found["coincide"].sum()))


def _score_rows(
    model: Classifier,
    table: ClipTable,
    views: Views,
    rows: range,
    *,
    batch: int,
    threads: int,
    progress: Progress | None,
    decoder: Decoder | None,
) -> dict[str, np.ndarray]:
    """``mean/HEAD`` and ``single/HEAD`` of some rows of a table, and whether the views of each ``coincide``."""
    part = table if len(rows) == len(table) else table.subset(list(rows))
    scores: dict[str, list[np.ndarray]] = {}
    coincide: list[bool] = []
    for done, (pictures, same) in enumerate(_looks(model, part, views, threads, decoder), 1):
        coincide.append(same)
        for head, found in batch_logits(model, pictures, part[done - 1].id, batch).items():
            rest = found[1:] if len(found) > 1 else found
            scores.setdefault(f"mean/{head}", []).append(average_views(rest[None], views.averaging)[0])
            if views.name != "1x1":
                single = average_views(found[None, :1], views.averaging)[0]
                scores.setdefault(f"single/{head}", []).append(single)
        if progress:
            progress(done, len(part))
    return {name: np.stack(rows) for name, rows in scores.items()} | {"coincide": np.array(coincide)}


def _looks(
    model: Classifier, table: ClipTable, views: Views, threads: int, decoder: Decoder | None
) -> Iterator[tuple[np.ndarray, bool]]:
    """(views of the clip, the single one first; whether its views in time are all the same) in table order."""
    decoder = PyAVDecoder() if decoder is None else decoder
    ahead = 2 * threads
    with ThreadPoolExecutor(threads, thread_name_prefix="stvl-views") as pool:
        waiting: list[Future[tuple[np.ndarray, bool]]] = []
        try:
            for clip in (*table.clips, *[None] * ahead):
                if clip is not None:
                    waiting.append(pool.submit(_look, decoder, model, views, clip, table.source))
                if waiting and (len(waiting) > ahead or clip is None):
                    yield waiting.pop(0).result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _look(
    decoder: Decoder, model: Classifier, views: Views, clip: Clip, source: str
) -> tuple[np.ndarray, bool]:
    try:
        info = decoder.probe(clip.path)
        refuse_short(clip, info)
        one = Views(sampling=views.sampling, stride=views.stride)
        plans = [one] if views.name == "1x1" else [one, views]
        times = [view_times((clip.start, clip.end), model.frames, plan, info.fps) for plan in plans]
        pictures = decoder.frames(clip.path, np.concatenate([plan.reshape(-1) for plan in times]))
    except DataError as problem:
        raise DataError(f"row {clip.row} of {source}: {problem}") from problem
    out, first = [], 0
    for plan, moments in zip(plans, times, strict=True):
        for _ in moments:
            part = pictures[first : first + model.frames]
            out += crop_frames(part, model.transform, plan.crops)
            first += model.frames
    same = len(times[-1]) > 1 and bool(np.ptp(times[-1], axis=0).max() < 1e-6)
    return np.stack(out), same
