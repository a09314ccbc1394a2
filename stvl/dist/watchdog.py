"""A watch over the steps of a run: when one takes far longer than the ones before, say where every thread stands."""

from __future__ import annotations

import contextlib
import faulthandler
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from stvl.core.config import config
from stvl.core.errors import ConfigError
from stvl.core.paths import AnyPath, append_text
from stvl.dist.health import bounded
from stvl.dist.peers import STUCK, End, end_process

#: Seconds that stacks may take into the run folder: its disk or its network may be what hangs.
WRITE_SECONDS = 20.0


@config
class WatchdogOptions:
    """When a step is too slow, and what happens then.

    A step is too slow after ``max(minimum, factor * median of the last window steps)`` seconds; the first one, which
    compiles, after `first` seconds.

    Attributes:
        factor: times the median.
        minimum: seconds that no step is too slow before.
        first: seconds for the first step of a process, and for what happens between steps (evaluation).
        repeat: seconds between two dumps of the same step.
        window: steps of which the median is taken.
        exit_after: seconds without a step after which the process ends with exit code 77, so that a scheduler starts the
            run again; None for never. Not before the step is too slow.
    """

    factor: float = 10.0
    minimum: float = 60.0
    first: float = 1800.0
    repeat: float = 600.0
    window: int = 50
    exit_after: float | None = None

    def __post_init__(self) -> None:
        low = {"factor": 1.0, "minimum": 0.0, "first": 0.0, "repeat": 0.0, "window": 1}
        for name, least in low.items():
            if getattr(self, name) < least:
                raise ConfigError(f"watchdog.{name} is at least {least:g}, found {getattr(self, name):g}")
        if self.exit_after is not None and self.exit_after <= 0:
            raise ConfigError(f"watchdog.exit_after is above 0 seconds or none, found {self.exit_after:g}")


class Watchdog:
    """Watches one process. Call `beat` when a step's numbers have arrived; use it as a context to run its thread.

    Args:
        options: see WatchdogOptions.
        folder: the stacks also go to ``stacks-PROCESS.txt`` in it, or into a folder of this machine for temporary files
            where that fails or takes too long; None for stderr only.
        process: number of this process.
        clock: seconds, for tests.
        end: ends the process.
    """

    def __init__(
        self,
        options: WatchdogOptions,
        folder: AnyPath | None = None,
        process: int = 0,
        clock: Callable[[], float] = time.monotonic,
        end: End = end_process,
    ) -> None:
        self.options, self.process = options, process
        self._file = None if folder is None else folder / f"stacks-{process}.txt"
        self._clock, self._end = clock, end
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._seconds: deque[float] = deque(maxlen=options.window)
        self._since, self._dumped = clock(), -float("inf")
        self._step: int | None = None
        self._doing = ""
        self._thread: threading.Thread | None = None

    def beat(self, step: int) -> None:
        """Step `step` is done."""
        now = self._clock()
        with self._lock:
            # The first step compiles, so its time says nothing about the others.
            if self._step is not None:
                self._seconds.append((now - self._since) / max(step - self._step, 1))
            self._step, self._since, self._dumped = step, now, -float("inf")

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Something else than steps is done in this block: it has `first` seconds and does not count as a step."""
        with self._lock:
            before, begin, self._doing = self._doing, self._clock(), what
            waited = begin - self._since
            self._since, self._dumped = begin, -float("inf")
        try:
            yield
        finally:
            with self._lock:
                self._doing, self._dumped = before, -float("inf")
                self._since = self._clock() - waited

    @property
    def limit(self) -> float:
        """Seconds after which what is under way is too slow."""
        if self._doing or not self._seconds:
            return max(self.options.first, self.options.minimum)
        return max(self.options.minimum, self.options.factor * statistics.median(self._seconds))

    def check(self) -> str:
        """Dump the stacks where it is time to, and return what was said; empty where all is well."""
        with self._lock:
            now = self._clock()
            waited, limit = now - self._since, self.limit
            if waited <= limit:
                return ""
            late = self.options.exit_after is not None and waited > self.options.exit_after
            if not late and now - self._dumped < self.options.repeat:
                return ""
            self._dumped = now
            text = self._text(waited, limit)
        self._dump(text)
        if late:
            self._end(f"{text}; watchdog.exit_after = {self.options.exit_after:g} s is over", STUCK)
        return text

    def _text(self, waited: float, limit: float) -> str:
        what = self._doing or (
            "the first step" if self._step is None else f"the step after step {self._step}"
        )
        usual = ""
        if self._seconds:
            usual = f"the median of the last {len(self._seconds)} steps is {statistics.median(self._seconds):.3g} s, "
        return f"process {self.process}: {what} has taken {waited:.0f} s; {usual}the limit is {limit:.0f} s"

    def _dump(self, text: str) -> None:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            stacks = file.read().decode(errors="replace")
        told = f"watchdog: {time.strftime('%Y-%m-%d %H:%M:%S')}: {text}. Where every thread stands:\n{stacks}"
        print(told, file=sys.stderr, flush=True)
        if self._file is None:
            return
        file = self._file
        outcome = bounded(lambda: append_text(file, told + "\n"), WRITE_SECONDS)
        if outcome["ok"]:
            return
        said = f"watchdog: cannot write {file}: {outcome['error']}"
        try:
            kept = Path(tempfile.mkdtemp(prefix="stvl-")) / file.name
            kept.write_text(told + "\n", encoding="utf-8")
            said += f"; the stacks lie in {kept}"
        except OSError as problem:
            said += f"; nor can this machine keep the stacks: {problem}"
        print(said, file=sys.stderr, flush=True)

    def __enter__(self) -> Watchdog:
        self._since = self._clock()
        self._thread = threading.Thread(target=self._watch, name="stvl-watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(max(self.limit / 10, 0.05), 5.0)):
            self.check()
