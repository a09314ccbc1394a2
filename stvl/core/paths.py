"""Folders on a disk or in a bucket: one place that turns text into a path, and what the two kinds do differently."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from stvl.core.errors import ConfigError

#: A path on a disk (pathlib), or one in a bucket (etils.epath), which reads and writes with the same methods.
AnyPath = Path | epath.Path

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
#: What pathlib makes of ``gs://bucket``.
_COLLAPSED = re.compile(r"(gs|s3):/[^/]")


def to_path(text: str | AnyPath) -> AnyPath:
    """A path on a disk as pathlib's, ``gs://BUCKET/...`` as one that etils reads and writes through gcsfs.

    Raises:
        ConfigError: another scheme, no bucket, gcsfs is missing, or a pathlib path that was made of ``gs://...``.
    """
    if isinstance(text, Path) and _COLLAPSED.match(str(text)):
        raise ConfigError(f"pathlib has made {str(text)!r} of an address with '//': pass the text itself")
    if not isinstance(text, str):
        return text
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Path(text)
    if scheme[1] != "gs":
        raise ConfigError(
            f"{text}: folders lie on a disk or in a bucket of Google Cloud Storage (gs://BUCKET/...); {scheme[0]} is "
            "not supported: mount it and give the folder's path"
        )
    if not text.removeprefix("gs://").split("/")[0]:
        raise ConfigError(f"{text} names no bucket, expected gs://BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise ConfigError(f"{text} is read and written with the package gcsfs: pip install 'stvl[gcs]'")
    _list_anew()
    return epath.Path(text)


def is_remote(path: AnyPath) -> bool:
    """Whether `path` lies in a bucket."""
    return not isinstance(path, Path)


def on_disk(text: str | AnyPath, what: str) -> Path:
    """A path on a disk, for what is not read or written in buckets.

    Args:
        text: the path.
        what: says in the error what it is, and what to do instead.

    Raises:
        ConfigError: a path in a bucket.
    """
    path = Path(text) if isinstance(text, Path) else to_path(text)
    if not isinstance(path, Path) or _COLLAPSED.match(str(path)):
        raise ConfigError(f"{text}: {what}")
    return path


def absolute(path: AnyPath) -> AnyPath:
    """The path from the root; one in a bucket is so already."""
    return path.absolute() if isinstance(path, Path) else path


def reach(path: AnyPath) -> AnyPath:
    """`path`, after a look whether its bucket can be seen; a folder on a disk may still be made.

    Raises:
        ConfigError: there is no such bucket, or this account may not see it.
    """
    if isinstance(path, Path):
        return path
    bucket = str(path).removeprefix("gs://").split("/")[0]
    try:
        epath.Path(f"gs://{bucket}").stat()
    except Exception as problem:  # gcsfs, aiohttp and google.auth have no common base
        told = f"{type(problem).__name__}: {problem}".splitlines()[0]
        raise ConfigError(
            f"{path}: the bucket {bucket} cannot be seen ({told}); is its name right, and has this account the permission "
            "storage.buckets.get? `gcloud auth application-default login` sets an account, TPU VMs have a service account"
        ) from problem
    return path


def make_folder(path: AnyPath) -> None:
    """Make a folder and its parents where they are missing; buckets have none, a name with slashes is enough."""
    if isinstance(path, Path):
        path.mkdir(parents=True, exist_ok=True)


def append_text(file: AnyPath, text: str) -> None:
    """Add to the end of a file, which is made with its folder where it is missing.

    A file in a bucket is read and written anew: this is for short files that rarely grow, each with one writer.
    """
    make_folder(file.parent)
    if isinstance(file, Path):
        with open(file, "a", encoding="utf-8") as opened:
            opened.write(text)
        return
    before = file.read_text() if file.is_file() else ""
    file.write_text(before + text)


def files_below(folder: AnyPath) -> Iterator[AnyPath]:
    """All files below a folder, at any depth."""
    for item in folder.iterdir():
        if item.is_dir():
            yield from files_below(item)
        else:
            yield item


def _list_anew() -> None:
    """Keep no listings of folders: other processes, and tensorstore in this one, write without gcsfs's knowledge."""
    from fsspec.config import conf

    conf.setdefault("gs", {}).setdefault("use_listings_cache", False)
