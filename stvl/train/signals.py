"""Exit codes, and a polite answer to SIGTERM."""

from __future__ import annotations

import contextlib
import enum
import signal
import threading
from collections.abc import Iterator
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
    """Set by SIGTERM; the loop looks at it between steps."""

    def __init__(self) -> None:
        self._asked = False

    def __bool__(self) -> bool:
        return self._asked

    def ask(self) -> None:
        """Ask the loop to save and stop after the step it is in."""
        self._asked = True


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[StopFlag]:
    """Turn SIGTERM into a flag while the block runs; outside the main thread signals cannot be caught, the flag stays."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, frame: FrameType | None) -> None:
        flag.ask()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, before)
