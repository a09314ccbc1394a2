"""Compiled programs that outlive a process: a restarted run does not compile its step again."""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from stvl.core.paths import AnyPath, to_path

_HITS, _MISSES = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"
_COUNTS: collections.Counter[str] = collections.Counter()


class CacheUse:
    """What was found in the cache since this was made."""

    def __init__(self, folder: AnyPath | None) -> None:
        self.folder, self._before = folder, dict(_COUNTS)

    def describe(self) -> str:
        """``compile cache: 2 found, 1 new in DIR``; empty without a cache."""
        if self.folder is None:
            return ""
        hits, misses = (_COUNTS[name] - self._before.get(name, 0) for name in (_HITS, _MISSES))
        return f"compile cache: {hits} found, {misses} new in {self.folder}"


@contextlib.contextmanager
def compile_cache(folder: AnyPath, mode: str) -> Iterator[CacheUse]:
    """Keep the programs that are compiled in this block in `folder`, unless jax has a folder for them already.

    Args:
        folder: made where needed; process 0 writes to it, all read it.
        mode: ``on``, ``off``, or ``auto``: on, except on CPUs.
    """
    given: Any = jax.config.values["jax_compilation_cache_dir"]
    if given or mode == "off" or (mode == "auto" and jax.default_backend() == "cpu"):
        yield CacheUse(to_path(given) if given else None)
        return
    _listen()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()
    try:
        yield CacheUse(folder)
    finally:
        jax.config.update("jax_compilation_cache_dir", given)
        compilation_cache.reset_cache()


@functools.cache
def _listen() -> None:
    """Count jax's own events, once a process: jax takes no listener back."""

    def count(event: str, **_: Any) -> None:
        if event in (_HITS, _MISSES):
            _COUNTS[event] += 1

    jax.monitoring.register_event_listener(count)
