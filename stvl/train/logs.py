"""The log of a run folder: on a disk one file that grows, in a bucket parts that are sent from time to time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from stvl.core.paths import AnyPath, to_path
from stvl.train.hooks import Hook, JsonLines, TensorBoard
from stvl.train.spool import EVERY, Spool

#: Bytes of rows in a part; TensorBoard's events of the same rows take about twice as many.
PART_BYTES = 1 << 19

_PARTS, _PART = "log", re.compile(r"(\d{6})\.jsonl")


def loggers(folder: AnyPath) -> tuple[Hook, ...]:
    """What writes the rows of a run into its folder."""
    if isinstance(folder, Path):
        return JsonLines(folder), TensorBoard(folder)
    return (BucketLog(folder),)


def read_log(folder: str | AnyPath) -> list[dict[str, Any]]:
    """All rows of a run folder, oldest first; a run that was killed and went on has some steps twice.

    Rows of ``log.jsonl`` and of the parts in ``log/``: a folder that moved to or from a bucket has both.
    """
    root = to_path(folder)
    files = [root / "log.jsonl", *_parts(root)]
    lines = [line for file in files if file.is_file() for line in file.read_text().splitlines()]
    return sorted(map(json.loads, lines), key=lambda row: row["time"])


class BucketLog:
    """`JsonLines` and `TensorBoard` for a run folder in a bucket.

    Rows lie in ``log/000001.jsonl``, ``log/000002.jsonl`` and so on, read one after the other: each start of the run begins
    a new part, and so does a part that is full. TensorBoard's files in ``events/`` are cut at the same places. Rows are sent
    when a checkpoint is saved, at the end, and each `every` seconds between: a process that is killed loses no more than the
    rows since then, never one before a checkpoint.

    Args:
        folder: the run folder.
        every: seconds.
        part_bytes: rows of a part.
    """

    def __init__(self, folder: AnyPath, every: float = EVERY, part_bytes: int = PART_BYTES) -> None:
        self._number = max((int(path.stem) for path in _parts(folder)), default=0)
        self._part_bytes = part_bytes
        # The thread of the spool may ask for a flush at once.
        self._board: TensorBoard | None = None
        self._spool = Spool(folder, self._settle, every)
        with self._spool.lock:
            self._begin()

    def write(self, step: int, row: dict[str, float]) -> None:
        """Add a row to the part at hand."""
        with self._spool.lock:
            if self._file.stat().st_size >= self._part_bytes:
                self._end()
                self._begin()
            self._lines.write(step, row)
            assert self._board is not None
            self._board.write(step, row)

    def say(self, text: str) -> None:
        """Messages are not numbers."""

    def flush(self) -> None:
        """Send all rows, and wait a little for them; a bucket that does not answer delays nobody for long."""
        self._spool.flush()

    def close(self) -> None:
        """Send all rows and close."""
        with self._spool.lock:
            self._end()
        self._spool.close()

    def _begin(self) -> None:
        self._number += 1
        part = f"{self._number:06d}"
        self._file = self._spool.folder / _PARTS / f"{part}.jsonl"
        self._lines = JsonLines(self._file.parent, self._file.name)
        self._board = TensorBoard(self._spool.folder, f".{part}")

    def _end(self) -> None:
        self._lines.close()
        if self._board is not None:
            self._board.close()
        self._board = None

    def _settle(self) -> None:
        if self._board is not None:
            self._board.flush()


def _parts(folder: AnyPath) -> list[AnyPath]:
    """The parts of a log, in order."""
    root = folder / _PARTS
    found = [path for path in root.iterdir() if _PART.fullmatch(path.name)] if root.is_dir() else []
    return sorted(found, key=lambda path: path.name)
