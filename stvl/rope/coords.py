"""Coordinates of the tokens of a clip: where each token stands in time, row and column."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from stvl.core.errors import ConfigError


def grid(frames: int, rows: int, columns: int) -> Float[np.ndarray, "n 3"]:
    """Coordinates ``(t, y, x)`` of a ``frames x rows x columns`` grid of tokens, time slowest, column fastest.

    Raises:
        ConfigError: a side that is below one.
    """
    if min(frames, rows, columns) < 1:
        raise ConfigError(f"a token grid needs sides of at least 1, found {(frames, rows, columns)}")
    axes = np.meshgrid(np.arange(frames), np.arange(rows), np.arange(columns), indexing="ij")
    return np.stack([axis.reshape(-1) for axis in axes], axis=-1).astype(np.float64)


def rescale(index: Float[np.ndarray, "n"], length: int, reference: float) -> Float[np.ndarray, "n"]:
    """EVA-02's grid rescaling ``i / length * reference``: every grid covers the coordinates of the pre-training grid.

    ``reference`` = 16 for the EVA02-CLIP towers (EVA-02, arXiv 2303.11331; `ref_feat_shape` of the public models).
    """
    return index / length * reference


def with_prefix(coords: Float[np.ndarray, "n a"], prefix: int) -> Float[np.ndarray, "m a"]:
    """Put `prefix` tokens at the origin in front: their angle is 0, so class and register tokens are not rotated.

    Raises:
        ConfigError: fewer than 0 tokens.
    """
    if prefix < 0:
        raise ConfigError(f"a grid has 0 or more tokens in front of it, found prefix = {prefix}")
    return np.concatenate([np.zeros((prefix, coords.shape[1])), coords]) if prefix else coords


def merge_order(frames: int, rows: int, columns: int, merge: int = 2) -> Int[np.ndarray, "n"]:
    """Order in which Qwen2-VL's vision tower keeps the tokens of a grid: by blocks of ``merge x merge``, row by row.

    ``coords[merge_order(...)]`` are the coordinates in that order (transformers, ``get_vision_position_ids``).

    Raises:
        ConfigError: sides that are not divisible by `merge`.
    """
    if merge < 1 or rows % merge or columns % merge:
        raise ConfigError(
            f"a grid of {rows} x {columns} tokens does not divide into blocks of {merge} x {merge}"
        )
    index = np.arange(frames * rows * columns)
    blocks = index.reshape(frames, rows // merge, merge, columns // merge, merge)
    return blocks.transpose(0, 1, 3, 2, 4).reshape(-1)
