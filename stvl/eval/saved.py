"""Scores that another program saved, and the relevancy matrix that they are judged by."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from stvl.core.errors import ConfigError, DataError
from stvl.data.records import ClipTable
from stvl.data.sets.epic import read_epic
from stvl.eval.card import Split, hash_file, hash_texts, versions
from stvl.eval.metrics.mir import relevancy
from stvl.eval.pickled import read_pickled_array
from stvl.eval.protocols.epic_mir import EpicMIR
from stvl.eval.result import atomic_write

_ROWS = 512  # rows of a matrix that are compared at once


@dataclasses.dataclass(frozen=True)
class EpicRelevancy:
    """The relevancy of every sentence to every clip of a retrieval split, with what it was made from."""

    table: ClipTable
    texts: tuple[str, ...]
    matrix: Float32[np.ndarray, "clips sentences"]


def epic_relevancy(annotations: str | Path, sentences: str | Path) -> EpicRelevancy:
    """``c = 0.5 * IoU(verbs) + 0.5 * IoU(nouns)`` of a split of EPIC-KITCHENS-100, float32, without any video file.

    The same files give the same bytes every time, on every machine: only sums of small whole numbers, one division and
    halves are rounded.

    Raises:
        DataError: files that cannot be read, or a sentence of another split.
    """
    table = read_epic(annotations, "", check_files=False)
    protocol = EpicMIR(csv=str(annotations), sentences=str(sentences), videos="")
    texts, sources = protocol.matched(table)
    matrix = relevancy(
        np.array([clip.verb for clip in table.clips]),
        [clip.nouns for clip in table.clips],
        np.array([clip.verb for clip in sources]),
        [clip.nouns for clip in sources],
    )
    return EpicRelevancy(table, texts, matrix)


def load_scores(path: str | Path, what: str = "similarities") -> Float[np.ndarray, "..."]:
    """Floating numbers from an .npy file, mapped into memory instead of read; nothing in the file is executed.

    Raises:
        DataError: no such file, no .npy file, objects or whole numbers inside.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file ({what} expected)") from None
    except (OSError, ValueError, EOFError) as problem:
        raise DataError(f"{path} does not hold {what} as an .npy file: {problem}") from problem
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} does not hold {what}: it is an .npz archive, expected one .npy array")
    if array.dtype.kind != "f":
        raise DataError(f"{path} does not hold {what}: expected floating numbers, found {array.dtype}")
    return array


def load_matrix(path: str | Path) -> np.ndarray:
    """A matrix from .npy, or from a pickle that holds one numpy array (see `stvl.eval.pickled`).

    Raises:
        DataError: another kind of file, or not two axes.
    """
    pickled = Path(path).suffix.lower() in (".pkl", ".pickle")
    matrix = read_pickled_array(path) if pickled else load_scores(path, "a relevancy matrix")
    if matrix.ndim != 2:
        raise DataError(f"{path}: a relevancy matrix has two axes, found shape {matrix.shape}")
    return matrix


def save_matrix(path: str | Path, matrix: Float32[np.ndarray, "rows columns"]) -> None:
    """Write an .npy file, all or nothing. Raises: OSError, ConfigError for a name that does not end in .npy."""
    if not str(path).endswith(".npy"):
        raise ConfigError(f"the matrix is written as .npy, found the name {str(path)!r}")
    atomic_write(path, lambda file: np.save(file, matrix, allow_pickle=False))


def compare_matrices(mine: Float[np.ndarray, "..."], other: np.ndarray) -> dict[str, Any]:
    """How far two relevancy matrices are apart.

    Returns:
        ``max_difference`` and its ``at`` (row, column), ``different`` (cells further apart than 1e-6), ``cells``,
        ``ones`` and ``ones_other`` (cells of relevancy 1), ``above_0`` and ``above_0_other`` (shares).

    Raises:
        ConfigError: shapes that differ, with a hint where one looks transposed.
        DataError: NaN in the other.
    """
    if mine.shape != other.shape:
        hint = " (it looks transposed)" if mine.shape == other.shape[::-1] else ""
        raise ConfigError(
            f"the annotations give relevancies {mine.shape}, the other matrix is {other.shape}{hint}"
        )
    most, at, different, ones, above = 0.0, (0, 0), 0, [0, 0], [0, 0]
    for start in range(0, len(mine), _ROWS):
        pair = [np.asarray(side[start : start + _ROWS], np.float64) for side in (mine, other)]
        if np.isnan(pair[1]).any():
            row, column = np.argwhere(np.isnan(pair[1]))[0]
            raise DataError(f"the other matrix holds NaN, first in row {start + row}, column {column}")
        gap = np.abs(pair[0] - pair[1])
        place = np.unravel_index(int(gap.argmax()), gap.shape)
        if gap[place] > most:
            most, at = float(gap[place]), (start + int(place[0]), int(place[1]))
        different += int((gap > 1e-6).sum())
        for side, values in enumerate(pair):
            # A rounded 1 is a 1 as well; the next smaller relevancy is well below.
            ones[side] += int((np.abs(values - 1) < 1e-6).sum())
            above[side] += int((values > 1e-6).sum())
    return {
        "max_difference": most,
        "at": at,
        "different": different,
        "cells": int(mine.size),
        "ones": ones[0],
        "ones_other": ones[1],
        "above_0": above[0] / mine.size,
        "above_0_other": above[1] / mine.size,
    }


def saved_card(protocol: str, split: Split, scores: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """The protocol card of saved scores: the data and the scores are known by their hashes, the model is not.

    Raises:
        OSError: a file that cannot be read.
    """
    return {
        "protocol": protocol,
        "split": split.name,
        "clips": len(split.table),
        "clips_sha256": split.table.sha256,
        "texts": len(split.texts),
        "texts_sha256": hash_texts(split.texts),
        "annotations": [{"file": Path(path).name, "sha256": hash_file(path)} for path in split.annotations],
        "scores": [{"file": Path(path).name, "sha256": hash_file(path)} for path in scores],
        "model": "unknown: the scores were saved by another program",
        "post_processing": "unknown",
        "versions": versions(),
        **more,
    }
