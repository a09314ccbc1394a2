"""A result: scores beside their random baseline and the protocol card that says what they mean."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stvl.core.errors import ConfigError, DataError, nearest
from stvl.core.paths import AnyPath, to_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What one protocol gave.

    Attributes:
        metrics: name -> score in [0, 1].
        baseline: name -> what chance scores, for each of `metrics`.
        card: the protocol card.
        extra: counts, ranks, notes; a text under ``"warning"`` is printed in yellow.
    """

    metrics: dict[str, float]
    baseline: dict[str, float]
    card: dict[str, Any]
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ConfigError("a result needs one metric or more")
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise ConfigError(f"metric {name} is {value}")
            if name not in self.baseline:
                raise ConfigError(f"metric {name} has no random baseline{nearest(name, self.baseline)}")
        if not self.card:
            raise ConfigError("a result without a protocol card cannot be compared with any other")

    def to_json(self, path: str | AnyPath) -> None:
        """Write everything to `path`, all or nothing.

        Raises:
            OSError: the folder cannot be written to.
        """
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        atomic_write(path, lambda file: file.write(text.encode()))

    @classmethod
    def from_json(cls, path: str | AnyPath) -> Result:
        """Read what `to_json` wrote.

        Raises:
            DataError: a file that is no result.
        """
        try:
            data = json.loads(to_path(path).read_text(encoding="utf-8"))
            return cls(**{field.name: data[field.name] for field in dataclasses.fields(cls)})
        except (json.JSONDecodeError, KeyError, TypeError) as problem:
            raise DataError(f"{path} is not a result of stvl eval: {problem!r}") from problem

    def table(self) -> RenderableType:
        """Scores in percent beside chance, with the card's main facts below, for a rich console."""
        card = self.card
        table = Table(
            title=Text(f"{card.get('protocol', 'result')}: {card.get('split', '')}"), title_justify="left"
        )
        table.add_column("metric")
        table.add_column("score %", justify="right")
        table.add_column("chance %", justify="right")
        for name, value in self.metrics.items():
            table.add_row(name, f"{100 * value:.1f}", f"{100 * self.baseline[name]:.1f}")
        facts = [
            f"{card['clips']} clips" if "clips" in card else "",
            f"{card['texts']} texts" if card.get("texts") else "",
        ]
        facts += [
            f"{key} {card[key]}" for key in ("frames", "size", "views", "positions", "dtype") if key in card
        ]
        facts += [f"weights {str(card['weights_sha256'])[:12]}"] if "weights_sha256" in card else []
        lines: list[RenderableType] = [table, Text(", ".join(fact for fact in facts if fact), style="dim")]
        if self.extra.get("warning"):
            lines.append(Text(f"warning: {self.extra['warning']}", style="yellow"))
        return Group(*lines)


def atomic_write(path: str | AnyPath, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a reader never sees half a file.

    The folder is made where it is missing. In a bucket a file appears whole by itself, once all of it has arrived.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = to_path(path)
    if not isinstance(path, Path):
        held = io.BytesIO()
        write(held)
        path.write_bytes(held.getvalue())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
