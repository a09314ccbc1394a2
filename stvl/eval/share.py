"""The rows of an evaluation that each process of a program takes, and how all get what all have found.

Outside of `shared` a process takes all rows, and nothing is exchanged.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import numpy as np

from stvl.core.errors import StvlError


class Interrupted(StvlError):
    """The evaluation was asked to stop; on every process alike."""


#: (number of this process, how many there are).
_SHARE: contextvars.ContextVar[tuple[int, int]] = contextvars.ContextVar("stvl_share", default=(0, 1))


@contextlib.contextmanager
def shared(process: int, processes: int) -> Iterator[None]:
    """Split the rows of evaluations in this block over the processes of a `jax.distributed` program.

    Every process has to run the same evaluations in the same order.
    """
    token = _SHARE.set((process, processes))
    try:
        yield
    finally:
        _SHARE.reset(token)


def own_rows(total: int) -> range:
    """This process's rows of `total`: a block; all of them where there are fewer rows than processes."""
    process, processes = _SHARE.get()
    if total < processes:
        return range(total)
    return range(total * process // processes, total * (process + 1) // processes)


def joined(total: int, work: Callable[[range], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """``work(own rows)``, arrays of one row for each, put together in order on every process, bit by bit.

    Raises:
        Interrupted: `work` raised it on any of the processes; then all of them do.
    """
    processes, rows = _SHARE.get()[1], own_rows(total)
    found = None
    with contextlib.suppress(Interrupted):
        found = work(rows)
    if processes > 1 and not _all(found is not None):
        found = None
    if found is None:
        raise Interrupted("the evaluation was stopped")
    if len(rows) == total:
        return found
    counts = [total * (n + 1) // processes - total * n // processes for n in range(processes)]
    return {name: _gathered(array, counts) for name, array in sorted(found.items())}


def _all(fine: bool) -> bool:
    """Whether it is true on every process."""
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array([fine], np.int32))))


def _gathered(array: np.ndarray, counts: list[int]) -> np.ndarray:
    """The arrays of all processes below each other; they travel as bytes, since jax would narrow 64-bit numbers."""
    from jax.experimental import multihost_utils

    array = np.ascontiguousarray(array)
    row = array.dtype.itemsize * int(np.prod(array.shape[1:]))
    padded = np.zeros((max(counts), row), np.uint8)
    padded[: len(array)] = array.view(np.uint8).reshape(len(array), row)
    every = np.asarray(multihost_utils.process_allgather(padded))
    whole = np.concatenate([part[:count] for part, count in zip(every, counts, strict=True)])
    return whole.reshape(-1).view(array.dtype).reshape(sum(counts), *array.shape[1:])
