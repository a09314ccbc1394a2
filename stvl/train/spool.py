"""Files that grow, for a place where files cannot: written on this machine's disk, sent to a bucket from time to time."""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from stvl.core.paths import AnyPath

#: Seconds between two looks for what has grown: what a process that is killed can lose at most.
EVERY = 30.0
#: Seconds that `Spool.flush` and `Spool.close` wait for a bucket that does not answer.
FLUSH_SECONDS, CLOSE_SECONDS = 10.0, 60.0


class Spool:
    """A folder on a disk whose files are sent to `target` by a thread: those that have grown, each as a whole.

    An object in a bucket cannot be appended to, so a file costs its size each time it is sent: keep files small and begin
    new ones. What cannot be sent is said once, kept, and tried again; it stops nobody. Hold `lock` while writing, so that
    no half line is sent.

    Args:
        target: folder in the bucket; a file ``a/b`` of the spool goes to ``target/a/b``.
        prepare: called under the lock before files are read, to put what writers hold on the disk.
        every: seconds between two looks.

    Attributes:
        folder: where to write.
        lock: for writers.
    """

    def __init__(
        self, target: AnyPath, prepare: Callable[[], None] = lambda: None, every: float = EVERY
    ) -> None:
        self.target, self._prepare, self._every = target, prepare, every
        self.folder = Path(tempfile.mkdtemp(prefix="stvl-log-"))
        self.lock = threading.Lock()
        self._sent: dict[Path, int] = {}
        self._failed = False
        self._turn = threading.Condition()
        self._asked = self._done = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="stvl-spool", daemon=True)
        self._thread.start()

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Send what has grown, and wait for it at most `seconds`; whether everything has arrived."""
        with self._turn:
            self._asked += 1
            wanted = self._asked
            self._turn.notify_all()
            in_time = self._turn.wait_for(lambda: self._done >= wanted, seconds)
        return in_time and not self._failed

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Send the rest and remove the folder; where that fails the folder stays, and is named."""
        arrived = self.flush(seconds)
        with self._turn:
            self._closing = True
            self._turn.notify_all()
        if arrived:
            self._thread.join()
            shutil.rmtree(self.folder)
        else:
            print(f"log: not all of it has reached {self.target}; it lies in {self.folder}", file=sys.stderr)

    def _run(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._closing or self._asked > self._done, self._every)
                if self._closing:
                    return
                asked = self._asked
            self._send()
            with self._turn:
                self._done = asked
                self._turn.notify_all()

    def _send(self) -> None:
        try:
            for name, data in self._grown().items():
                (self.target / name.as_posix()).write_bytes(data)
                self._sent[name] = len(data)
        except (
            Exception
        ) as problem:  # a network fails in ways that have no common base, and training has to go on
            if not self._failed:
                told = f"{type(problem).__name__}: {problem}".splitlines()[0]
                kept = f"the log is kept in {self.folder} and sent later"
                print(f"log: cannot write to {self.target} ({told}); {kept}", file=sys.stderr, flush=True)
            self._failed = True
            return
        if self._failed:
            print(f"log: {self.target} has all of it again", file=sys.stderr, flush=True)
        self._failed = False

    def _grown(self) -> dict[Path, bytes]:
        """The files that are longer than what was sent of them."""
        with self.lock:
            self._prepare()
            found = {path.relative_to(self.folder): path for path in self.folder.rglob("*") if path.is_file()}
            return {
                name: path.read_bytes()
                for name, path in sorted(found.items())
                if path.stat().st_size > self._sent.get(name, 0)
            }
