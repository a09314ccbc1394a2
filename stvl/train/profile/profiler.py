"""Traces some steps of a run and says what they did; training goes on whatever happens to the trace."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import jax

from stvl.core.errors import ConfigError
from stvl.core.paths import AnyPath, is_remote, make_folder
from stvl.train.profile.summary import Facts, as_text, summarise
from stvl.train.profile.trace import annotated, read, start, stop, unsafe

#: What a session is called where XProf looks for sessions, below the folder that it is given.
SESSIONS = PurePosixPath("plugins/profile")


@dataclasses.dataclass(frozen=True)
class Steps:
    """Steps `first` up to and including `last`, numbered as in the log."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def parse_steps(text: str) -> Steps | None:
    """``10:15`` for the steps 10 up to and including 15, ``10`` for one step; None for an empty text.

    Raises:
        ConfigError: anything else, or a range that is empty or begins before step 1.
    """
    if not text:
        return None
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip())
    if found is None:
        raise ConfigError(f"--profile reads FIRST:LAST, two step numbers as in 10:15, found {text!r}")
    first, last = int(found.group(1)), int(found.group(2) or found.group(1))
    if first < 1:
        raise ConfigError(
            f"--profile {text}: steps are numbered from 1; 2:{max(last, 2)} leaves out the compilation"
        )
    if last < first:
        raise ConfigError(f"--profile {text}: the last step comes before the first; write {last}:{first}?")
    return Steps(first, last)


class Profiler:
    """Traces `steps` of one process. The loop calls `before` and `after` around each step, and `close` at the end.

    Nothing that goes wrong with the trace reaches the loop: it is told on stderr, and the run goes on without it.

    Args:
        steps: which; None traces nothing.
        folder: the run folder; all goes to ``profile/`` in it.
        say: shows a text to the user, on process 0.
        ideal: seconds of a step at the peak rate of all devices, for the MFU; 0 where unknown.
    """

    def __init__(
        self, steps: Steps | None, folder: AnyPath, say: Callable[[str], None] = print, ideal: float = 0.0
    ) -> None:
        self.steps, self.folder, self._say, self._ideal = steps, folder / "profile", say, ideal
        self._raw = Path()
        self.process, self.processes = jax.process_index(), jax.process_count()
        self._begun: int | None = None
        self._done: int | None = None
        self._waiting = steps is not None
        self._tracing, self._since = False, 0.0
        self._first = 0
        self._earlier: Any = None
        self._step = contextlib.ExitStack()

    def before(self, step: int) -> None:
        """Step `step` is about to be drawn and sent; starts the trace where it is time to."""
        if self.steps is None:
            return
        self._begun = step if self._begun is None else self._begun
        if self._waiting and self.steps.first <= step <= self.steps.last:
            self._waiting = False
            # What the device still does for earlier steps is none of this trace's business.
            jax.block_until_ready(self._earlier)
            self._start(step)
        self._earlier = None
        if self._tracing:
            self._step.enter_context(annotated(step))

    def after(self, step: int, metrics: Any) -> float:
        """Step `step` was sent, and `metrics` come out of it; ends the trace where it is time to.

        Returns the seconds spent on the trace, which are not the run's.
        """
        self._step.close()
        if self._waiting:
            self._earlier = metrics
        if not self._tracing or self.steps is None:
            return 0.0
        self._done = step
        if step < self.steps.last:
            self._earlier = metrics
            return 0.0
        # The step is only sent by now; its work has to be inside the trace. What fails here is the step, not the trace.
        jax.block_until_ready(metrics)
        begin = time.perf_counter()
        self._finish(begin - self._since)
        return time.perf_counter() - begin

    def close(self) -> None:
        """The run is over: end a trace that is under way, and say so where the steps never came."""
        if self.steps is None:
            return
        self._step.close()
        if self._tracing:
            self._finish(time.perf_counter() - self._since)
        elif self._waiting:
            self._waiting = False
            self._tell(self._never())

    def _never(self) -> str:
        assert self.steps is not None
        asked = f"--profile {self.steps.first}:{self.steps.last}: no step was traced"
        if self._begun is None:
            return f"{asked}: this process made no step"
        if self._begun > self.steps.last:
            return (
                f"{asked}: the run went on from step {self._begun - 1}, so name steps from {self._begun} on"
            )
        return f"{asked}: the run ended before step {self.steps.first}"

    def _start(self, step: int) -> None:
        reason = unsafe()
        if reason:
            self._failed("not started", reason)
            return
        try:
            self._raw = self._clean()
            start(self._raw)
        except Exception as problem:
            self._failed("cannot start the trace", problem)
            return
        self._tracing, self._first, self._since = True, step, time.perf_counter()

    def _finish(self, seconds: float) -> None:
        """Stop the trace, put it into its place, and write and show its summary."""
        assert self.steps is not None
        self._tracing = False
        doing = "cannot write the trace"
        try:
            stop()
            if self._done is None:
                self._failed("nothing to show", f"the run ended within step {self._first}")
                return
            steps = Steps(self._first, self._done)
            trace, local = self._put(self._found(), steps)
            doing = f"cannot read {trace}"
            facts = Facts(
                first=steps.first,
                last=steps.last,
                seconds=seconds,
                process=self.process,
                processes=self.processes,
                ideal=self._ideal,
                notes=tuple(self._notes(steps)),
            )
            text = as_text(summarise(read(local), facts))
            doing = "cannot write the summary"
            file = self.folder / f"summary-{steps}{self._suffix}.txt"
            file.write_text(text + "\n")
        except Exception as problem:
            self._failed(doing, problem)
            return
        finally:
            shutil.rmtree(self._raw, ignore_errors=True)
        self._say(f"{text}\nwritten: {file}\ntrace for XProf (--logdir {self.folder}): {trace}")

    def _notes(self, steps: Steps) -> list[str]:
        assert self.steps is not None
        notes = []
        if steps.first == self._begun:
            notes.append(
                f"step {steps.first} was the first of this process: its time holds tracing and compiling, so begin one "
                "step later to see the step alone"
            )
        if steps != self.steps:
            notes.append(f"steps {self.steps} were asked for; this process made {steps} of them")
        return notes

    def _clean(self) -> Path:
        """An empty folder on a disk for what jax writes."""
        if is_remote(self.folder):
            return Path(tempfile.mkdtemp(prefix="stvl-profile-"))
        raw = Path(self.folder) / f".process-{self.process}"
        shutil.rmtree(raw, ignore_errors=True)
        raw.mkdir(parents=True)
        return raw

    def _found(self) -> Path:
        found = sorted(self._raw.rglob("*.xplane.pb"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"the profiler left {len(found)} trace files in {self._raw}, one was expected"
            )
        return found[0]

    @property
    def _suffix(self) -> str:
        return "" if self.processes == 1 else f"-process-{self.process}"

    def _put(self, found: Path, steps: Steps) -> tuple[AnyPath, Path]:
        """Move the files that jax wrote, named by host and time, to the session of these steps, named by process.

        So processes of one host do not overwrite each other, and XProf shows all of them as one session.
        """
        session = self.folder / SESSIONS / f"steps-{steps}"
        make_folder(session)
        host = found.name.removesuffix(".xplane.pb")
        for file in found.parent.iterdir():
            place = session / file.name.replace(host, f"process-{self.process}", 1)
            if isinstance(place, Path):
                file.replace(place)
            else:
                place.write_bytes(file.read_bytes())
        trace = session / f"process-{self.process}.xplane.pb"
        return trace, trace if isinstance(trace, Path) else found

    def _failed(self, what: str, problem: object) -> None:
        kind = f"{type(problem).__name__}: " if isinstance(problem, Exception) else ""
        self._tell(f"--profile: {what}: {kind}{problem}; training goes on without it")

    def _tell(self, text: str) -> None:
        """On stderr, and by every process: what is wrong with one is not to be seen on process 0."""
        print(f"process {self.process}: {text}" if self.processes > 1 else text, file=sys.stderr, flush=True)
