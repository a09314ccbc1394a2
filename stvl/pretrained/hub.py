"""Weights by the name of a Hugging Face repository, ``owner/name[@revision][:file]``, where the hub can be reached."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stvl.core.errors import WeightsError, nearest

_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./ -]+))?"
)
_ENDINGS = (".safetensors", ".npz", ".pt", ".pth", ".bin")
#: Files that hold both towers, in the order in which they are taken where no file is named.
_PREFERRED = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
_BY_HAND = "Or download the file with any other tool and pass its path"


@dataclasses.dataclass(frozen=True)
class HubName:
    """A file of a repository.

    Attributes:
        repo: ``owner/name``.
        revision: branch, tag or commit; None for the default branch.
        file: path in the repository; None where there is only one that can be meant.
    """

    repo: str
    revision: str | None = None
    file: str | None = None


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A file that was downloaded, or was there from before.

    Attributes:
        path: on this machine.
        facts: ``repo``, ``revision`` (the commit) and ``file``, for the record.
    """

    path: Path
    facts: dict[str, str]


def parse_name(text: str) -> HubName | None:
    """Read ``owner/name[@revision][:file]``; None for everything that looks like a path."""
    found = _NAME.fullmatch(text)
    if found is None or found["repo"].endswith(_ENDINGS):
        return None
    return HubName(found["repo"], found["revision"], found["file"])


def fetch(name: HubName) -> Fetched:
    """Download a file with ``huggingface_hub`` into its own cache, at one resolved commit.

    Raises:
        WeightsError: the package is not installed, the hub cannot be reached, it has no such repository or file, or
            several files could be meant.
    """
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise WeightsError(
            f"there is no file or folder {name.repo!r} here, and to ask the Hugging Face hub for it huggingface_hub is "
            f"needed: pip install 'stvl[hub]'. {_BY_HAND}"
        ) from None
    try:
        info = huggingface_hub.HfApi().model_info(name.repo, revision=name.revision)
        files = [item.rfilename for item in info.siblings or ()]
        file = _choose(name, files)
        place = huggingface_hub.hf_hub_download(name.repo, file, revision=info.sha)
        for shard in _shards_beside(file, Path(place), files):
            huggingface_hub.hf_hub_download(name.repo, shard, revision=info.sha)
    except WeightsError:
        raise
    # The hub's client raises errors of its own and of the HTTP library beneath, which differs by version.
    except Exception as problem:
        raise WeightsError(
            f"there is no file or folder {name.repo!r} here, and the Hugging Face hub did not give it: "
            f"{type(problem).__name__}: {problem}. {_BY_HAND}"
        ) from problem
    path = Path(place).parent if file.endswith(".index.json") else Path(place)
    return Fetched(path, {"repo": name.repo, "revision": str(info.sha), "file": file})


def _choose(name: HubName, files: Sequence[str]) -> str:
    if name.file is not None:
        if name.file not in files:
            raise WeightsError(f"{name.repo} on the hub has no file {name.file!r}{nearest(name.file, files)}")
        return name.file
    for wanted in (*_PREFERRED[:2], "model.safetensors.index.json", *_PREFERRED[2:]):
        if wanted in files:
            return wanted
    found = [file for file in files if file.endswith(_ENDINGS)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(found) if found else "none"
    raise WeightsError(
        f"which file of {name.repo} on the hub is meant? Files with weights: {listed}. Name one as {name.repo}:FILE"
    )


def _shards_beside(file: str, place: Path, files: Sequence[str]) -> list[str]:
    """The shards that an index names, so that all of them are downloaded."""
    if not file.endswith(".index.json"):
        return []
    import json

    try:
        data: Any = json.loads(place.read_text(encoding="utf-8"))
        shards = sorted(set(data["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as problem:
        raise WeightsError(f"{file} on the hub is no index of shards: {problem!r}") from problem
    folder = file.rpartition("/")[0]
    names = [f"{folder}/{shard}" if folder else shard for shard in shards]
    lost = [shard for shard in names if shard not in files]
    if lost:
        raise WeightsError(
            f"{file} on the hub names {lost[0]!r}, which is not there{nearest(lost[0], files)}"
        )
    return names
