"""Which backend ``impl=None`` takes: one table, with the measurement that each line rests on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from stvl.ops.attention.backends import Case

#: Bytes of f32 scores above which keeping them costs more than recomputing them.
SCORES_LIMIT = 256 * 2**20


class Choice(NamedTuple):
    """One line of the table.

    Attributes:
        platform: where it holds.
        impl: the backend.
        passes_over: the reason not to take this line for a case, or None.
        evidence: what was measured, where and with what.
    """

    platform: str
    impl: str
    passes_over: Callable[[Case], str | None]
    evidence: str


def score_bytes(case: Case) -> int:
    """Bytes of all scores of a case in f32."""
    batch, queries, heads, _ = case.q.shape
    return 4 * batch * heads * queries * case.k.shape[1]


def _always(case: Case) -> str | None:
    return None


def _small(case: Case) -> str | None:
    needed = score_bytes(case)
    return None if needed <= SCORES_LIMIT else f"the scores take {needed} bytes, the limit is {SCORES_LIMIT}"


#: Asked from the top; the first line of the platform that neither passes over nor is declined by its backend wins.
CHOICES: tuple[Choice, ...] = (
    Choice("cpu", "xla", _small, "to be measured"),
    Choice("cpu", "chunked", _always, "to be measured"),
    Choice("gpu", "xla", _small, "to be measured"),
    Choice("gpu", "chunked", _always, "to be measured"),
    Choice("tpu", "xla", _small, "to be measured"),
    Choice("tpu", "chunked", _always, "to be measured"),
)
