"""Where weights came from: hashes of files, and the record of a source that a weights folder keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stvl.core.errors import WeightsError


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(found: str, expected: str, what: str) -> None:
    """Compare two hashes.

    Raises:
        WeightsError: they differ, or `expected` is no SHA-256.
    """
    wanted = expected.strip().lower()
    if len(wanted) != 64 or set(wanted) - set("0123456789abcdef"):
        raise WeightsError(f"a SHA-256 is 64 hexadecimal digits, found {expected!r}")
    if found != wanted:
        raise WeightsError(
            f"{what} is not the expected file: its SHA-256 is {found}, expected {wanted}. "
            "Fetch it again, or ask its publisher for the hash"
        )


def origin_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the public checkpoint behind a weights folder, also where other weights folders lie between; or {}."""
    record = facts.get("source", {})
    while str(record.get("layout", "")).startswith("stvl/") and record.get("origin"):
        record = record["origin"]
    return {} if str(record.get("layout", "")).startswith("stvl/") else dict(record)
