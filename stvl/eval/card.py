"""The protocol card: everything that a score depends on besides the model, written into every result."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stvl import __version__
from stvl.data.records import ClipTable
from stvl.eval.encoders import Described, described


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """The data that a protocol ran on.

    Attributes:
        name: of the split, by default the stem of its annotation file.
        table: the clips that were embedded.
        annotations: the annotation files; the card holds their names and hashes, not their folders.
        texts: the texts that were embedded besides, in order.
    """

    name: str
    table: ClipTable
    annotations: tuple[str, ...]
    texts: tuple[str, ...] = ()


def protocol_card(encoders: Described, protocol: str, split: Split, **more: Any) -> dict[str, Any]:
    """Describe one evaluation as JSON types: protocol, data with hashes and counts, input rules, model, versions.

    `more` overrides or adds fields, such as ``post_processing``, which says ``"none"`` unless a protocol does some.

    Raises:
        ConfigError: the encoders leave out a fact that a score depends on.
        OSError: an annotation file that cannot be read.
    """
    facts = described(encoders)
    return {
        "protocol": protocol,
        "split": split.name,
        "clips": len(split.table),
        "clips_sha256": split.table.sha256,
        "texts": len(split.texts),
        "texts_sha256": hash_texts(split.texts),
        "annotations": [{"file": Path(path).name, "sha256": hash_file(path)} for path in split.annotations],
        **input_card(encoders),
        "post_processing": "none",
        "model": facts,
        "versions": versions(),
        **more,
    }


def input_card(encoders: Described) -> dict[str, Any]:
    """How frames come from a file to the encoder, and the facts about the encoder that every card repeats on top."""
    facts = described(encoders)
    return {
        "frames": encoders.frames,
        "size": encoders.size,
        "views": "1x1",
        "sampling": f"the centre of each of {encoders.frames} equal segments of the clip",
        "resize": encoders.transform.describe(),
        "mean": facts["mean"],
        "std": facts["std"],
        "positions": facts["positions"],
        "dtype": facts["dtype"],
        "weights_sha256": facts["weights_sha256"],
    }


def versions() -> dict[str, str]:
    """Versions of stvl and of what computes for it; ``"absent"`` where a package is not installed."""
    found = {"stvl": __version__}
    for name in ("jax", "jaxlib", "flax", "numpy", "av"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def hash_texts(texts: Sequence[str]) -> str:
    """sha256 over texts in order; each ends with a zero byte so that moving a word from one to the next shows."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def hash_file(path: str | Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
