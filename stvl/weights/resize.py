"""Rules for parameters whose shape depends on the input's size: the only places where loading changes numbers.

A `Resize` says what it does, tells the shape it makes before anything is read, and is applied to one tensor (of one
layer) on its way into the model. Arithmetic is in float64; the result has the input's dtype.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float, Num

from stvl.core.errors import WeightsError
from stvl.weights.rules import Shape

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Resize:
    """A rule from one shape to another.

    Attributes:
        says: what it does, for the log.
        shape: shape of the result for a shape of the input; raises `WeightsError` where the rule does not apply.
        apply: the result for an input that `shape` accepts.
    """

    says: str
    shape: Callable[[Shape], Shape]
    apply: Callable[[np.ndarray], np.ndarray]

    def __call__(self, array: np.ndarray, target: Shape) -> np.ndarray:
        """The resized array.

        Raises:
            WeightsError: the rule does not lead from the array's shape to `target`.
        """
        self.check(array.shape, target)
        return array if array.shape == target else self.apply(array)

    def check(self, source: Shape, target: Shape) -> None:
        """Raise where the rule does not lead from one shape to the other; no numbers are needed."""
        if source == target:
            return
        made = self.shape(source)
        if made != target:
            raise WeightsError(f"{self.says} makes {made} of {source}, the model has {target}")


def resize_places(rows: int, cols: int, source: tuple[int, int] | None = None) -> Resize:
    """The table of places P_xy to another grid: `resample_places`. The class token's row is not part of it.

    Args:
        rows: of the new grid.
        cols: of the new grid.
        source: rows and columns of the old grid; None for a square one.
    """

    def shape(old: Shape) -> Shape:
        if len(old) != 2:
            raise WeightsError(f"a table of places has axes (places, width), found {old}")
        _grid(old[0], source)
        return rows * cols, old[1]

    return Resize(
        f"places resampled to a grid of {rows} x {cols} (bicubic, antialias)",
        shape,
        lambda table: resample_places(table, rows, cols, source),
    )


def resize_times(frames: int) -> Resize:
    """The table of times P_t to another number of frames: `resample_times`."""

    def shape(old: Shape) -> Shape:
        if len(old) != 2 or not old[0]:
            raise WeightsError(f"a table of times has axes (frames, width), found {old}")
        return frames, old[1]

    return Resize(
        f"times interpolated to {frames} frames (linear)", shape, lambda table: resample_times(table, frames)
    )


def resize_patch(patch: int, method: Literal["bilinear", "bicubic"] = "bilinear") -> Resize:
    """The kernel of the patch embedding to another patch side: `resample_patch`."""

    def shape(old: Shape) -> Shape:
        if len(old) != 5 or old[1] != old[2]:
            raise WeightsError(f"a kernel of patches has axes (k, p, p, c, d), found {old}")
        return old[0], patch, patch, *old[3:]

    return Resize(
        f"patch kernel resized to {patch} x {patch} (pseudo-inverse of the {method} resize, FlexiViT)",
        shape,
        lambda kernel: resample_patch(kernel, patch, method),
    )


def inflate_patch(frames: int, how: Literal["centre", "average"] = "centre") -> Resize:
    """The kernel of one frame to a tube of `frames`: `inflate`."""

    def shape(old: Shape) -> Shape:
        if len(old) != 5 or old[0] != 1:
            raise WeightsError(f"a kernel of one frame has axes (1, p, p, c, d), found {old}")
        return frames, *old[1:]

    says = "in the centre frame, zeros around it" if how == "centre" else "in equal shares"
    return Resize(
        f"patch kernel inflated to {frames} frames ({says})", shape, lambda k: inflate(k, frames, how)
    )


def cut_context(context: int) -> Resize:
    """The text tower's position table to a shorter context: its first rows. A longer one is refused."""

    def shape(old: Shape) -> Shape:
        if len(old) != 2:
            raise WeightsError(f"a table of text positions has axes (context, width), found {old}")
        if context > old[0]:
            raise WeightsError(
                f"a context of {context} needs {context} positions, the source has {old[0]}: "
                "there is no rule for the others; use a context of at most that"
            )
        return context, old[1]

    return Resize(f"context cut to its first {context} positions", shape, lambda table: table[:context])


def chain(*rules: Resize) -> Resize:
    """Several rules one after the other: another patch side and a tube."""

    def shape(old: Shape) -> Shape:
        for rule in rules:
            old = rule.shape(old)
        return old

    def apply(array: np.ndarray) -> np.ndarray:
        for rule in rules:
            array = rule(array, rule.shape(array.shape))
        return array

    return Resize(", then ".join(rule.says for rule in rules), shape, apply)


def resample_places(
    table: Num[Array, "n d"], rows: int, cols: int, source: tuple[int, int] | None = None
) -> Num[Array, "m d"]:
    """Resample a table of places by separable bicubic weights with antialiasing.

    ``out[i, j] = sum_kl R[i, k] C[j, l] table[k, l]``, with `resize_matrix` for rows and columns. Places count rows first.
    Equal to torch's ``interpolate(mode="bicubic", antialias=True, align_corners=False)``.

    Args:
        table: one row a place.
        rows: of the new grid.
        cols: of the new grid.
        source: rows and columns of the old grid; None for a square one.

    Raises:
        WeightsError: the table is not of that grid, or not of a square one.
    """
    old = _grid(table.shape[0], source)
    if old == (rows, cols):
        return table
    down, across = resize_matrix(old[0], rows, "bicubic"), resize_matrix(old[1], cols, "bicubic")
    grid = table.astype(np.float64).reshape(*old, -1)
    made = np.einsum("ik,kld->ild", down, grid)
    made = np.einsum("jl,ild->ijd", across, made)
    return made.reshape(rows * cols, -1).astype(table.dtype)


def resample_times(table: Num[Array, "t d"], frames: int) -> Num[Array, "s d"]:
    """Interpolate a table of times linearly between the centres of equal parts of the clip.

    Row j of the result is read at ``(j + 1/2) T / frames - 1/2``, held at the ends; no antialiasing, for a table of times
    is a smooth curve that is looked up. Equal to torch's ``interpolate(mode="linear", align_corners=False)``.
    """
    if table.shape[0] == frames:
        return table
    at = (np.arange(frames) + 0.5) * (table.shape[0] / frames) - 0.5
    at = np.clip(at, 0, table.shape[0] - 1)
    low = np.minimum(np.floor(at).astype(int), max(table.shape[0] - 2, 0))
    share = (at - low)[:, None]
    wide = table.astype(np.float64)
    return ((1 - share) * wide[low] + share * wide[np.minimum(low + 1, len(wide) - 1)]).astype(table.dtype)


def resample_patch(
    kernel: Num[Array, "k p p c d"], patch: int, method: Literal["bilinear", "bicubic"] = "bilinear"
) -> Num[Array, "k q q c d"]:
    """Resize a patch embedding's kernel so that resized patches give the same tokens.

    With B the matrix that resizes an image patch, the kernel is ``pinv(B^T) w``: for a larger patch
    ``<B x, pinv(B^T) w> = <x, w>`` for every patch x; for a smaller one it is the closest in the mean over patches of
    independent pixels. B is separable, ``B = R (x) R``, and so is its pseudo-inverse.

    Args:
        kernel: frames, rows, columns, channels, width.
        patch: the new side.
        method: how B interpolates, without antialiasing (the image is enlarged or reduced by the same rule).

    Source:
        FlexiViT, arXiv 2212.08013, the section on how to resize patch embeddings ("PI-resize"); bilinear in its release.
    """
    if kernel.shape[1] == patch:
        return kernel
    inverse = np.linalg.pinv(resize_matrix(kernel.shape[1], patch, method, antialias=False).T)
    made = np.einsum("ay,kyxcd->kaxcd", inverse, kernel.astype(np.float64))
    made = np.einsum("bx,kaxcd->kabcd", inverse, made)
    return made.astype(kernel.dtype)


def inflate(
    kernel: Num[Array, "1 p p c d"], frames: int, how: Literal["centre", "average"] = "centre"
) -> Num[Array, "k p p c d"]:
    """One frame's kernel to a tube of `frames` that gives the same token for a still clip.

    ``centre``: the kernel at frame ``frames // 2`` and zeros elsewhere (ViViT, arXiv 2103.15691, section 3.4, "central
    frame"). ``average``: ``kernel / frames`` at every frame (I3D, arXiv 1705.07750, section 2.4).
    """
    if how == "average":
        share = kernel.astype(np.float64) / frames
        return np.repeat(share.astype(kernel.dtype), frames, axis=0)
    made = np.zeros((frames, *kernel.shape[1:]), kernel.dtype)
    made[frames // 2] = kernel[0]
    return made


def resize_matrix(
    old: int, new: int, method: Literal["bilinear", "bicubic"], antialias: bool = True
) -> Float[Array, "new old"]:
    """The matrix that resamples `old` samples to `new`, pixel centres at half-integers; rows sum to 1.

    ``W[i, j] ~ k(((i + 1/2) old / new - 1/2 - j) / s)``, with ``s = max(old / new, 1)`` under antialiasing and 1 without.
    Weights outside the samples are left out and the rest is scaled to 1 under antialiasing, as torch and jax.image do;
    without it they fall on the nearest sample, as torch does. Bicubic is Keys' kernel with a = -1/2 under antialiasing and
    a = -3/4 without (torch's constants).

    Source:
        Keys, Cubic convolution interpolation for digital image processing, IEEE ASSP 29 (1981), equation 4.
    """
    if old < 1 or new < 1:
        raise WeightsError(f"a side has at least one sample, found {old} to be resampled to {new}")
    stretch = max(old / new, 1.0) if antialias else 1.0
    radius = {"bilinear": 1, "bicubic": 2}[method]
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    reach = math.ceil(radius * stretch) + 1
    places = np.floor(centres)[:, None].astype(int) + np.arange(-reach, reach + 1)[None]
    distance = np.abs(centres[:, None] - places) / stretch
    weights = 1 - distance if method == "bilinear" else _keys(distance, -0.5 if antialias else -0.75)
    weights = np.where(distance < radius, weights, 0.0)
    if antialias:
        weights = np.where((places >= 0) & (places < old), weights, 0.0)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], np.clip(places, 0, old - 1)), weights)
    return matrix / matrix.sum(axis=1, keepdims=True)


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, far)


def _grid(places: int, source: tuple[int, int] | None) -> tuple[int, int]:
    if source is not None:
        if source[0] * source[1] != places:
            raise WeightsError(
                f"a grid of {source[0]} x {source[1]} has {source[0] * source[1]} places, found {places}"
            )
        return source
    side = math.isqrt(places)
    if side * side != places or not places:
        raise WeightsError(f"{places} places are not of a square grid: say how many rows and columns it has")
    return side, side
