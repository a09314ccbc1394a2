"""What a run shows and writes: a progress line, JSONL, TensorBoard event files."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@runtime_checkable
class Hook(Protocol):
    """Gets every row of numbers that the loop logs."""

    def write(self, step: int, row: dict[str, float]) -> None: ...

    def say(self, text: str) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a row in ``log.jsonl``; a resumed run appends."""

    def __init__(self, folder: Path, name: str = "log.jsonl") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / name, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()

    def write(self, step: int, row: dict[str, float]) -> None:
        """Append a row; every row reaches the disk at once, for a killed run's log is the one that is read."""
        # JSON has no NaN: a step that was passed over has no loss.
        sound = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **sound}) + "\n")
        self._file.flush()

    def say(self, text: str) -> None:
        """Messages are not numbers."""

    def flush(self) -> None:
        """Nothing waits: `write` has put every row on the disk."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Scalars as TensorBoard event files in ``events/``, without TensorFlow."""

    def __init__(self, folder: Path, suffix: str = "") -> None:
        from tensorboardX import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "events"), filename_suffix=suffix)

    def write(self, step: int, row: dict[str, float]) -> None:
        """One scalar a number."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """Messages are not numbers."""

    def flush(self) -> None:
        """Put what the writer holds on the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Terminal:
    """A progress bar on a terminal, plain lines elsewhere (log files, CI)."""

    def __init__(self, steps: int, start: int, batch: int) -> None:
        self._console = Console(file=sys.stdout, soft_wrap=True)
        self._steps, self._batch = steps, batch
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (
                BarColumn(20),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("", total=steps, completed=start)

    def write(self, step: int, row: dict[str, float]) -> None:
        """Show one line of numbers."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=self._line(row))
        elif "loss" in row:
            self._console.print(f"step {step}/{self._steps}  {self._line(row)}", highlight=False)

    def say(self, text: str) -> None:
        """Print a message above the bar."""
        self._console.print(text, highlight=False, markup=False)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        if self._bar is not None:
            self._bar.stop()

    def _line(self, row: dict[str, float]) -> str:
        if "loss" not in row:
            return "  ".join(f"{name} {value:.4f}" for name, value in row.items())
        loss = f"loss {row['loss']:.3f}"
        # Only losses that are a softmax over the batch count accuracy: without learning, log(batch) and 1 / batch.
        if "accuracy" in row:
            loss += f" (chance {math.log(self._batch):.2f})"
            loss += f"  accuracy {row['accuracy']:.1%} (chance {1 / self._batch:.1%})"
        elif "positive_similarity" in row:
            loss += f"  similarity {row['positive_similarity']:.3f} of pairs, {row['negative_similarity']:.3f} of others"
        speed = f"{row['clips_per_second']:.0f} clips/s  step {1000 * row['step_seconds']:.0f} ms"
        return f"{loss}  {speed}  data wait {row['data_wait']:.0%}  MFU {row['mfu']:.1%}"


class Hooks:
    """Several hooks as one."""

    def __init__(self, *hooks: Hook) -> None:
        self._hooks = hooks

    def write(self, step: int, row: dict[str, float]) -> None:
        """Pass a row on."""
        for hook in self._hooks:
            hook.write(step, row)

    def say(self, text: str) -> None:
        """Pass a message on."""
        for hook in self._hooks:
            hook.say(text)

    def flush(self) -> None:
        """Let nothing wait: what was written is to outlive this process."""
        for hook in self._hooks:
            hook.flush()

    def close(self) -> None:
        """Close all."""
        for hook in self._hooks:
            hook.close()
