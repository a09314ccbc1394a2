"""Steps whose loss or gradient is not finite: passed over, written down, and too many of them stop the run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from stvl.core.errors import TrainingError
from stvl.core.paths import AnyPath, append_text
from stvl.train.signals import Exit

#: Steps over which those that were passed over are counted.
WINDOW = 100
#: What a step's finiteness is judged by: name in the metrics -> what it is called.
JUDGED = {"loss": "loss", "grad_norm": "gradient's norm"}
_SHOWN = 8


class NonFiniteLoss(TrainingError):
    """Too many steps had a loss or a gradient that was NaN or infinite; the message names the last batch's clips."""

    exit_code = Exit.NON_FINITE


def unsound(metrics: Mapping[str, float]) -> str:
    """``loss is nan`` for a step that was passed over; empty for one that counted."""
    for name, words in JUDGED.items():
        if not math.isfinite(metrics[name]):
            return f"{words} is {metrics[name]}"
    return ""


class NonFinite:
    """The steps of a run that were passed over (`stvl.train.step` leaves the state as it was).

    Args:
        limit: how many of the last `WINDOW` steps may be.
        file: gets one JSON object a step, with the ids of its clips; None on processes that write nothing.
        steps: those known already, from a checkpoint.
    """

    def __init__(self, limit: int, file: AnyPath | None, steps: Sequence[int] = ()) -> None:
        self.limit, self._file, self.steps = limit, file, list(steps)

    def take(self, step: int, metrics: Mapping[str, float], ids: Sequence[str]) -> str:
        """Write a step down, and say so.

        Raises:
            NonFiniteLoss: it is one too many.
        """
        why = unsound(metrics)
        self.steps = [number for number in self.steps if step - WINDOW < number < step] + [step]
        if self._file is not None:
            row = {"step": step, **{name: str(metrics[name]) for name in JUDGED}, "ids": list(ids)}
            append_text(self._file, json.dumps(row) + "\n")
        count, told = len(self.steps), ", ".join(ids)
        if count > self.limit:
            others = (
                f" It is number {count} in {WINDOW} steps, max_nonfinite = {self.limit}." if count > 1 else ""
            )
            raise NonFiniteLoss(
                f"the {why.replace(' is ', f' of step {step} is ', 1)}; ids of its batch: {told}.{others}"
            )
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        return (
            f"step {step} passed over: the {why} ({count} of at most {self.limit} in {WINDOW} steps); its clips: "
            f"{', '.join(ids[:_SHOWN])}{more}"
        )
