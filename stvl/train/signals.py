"""Exit codes, and a polite answer to SIGTERM at any moment of a run."""

from __future__ import annotations

import contextlib
import enum
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Exit(enum.IntEnum):
    """Exit codes of the command line; a scheduler should start a run again on PREEMPTED, PEER_LOST and STUCK."""

    OK = 0
    ERROR = 1
    USAGE = 2
    DAMAGED_DATA = 3
    NON_FINITE = 4
    PREEMPTED = 75
    PEER_LOST = 76
    STUCK = 77


class StopFlag:
    """Set by SIGTERM; the loop looks at it between steps, an evaluation between batches.

    Compiling, reading weights and waiting for other hosts can take minutes in which Python's main thread looks at
    nothing. Where nothing would be lost by it, `at_once` lets a thread end the process there and then.
    """

    def __init__(self) -> None:
        self._asked = False
        self._lock = threading.RLock()
        self._leave: Callable[[], None] | None = None

    def __bool__(self) -> bool:
        return self._asked

    def ask(self) -> None:
        """Ask the run to save and stop, or to leave at once where `at_once` is in force."""
        with self._lock:
            self._asked = True
            if self._leave is not None:
                self._leave()

    def at_once(self, leave: Callable[[], None]) -> None:
        """From now on nothing would be lost: a stop, also one asked for already, calls `leave`, which does not return."""
        with self._lock:
            self._leave = leave
            if self._asked:
                leave()

    def after_saving(self) -> None:
        """From now on there is something to save first: a stop only sets the flag."""
        with self._lock:
            self._leave = None


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[StopFlag]:
    """Turn SIGTERM into a flag while the block runs; outside the main thread signals cannot be caught, the flag stays.

    The interpreter writes the signal's number to a socket from within the signal handler itself, also while the main
    thread is inside a compiler; a thread of its own reads it.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, frame: FrameType | None) -> None:
        # The thread asks too, at once; this is for a main thread that looks at the flag in the same moment.
        flag._asked = True

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.signal(signal.SIGTERM, handle)
    before_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(reader, flag), name="stvl-signals", daemon=True)
    thread.start()
    try:
        yield flag
    finally:
        signal.set_wakeup_fd(before_fd)
        signal.signal(signal.SIGTERM, before)
        writer.close()
        thread.join()
        reader.close()


def _listen(reader: socket.socket, flag: StopFlag) -> None:
    """Ask `flag` at each SIGTERM until the other end is closed."""
    while numbers := reader.recv(64):
        if signal.SIGTERM in numbers:
            flag.ask()
