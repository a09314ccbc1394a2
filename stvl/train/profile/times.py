"""Who had the time: nested and simultaneous events, each nanosecond given away once."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Span:
    """One event of a trace.

    Attributes:
        key: what its time is booked under.
        start, end: nanoseconds.
        line: the thread or stream in which it ran; events of one line are nested or follow each other.
        done: when its work was finished, where that is later than `end`: the line only started it.
    """

    key: Hashable
    start: float
    end: float
    line: str = ""
    done: float = 0.0


#: A stretch of time of one key: (start, end, key).
Piece = tuple[float, float, Hashable]


def pieces(spans: Iterable[Span]) -> list[Piece]:
    """The stretches in which each event is the innermost of its line, and those in which others finish its work."""
    lines: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        lines[span.line].append(span)
    found: list[Piece] = []
    for line in lines.values():
        found += _innermost(line)
        found += [(span.end, span.done, span.key) for span in line if span.done > span.end]
    return found


def _innermost(line: list[Span]) -> list[Piece]:
    found: list[Piece] = []
    open_: list[Span] = []
    now = float("-inf")

    def close() -> None:
        nonlocal now
        top = open_.pop()
        if top.end > now:
            found.append((now, top.end, top.key))
            now = top.end

    for span in sorted(line, key=lambda one: (one.start, -one.end)):
        while open_ and open_[-1].end <= span.start:
            close()
        if open_ and span.start > now:
            found.append((now, span.start, open_[-1].key))
        now = max(now, span.start)
        open_.append(span)
    while open_:
        close()
    return found


def shares(found: Sequence[Piece]) -> dict[Hashable, float]:
    """Nanoseconds of each key. Where k pieces run at once each gets 1/k, so the sum is the time in which any runs."""
    edges: dict[float, int] = defaultdict(int)
    for start, end, _ in found:
        edges[start] += 1
        edges[end] -= 1
    given: dict[float, float] = {}
    each, running, before = 0.0, 0, 0.0
    for time in sorted(edges):
        if running:
            each += (time - before) / running
        given[time] = each
        running, before = running + edges[time], time
    total: dict[Hashable, float] = defaultdict(float)
    for start, end, key in found:
        total[key] += given[end] - given[start]
    return dict(total)


def busy(found: Iterable[Piece]) -> float:
    """Nanoseconds in which anything runs."""
    total, until = 0.0, float("-inf")
    for start, end, _ in sorted(found, key=lambda piece: piece[:2]):
        if end > until:
            total += end - max(start, until)
            until = end
    return total
