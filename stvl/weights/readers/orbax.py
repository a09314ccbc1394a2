"""Orbax checkpoints: the folders that `stvl train` writes, and any tree of arrays that Orbax's standard handlers save."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from stvl.core.errors import WeightsError
from stvl.core.paths import AnyPath, absolute, files_below, is_remote
from stvl.weights.readers.common import BaseSource, files_sha256
from stvl.weights.source import Entry

_TREE = "_METADATA"
_DATA = ("manifest.ocdbt", "checkpoint", "ocdbt.process_0")
#: What marks a checkpoint of several items as whole; Orbax writes it when it renames the folder.
_WHOLE = "_CHECKPOINT_METADATA"
#: The same in a bucket, where folders are not renamed.
_COMMITTED = "commit_success.txt"
_ITEMS = ("state", "default", "params")


def find_state(path: AnyPath) -> AnyPath | None:
    """The folder of arrays below `path`, which may be itself, a checkpoint of several items, or a run folder.

    Of a run's checkpoints it is the newest whole one.

    Raises:
        WeightsError: a run folder whose checkpoints are all unfinished.
    """
    if (path / _TREE).is_file():
        return path
    for item in _ITEMS:
        if (path / item / _TREE).is_file():
            return path / item
    whole = _COMMITTED if is_remote(path) else _WHOLE
    for root in (path / "checkpoints", path):
        steps = [item for item in root.iterdir() if item.name.isdigit()] if root.is_dir() else []
        if not steps:
            continue
        for step in sorted(steps, key=lambda item: int(item.name), reverse=True):
            found = find_state(step) if step.is_dir() and (step / whole).is_file() else None
            if found is not None and any((found / name).exists() for name in _DATA):
                return found
        names = ", ".join(sorted(item.name for item in steps)[:8])
        raise WeightsError(f"{root} holds no finished checkpoint (there are: {names})")
    return None


class OrbaxSource(BaseSource):
    """A tree of arrays by paths with slashes: ``params/video/stem/kernel``; lists count from 0.

    Args:
        path: the folder that holds the tree's metadata.

    Raises:
        WeightsError: the folder is damaged; an array's path is named where Orbax says so.
    """

    def __init__(self, path: AnyPath) -> None:
        super().__init__(path)
        import jax
        import orbax.checkpoint as ocp

        with _said(path), _quiet():
            self._checkpointer = ocp.PyTreeCheckpointer()
            found: Any = self._checkpointer.metadata(absolute(path))
            tree = getattr(found, "item_metadata", found)
            leaves, self._tree = jax.tree_util.tree_flatten_with_path(getattr(tree, "tree", tree))
        if not leaves:
            raise WeightsError(f"{path} holds an empty tree")
        self._leaves = [leaf for _, leaf in leaves]
        self._places = {_name(keys): number for number, (keys, _) in enumerate(leaves)}
        self.entries = {name: self._entry(name, self._leaves[at]) for name, at in self._places.items()}

    def sha256(self) -> str:
        """Hash of the listing of all files of the folder."""
        return files_sha256(files_below(self.path), self.path)

    def close(self) -> None:
        """Release Orbax's threads."""
        super().close()
        self._checkpointer.close()

    def _entry(self, name: str, leaf: Any) -> Entry:
        shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
        if dtype is None:
            raise WeightsError(f"{self.path}: {name!r} is no array")
        return Entry(tuple(shape or ()), np.dtype(dtype))

    def _read(self, name: str) -> np.ndarray:
        import jax
        import orbax.checkpoint as ocp

        entry, at = self.entries[name], self._places[name]
        # Placeholders are leaves that Orbax leaves on disk.
        leaves: list[Any] = [ocp.PLACEHOLDER] * len(self._leaves)
        leaves[at] = jax.ShapeDtypeStruct(entry.shape, entry.dtype)
        restore = [ocp.RestoreArgs(restore_type=np.ndarray, dtype=entry.dtype)] * len(leaves)
        with _said(self.path, name), _quiet():
            args = ocp.args.PyTreeRestore(
                item=jax.tree_util.tree_unflatten(self._tree, leaves),
                restore_args=jax.tree_util.tree_unflatten(self._tree, restore),
            )
            made = self._checkpointer.restore(absolute(self.path), args=args)
            found = np.asarray(jax.tree_util.tree_leaves(made)[at])
        if found.shape != entry.shape or found.dtype != entry.dtype:
            raise WeightsError(
                f"{self.path}: {name!r} is {found.dtype} {found.shape}, its metadata say {entry.dtype} {entry.shape}"
            )
        return found


def _name(keys: tuple[Any, ...]) -> str:
    """A path of jax's keys with slashes."""
    parts = []
    for key in keys:
        value = next((getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)), key)
        parts.append(str(value))
    return "/".join(parts)


@contextlib.contextmanager
def _said(path: AnyPath, name: str = "") -> Iterator[None]:
    """Orbax raises errors of many kinds for a damaged folder; all are the file's fault here."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as problem:
        where = f"{path}: {name!r}" if name else str(path)
        first = (str(problem).splitlines() or [""])[0][:200]
        raise WeightsError(f"{where} cannot be read by Orbax: {type(problem).__name__}: {first}") from problem


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax warns about metadata of a kind that single items never have."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
