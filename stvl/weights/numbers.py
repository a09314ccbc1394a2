"""Checks and casts of whole tensors, in pieces, so that they need no second tensor's memory."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from stvl.core.errors import WeightsError

_PIECE = 1 << 20


def is_float(dtype: Any) -> bool:
    """Whether a dtype holds real numbers with a fraction: float of any width, bfloat16, float8."""
    dtype = np.dtype(dtype)
    if dtype.kind == "c":
        return False
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return True


def check_finite(array: np.ndarray, what: str) -> None:
    """Raise where a tensor holds NaN or infinities; `what` names it.

    Raises:
        WeightsError: with the count, and the place of the first one.
    """
    if not is_float(array.dtype):
        return
    count, first = 0, -1
    flat = array.reshape(-1)
    for begin in range(0, flat.size, _PIECE):
        bad = np.flatnonzero(~np.isfinite(flat[begin : begin + _PIECE]))
        if bad.size and first < 0:
            first = begin + int(bad[0])
        count += bad.size
    if count:
        index = tuple(int(part) for part in np.unravel_index(first, array.shape))
        raise WeightsError(
            f"{what} holds NaN or infinities: {count} of {flat.size} numbers, the first is {flat[first]} at {index}"
        )


def cast(array: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    """An array in another dtype, rounded to the nearest, ties to even; `what` names it.

    Raises:
        WeightsError: a finite number is too large for `dtype`, or the dtypes are of different kinds.
    """
    if array.dtype == dtype:
        return array
    if not (is_float(array.dtype) and is_float(dtype)):
        raise WeightsError(f"{what} is {array.dtype}, the parameter is {dtype}")
    with np.errstate(over="ignore"):
        made = array.astype(dtype)
    if float(ml_dtypes.finfo(array.dtype).max) > float(ml_dtypes.finfo(dtype).max):
        flat = made.reshape(-1)
        for begin in range(0, flat.size, _PIECE):
            if not np.isfinite(flat[begin : begin + _PIECE]).all():
                raise WeightsError(
                    f"{what} holds numbers beyond the range of {dtype} ({float(ml_dtypes.finfo(dtype).max):g})"
                )
    return made
