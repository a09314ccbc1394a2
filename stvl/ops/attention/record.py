"""Writes down which attentions a program asks for while it is traced: what `stvl doctor` shows for a config."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

from stvl.ops.attention.backends import Case

_CASES: contextvars.ContextVar[list[Case] | None] = contextvars.ContextVar(
    "stvl_attention_cases", default=None
)


@contextlib.contextmanager
def recorded() -> Iterator[list[Case]]:
    """The cases of all attentions that are traced inside this context, in order, repeated ones too."""
    cases: list[Case] = []
    token = _CASES.set(cases)
    try:
        yield cases
    finally:
        _CASES.reset(token)


def note(case: Case) -> None:
    """Add a case to the list of the surrounding `recorded`, if there is one."""
    cases = _CASES.get()
    if cases is not None:
        cases.append(case)
