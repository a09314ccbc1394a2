"""An index: embeddings of windows over a folder of videos, to be searched by text."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from stvl.core.errors import ConfigError, DataError
from stvl.data.decode import Decoder, PyAVDecoder
from stvl.data.sampling import segment_times
from stvl.eval.card import input_card, versions
from stvl.eval.embed import Progress, open_npz
from stvl.eval.encoders import Encoders, embed_batch
from stvl.eval.result import atomic_write
from stvl.eval.windows import Window, from_manifest, reason, slide

_KIND = "an index of stvl search"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """Windows and their embeddings.

    Attributes:
        embeddings: of length 1, one a window.
        path: file of each window, relative to `folder`.
        start: first second.
        end: last second.
        text: from the manifest, else empty.
        skipped: (file, reason) for all that could not be decoded.
        folder: that was indexed.
        card: how the embeddings were made.
    """

    embeddings: Float32[np.ndarray, "b o"]
    path: tuple[str, ...]
    start: Float64[np.ndarray, " b"]
    end: Float64[np.ndarray, " b"]
    text: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    folder: str
    card: dict[str, Any]

    def __len__(self) -> int:
        return len(self.path)

    def save(self, path: str | Path) -> None:
        """Write to an .npz of plain arrays and one JSON text, all or nothing.

        Raises:
            OSError: the folder cannot be written to.
        """
        about = {"kind": "index", "skipped": self.skipped, "folder": self.folder, "card": self.card}
        arrays = {
            "embeddings": self.embeddings,
            "path": np.array(self.path, np.str_),
            "start": self.start,
            "end": self.end,
            "text": np.array(self.text, np.str_),
            "about": np.array(json.dumps(about, ensure_ascii=False)),
        }
        atomic_write(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> Index:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            DataError: a file of another kind or a damaged one.
        """
        with open_npz(path, _KIND) as arrays:
            about = json.loads(str(arrays["about"]))
            columns = {name: arrays[name] for name in ("embeddings", "path", "start", "end", "text")}
            lengths = {name: len(column) for name, column in columns.items()}
            if len(set(lengths.values())) != 1:
                raise DataError(
                    f"{path} does not hold {_KIND}: its columns have different lengths, {lengths}"
                )
            return cls(
                embeddings=columns["embeddings"],
                path=tuple(columns["path"].tolist()),
                start=columns["start"],
                end=columns["end"],
                text=tuple(columns["text"].tolist()),
                skipped=tuple((name, reason) for name, reason in about["skipped"]),
                folder=about["folder"],
                card=about["card"],
            )


def build_index(
    encoders: Encoders,
    folder: str | Path,
    window: float | None = 4.0,
    stride: float | None = 2.0,
    progress: Progress | None = None,
    *,
    windows: str = "sliding",
    batch: int = 16,
    decoder: Decoder | None = None,
) -> Index:
    """Embed windows of every video under `folder`; memory does not grow with the length of the videos.

    What cannot be decoded is left out and listed in ``Index.skipped``: an index is no evaluation.

    Args:
        window: seconds; None takes each file whole.
        stride: seconds from one window to the next; None makes it half of `window`.
        windows: ``"sliding"``; ``"manifest"`` takes path, start, end and text from the one CSV in the folder that has
            these columns; or the path of such a CSV, whose files are relative to `folder`.
        batch: windows embedded at once.

    Raises:
        ConfigError: window, stride or batch not above 0.
        DataError: no folder, no videos, no manifest or more than one, nothing decodable.
    """
    folder = Path(folder)
    decoder = PyAVDecoder() if decoder is None else decoder
    if batch < 1:
        raise ConfigError(f"batch is at least 1, found {batch}")
    if windows == "sliding":
        plan, skipped = slide(folder, decoder, window, stride)
    else:
        plan, skipped = from_manifest(folder, windows), {}
    kept, embeddings, failed = _embed(
        encoders, _decoded(encoders, folder, decoder, plan), plan, batch, progress
    )
    for path, reasons in failed.items():
        total = sum(item.path == path for item in plan)
        skipped[path] = f"{len(reasons)} of {total} windows: {reasons[0]}"
    if not kept:
        listed = "; ".join(f"{path}: {reason}" for path, reason in list(skipped.items())[:5])
        raise DataError(f"not one window under {folder} could be decoded ({len(skipped)} files): {listed}")
    rule = {"windows": windows if windows == "sliding" else "manifest", "window": window, "stride": stride}
    return Index(
        embeddings=embeddings,
        path=tuple(plan[row].path for row in kept),
        start=np.array([plan[row].start for row in kept], np.float64),
        end=np.array([plan[row].end for row in kept], np.float64),
        text=tuple(plan[row].text for row in kept),
        skipped=tuple(sorted(skipped.items())),
        folder=str(folder.resolve()),
        card={**input_card(encoders), **rule, "versions": versions()},
    )


def _embed(
    encoders: Encoders,
    decoded: Iterator[tuple[int, np.ndarray | Exception]],
    plan: list[Window],
    batch: int,
    progress: Progress | None,
) -> tuple[list[int], np.ndarray, dict[str, list[str]]]:
    """(rows of `plan` that worked, their embeddings, file -> reasons for those that did not)."""
    out = np.empty((len(plan), encoders.width), np.float32)
    kept: list[int] = []
    failed: dict[str, list[str]] = {}
    waiting: dict[int, np.ndarray] = {}
    for row, clip in decoded:
        if isinstance(clip, Exception):
            failed.setdefault(plan[row].path, []).append(reason(clip))
        else:
            waiting[row] = clip
        if waiting and (len(waiting) == batch or row + 1 == len(plan)):
            rows = list(waiting)
            names = [f"{plan[i].path} at {plan[i].start:.2f} s" for i in rows]
            frames = np.stack(list(waiting.values()))
            out[rows] = embed_batch(encoders, frames, names, kind="video", batch=batch)
            kept += rows
            waiting = {}
        if progress:
            progress(row + 1, len(plan))
    return kept, out[kept], failed


def _decoded(
    encoders: Encoders, folder: Path, decoder: Decoder, plan: list[Window]
) -> Iterator[tuple[int, np.ndarray | Exception]]:
    """(row, frames or what went wrong) in order of `plan`, a few windows ahead of the reader."""

    def one(item: Window) -> np.ndarray:
        times = segment_times(item.start, item.end, encoders.frames, None)
        return encoders.transform(decoder.frames(str(folder / item.path), times), None)

    threads = min(4, os.cpu_count() or 1)
    queue: deque[tuple[int, Future[np.ndarray]]] = deque()
    rows = iter(enumerate(plan))
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                while len(queue) < 2 * threads and (following := next(rows, None)):
                    queue.append((following[0], pool.submit(one, following[1])))
                if not queue:
                    return
                row, future = queue.popleft()
                try:
                    yield row, future.result()
                except DataError as problem:
                    yield row, problem
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
