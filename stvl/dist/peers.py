"""The processes of one program as each of them sees the others: who is there, what they say, who has gone.

Process 0 listens on the coordinator's port until all have arrived, then leaves the port to jax and keeps the connections.
The kernel closes the connection of a process that dies, so process 0 knows at once, and tells the others; a machine that
vanishes without a word is noticed by its silence. Nothing here needs jax or a device.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from stvl.core.errors import StvlError
from stvl.dist.place import Place

#: Exit codes: another process vanished; this one made no step for too long (see `stvl.dist.watchdog`).
PEER_LOST, STUCK = 76, 77
#: Exit code of a process that was asked to stop, and has saved.
PREEMPTED = 75
#: Exit codes with which a process may leave before the others do: finished, and preempted after saving.
CLEAN = (0, PREEMPTED)
#: Number of the last step passed before there is one.
UNBEGUN = -1
#: What a process says that ends because another one is asked to stop while this one has made no step.
CALLED_OFF = "SIGTERM before the first step of this start: nothing is lost, start the same command again"

End = Callable[[str, int], None]


class PeersError(StvlError, RuntimeError):
    """The processes of a program did not come together, or one of them is gone.

    Attributes:
        exit_code: 76 where starting again may help, 1 where it cannot (versions that differ).
        facts: on process 0, what is known of the processes that did arrive.
    """

    def __init__(
        self, text: str, exit_code: int = PEER_LOST, facts: dict[int, dict[str, Any]] | None = None
    ) -> None:
        super().__init__(text)
        self.exit_code, self.facts = exit_code, facts or {}


def end_process(text: str, code: int) -> None:
    """Print `text` and end this process at once, whatever its other threads are waiting for."""
    print(f"error: {text}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a `gather` brought to process 0; other processes learn who was missing only.

    Attributes:
        values: by process number.
        missing: processes that had not answered in time.
    """

    values: dict[int, Any]
    missing: tuple[int, ...] = ()


class Peers:
    """One process of a program among the others. This class is the only process of its program; see `Hub` and `Spoke`.

    Args:
        place: which process this is.
        timeout: seconds of silence after which a process is lost.
        end: called with a text and an exit code when another process is gone; ends this one.
    """

    def __init__(self, place: Place, timeout: float = 60.0, end: End = end_process) -> None:
        self.place, self.timeout, self.token = place, timeout, f"{time.time_ns():x}"
        #: Seconds between signs of life, and between looks at the connections.
        self.tick = min(max(timeout / 6, 0.05), 10.0)
        self.look = min(self.tick / 2, 0.5)
        #: Seconds that a process has to end by itself when another one has ended with an error, and that process 0, in
        #: which jax's coordinator lives, stays behind the others, so that they can say why they end.
        self.grace, self.last = 5.0, 1.5
        self.state = threading.Condition()
        self._end, self._left, self._ending = end, False, False
        #: The last step passed; below 0 before the first one of this start.
        self._step, self._asked = UNBEGUN, False
        self._promised: int | None = None
        self._stop_at: int | None = None

    def gather(self, name: str, value: Any, timeout: float) -> Answers:
        """Bring a JSON value of every process to process 0; returns on all of them once all have called, or too late."""
        return Answers({self.place.process: value})

    def stop_now(self, step: int, wanted: bool) -> bool:
        """Whether to stop after `step`: the same answer on every process, soon after one of them wants to.

        To be called after each step is sent to the devices, by the loop of every process. Where one wants to stop, all
        say which step they passed last and stop after the one that follows the largest of them; so nobody waits in a
        collective for a process that has left. Waits for the others' answers only, never for their devices.
        """
        with self.state:
            self._step = step
            if wanted:
                self.tell_stop()
            while self._promised is not None and step > self._promised and self._stop_at is None:
                if self._ending:
                    return True
                self.state.wait(self.tick)
            return self._stop_at is not None and step >= self._stop_at

    def tell_stop(self) -> None:
        """Ask for a common stop, once; all processes soon see it in `asked_to_stop`."""
        with self.state:
            if not self._asked:
                self._asked = True
                self.want_stop()

    @property
    def asked_to_stop(self) -> bool:
        """Whether a process, this one included, has asked for a common stop."""
        return self._asked or self._promised is not None

    def want_stop(self) -> None:
        """Ask for a common stop; the only process decides by itself."""
        self._stop_at = 0

    def call_off(self, text: str, code: int) -> None:
        """End all processes with `code`, this one too, without waiting for what any of them is doing."""
        with self.state:
            self._ending = True
            self.state.notify_all()
        self._end(text, code)

    def leave(self, code: int = 0, text: str = "") -> None:
        """Say that this process ends, and why; the others are ended too where `code` is an error."""
        with self.state:
            self._left = True
            self.state.notify_all()

    def promise(self) -> int:
        """The last step passed; no step after the next one is begun before the common stop is known.

        `UNBEGUN` where this process has not passed a step: then no process can have finished one that matters.
        """
        with self.state:
            if self._promised is None:
                self._promised = self._step
            return self._promised

    def settle(self, step: int) -> None:
        """All stop after `step`."""
        with self.state:
            self._stop_at = step
            self.state.notify_all()

    def lose(self, text: str, code: int, grace: float = 0.0) -> None:
        """End this process, unless it ends by itself within `grace` seconds or is ending already."""
        with self.state:
            if self._left or self._ending:
                return
            self._ending = True
            self.state.notify_all()
            if grace:
                self.state.wait_for(lambda: self._left, grace)
            if self._left:
                return
        self._end(text, code)

    def is_ending(self, seconds: float) -> bool:
        """Whether another process's end is about to end this one, or is heard of within `seconds`."""
        with self.state:
            return self.state.wait_for(lambda: self._ending, seconds)


def named(place: Place, process: int, facts: dict[str, Any] | None) -> str:
    """``process 3 (host-3)``."""
    host = (facts or {}).get("host")
    return f"process {process} ({host})" if host else place.name(process)


def listed(names: Sequence[str], limit: int = 8) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def disagreements(facts: dict[int, dict[str, Any]]) -> list[str]:
    """A line for each version or digest in which the processes differ: ``jax: 0.10.2 on 0, 1; 0.10.1 on 2``."""
    keys = sorted({key for each in facts.values() for key in each.get("same", {})})
    lines = []
    for key in keys:
        values: dict[str, list[int]] = {}
        for process, each in sorted(facts.items()):
            values.setdefault(str(each.get("same", {}).get(key)), []).append(process)
        if len(values) > 1:
            told = (f"{value} on process {_ranges(numbers)}" for value, numbers in values.items())
            lines.append(f"{key}: {'; '.join(told)}")
    return lines


def _ranges(numbers: list[int]) -> str:
    """``0-3, 7`` for ``[0, 1, 2, 3, 7]``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
