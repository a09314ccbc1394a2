"""Where the seconds of a run go: waiting for data, sending, computing, saving, evaluating, compiling."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

#: What a second is spent on, as the host's main thread sees it. While the device works on a step the host draws and sends
#: the next batch; so ``compute`` is the waiting for results that is left, and a run that the device bounds has little else.
PARTS: tuple[str, ...] = ("data_wait", "host_to_device", "compute", "checkpoint", "evaluation", "compile")
#: Parts that the speed of the steps is not blamed for.
_ASIDE: tuple[str, ...] = ("evaluation", "compile")


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step does.

    Attributes:
        clips: in a global batch.
        ideal: seconds that the model's FLOPs take on all devices at their peak rate; nothing computed twice counts.
        executed: the same with what remat and GradCache compute again.
    """

    clips: int
    ideal: float
    executed: float


class Clock:
    """Counts seconds by part, since the last row and in all.

    Args:
        work: of a step.
        now: seconds, for tests.
    """

    def __init__(self, work: Work, now: Callable[[], float] = time.perf_counter) -> None:
        self.work, self._now = work, now
        self.begin = self._start = now()
        self._parts = dict.fromkeys(PARTS, 0.0)
        self._steps = 0
        self._last: dict[str, float] = {}
        self.total = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block's seconds as part `name`."""
        begin = self._now()
        try:
            yield
        finally:
            self._parts[name] += self._now() - begin

    def step(self) -> None:
        """A step was sent to the devices."""
        self._steps += 1

    def pause(self, seconds: float) -> None:
        """These last seconds are not the steps' doing."""
        self._start += seconds

    def row(self) -> dict[str, float]:
        """Speed figures since the last row, and the shares of the parts in the time of the steps; then start anew.

        ``mfu`` is the share of the devices' peak rate that the model's FLOPs take, ``hfu`` that of all FLOPs executed. The
        last step of a run is looked at right after the one before it: where none was sent in between, the figures of the
        row before stand again.
        """
        if not self._steps and self._last:
            return self._last
        wall, parts, steps = self._now() - self._start, self._parts, max(self._steps, 1)
        seconds = max(wall - sum(parts[name] for name in _ASIDE), 1e-9)
        each = seconds / steps
        shares = {name: parts[name] / seconds for name in PARTS if name not in _ASIDE}
        aside = {f"{name}_seconds": parts[name] for name in _ASIDE if parts[name]}
        self._close()
        self._last = {
            "clips_per_second": self.work.clips / each,
            "step_seconds": each,
            **shares,
            "mfu": self.work.ideal / each,
            "hfu": self.work.executed / each,
        }
        return self._last | aside

    def _close(self) -> None:
        for name in PARTS:
            self.total[name] += self._parts[name]
        self._start, self._steps = self._now(), 0
        self._parts = dict.fromkeys(PARTS, 0.0)

    def summary(self) -> str:
        """``61.2 s: compute 71 %, compile 20 %, ...``, largest first, since the clock was made."""
        self._close()
        seconds = max(self._now() - self.begin, 1e-9)
        parts = {**self.total, "other": seconds - sum(self.total.values())}
        ranked = sorted(parts.items(), key=lambda item: -item[1])
        told = (
            f"{name.replace('_', ' ')} {share / seconds:.1%}"
            for name, share in ranked
            if share / seconds >= 5e-4
        )
        return f"{seconds:.1f} s: {', '.join(told)}"
