"""The record of one run: settings, seed, scores beside chance, versions, time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from stvl.core.errors import DataError
from stvl.eval.result import atomic_write


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What one run gave.

    Attributes:
        claim, arm, title, seed, steps, start: which run; `start` is the arm whose parameters it started from.
        metrics, chance: by ``EVALUATION/METRIC``, in [0, 1].
        training: means over the last rows of the training log, and the loss by step.
        config: the experiment as JSON.
        world: options of the toy world as JSON.
        where: versions, commit, processor.
        train_seconds, wall_seconds: of training with compilation and, where they were not in memory yet, decoding of the
            videos; and with evaluation.
    """

    claim: str
    arm: str
    title: str
    seed: int
    steps: int
    start: str
    metrics: dict[str, float]
    chance: dict[str, float]
    training: dict[str, Any]
    config: dict[str, Any]
    world: dict[str, Any]
    where: dict[str, str]
    train_seconds: float
    wall_seconds: float

    def write(self, path: Path) -> None:
        """Write the record, all or nothing."""
        text = json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"
        atomic_write(path, lambda file: file.write(text.encode()))

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read what `write` wrote.

        Raises:
            DataError: another file.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as problem:
            raise DataError(f"{path} is not a record of stvl claims: {problem}") from problem


def read_records(folder: Path) -> list[Record]:
    """All records of a claim's folder, ``seed-S/ARM.json``, by seed and name.

    Raises:
        DataError: a folder without any.
    """
    found = [Record.read(path) for path in sorted(folder.glob("seed-*/*.json"))]
    if not found:
        raise DataError(f"{folder} holds no records: run `stvl claims run {folder.name}` first")
    return sorted(found, key=lambda record: (record.seed, record.arm))
