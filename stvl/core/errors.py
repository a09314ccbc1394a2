"""Errors that say what went wrong, what was expected, what was found, and the nearest fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StvlError(Exception):
    """Base of every error that stvl raises on purpose; the command line prints it without a traceback."""


class ConfigError(StvlError, ValueError):
    """A configuration cannot be used: unknown field, wrong type, sizes that do not fit each other."""


class DataError(StvlError, ValueError):
    """An input file, row or video cannot be used. The message names the file and the row."""


class TrainingError(StvlError, RuntimeError):
    """Training cannot go on: a non-finite loss, too many damaged inputs, a checkpoint of another model."""


class WeightsError(StvlError, ValueError):
    """Weights cannot be used: a damaged file, another model, tensors left over or missing, unexplained shapes."""


class NotSupported(Exception):
    """A backend declines a case; the dispatcher keeps the reason and asks the next backend."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest option, or a short list of the options when none is close."""
    options = sorted(set(options))
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    if not options:
        return ""
    shown = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return f" (there are: {shown})"
