"""Two weights side by side: what every block computes on the same inputs, and which parameters differ."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Num

from stvl.core.errors import ConfigError, WeightsError, nearest
from stvl.models.activations import activations
from stvl.models.dual import DualEncoder, DualEncoderConfig
from stvl.pretrained.folder import Params, flat

#: Names of the inputs in a file of reference activations.
INPUTS = {"video": "input/video", "text": "input/text"}


@dataclasses.dataclass(frozen=True)
class Row:
    """How far one activation of A is from that of B.

    Attributes:
        name: ``video/blocks/3``.
        shape: of A's.
        max_abs: largest absolute difference.
        relative: `max_abs` over the largest absolute value of B; infinite where only B is 0 everywhere.
        cosine: smallest cosine between vectors along the last axis.
        problem: why the two cannot be compared; empty where they can.
    """

    name: str
    shape: tuple[int, ...]
    max_abs: float = math.nan
    relative: float = math.nan
    cosine: float = math.nan
    problem: str = ""

    def bad(self, threshold: float) -> bool:
        """Whether the relative difference is above `threshold`, or no number at all."""
        return bool(self.problem) or not self.relative <= threshold


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All rows in the order in which a model computes them.

    Attributes:
        rows: of names that both sides have.
        threshold: largest relative difference that counts as equal.
        only_left: names that only A has.
        only_right: names that only B has.
    """

    rows: tuple[Row, ...]
    threshold: float
    only_left: tuple[str, ...] = ()
    only_right: tuple[str, ...] = ()

    @property
    def first_bad(self) -> Row | None:
        """The first part that differs; those behind it differ because of it, or may."""
        return next((row for row in self.rows if row.bad(self.threshold)), None)


@dataclasses.dataclass(frozen=True)
class ParamRow:
    """One parameter that differs.

    Attributes:
        path: with slashes.
        problem: ``only in A``, ``only in B``, both shapes, or how the values differ.
        layers: of parameters that are stacked over layers, those that differ.
        max_abs: largest absolute difference; NaN where there is none to tell.
    """

    path: str
    problem: str
    layers: tuple[int, ...] = ()
    max_abs: float = math.nan


def random_inputs(
    model: DualEncoderConfig, frames: int, batch: int = 2, seed: int = 0
) -> dict[str, np.ndarray]:
    """Noise of uint8 (batch, frames, size, size, 3) under ``video`` and texts of random ids under ``text``.

    A text is a start id, random ids and an end id, which is the largest (CLIP's convention), padded with 0.
    """
    rng = np.random.default_rng(seed)
    size, context, top = model.video.image_size, model.text.context, model.text.vocabulary - 1
    text = np.zeros((batch, context), np.int32)
    for row in text:
        length = int(rng.integers(1, context - 1))
        row[: length + 2] = [top - 1, *rng.integers(1, top - 1, length), top]
    return {"video": rng.integers(0, 256, (batch, frames, size, size, 3), np.uint8), "text": text}


def run_activations(
    model: DualEncoderConfig, params: Params, inputs: Mapping[str, np.ndarray], dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    """`stvl.models.activations.activations`, with matrix products in full precision on every device.

    Raises:
        ConfigError: frames of another size than the model takes.
    """
    video, size = inputs.get("video"), model.video.image_size
    if video is not None and (video.ndim != 5 or video.shape[2:] != (size, size, 3)):
        raise ConfigError(
            f"the frames are {video.shape}, {model.video.title} takes (b, t, {size}, {size}, 3): weights of different"
            " sizes can only be compared parameter by parameter"
        )
    with jax.default_matmul_precision("highest"):
        return activations(DualEncoder(model, dtype), params, video, inputs.get("text"))


def compare(
    left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray], threshold: float = 1e-4
) -> Comparison:
    """Compare the activations that both sides have, in the order of `left`; B = `right` is the reference.

    Raises:
        WeightsError: no name in common.
        ConfigError: a threshold that is no positive number.
    """
    if not threshold > 0:
        raise ConfigError(f"the threshold is a number above 0, found {threshold}")
    both = [name for name in left if name in right]
    if not both:
        raise WeightsError(f"the two have no activation in common: {_some(left)} and {_some(right)}")
    return Comparison(
        rows=tuple(_row(name, left[name], right[name]) for name in both),
        threshold=threshold,
        only_left=tuple(name for name in left if name not in right),
        only_right=tuple(name for name in right if name not in left),
    )


def _row(name: str, left: Num[np.ndarray, "..."], right: Num[np.ndarray, "..."]) -> Row:
    one, two = left.astype(np.float64), right.astype(np.float64)
    if one.shape != two.shape:
        # A source may keep frames and places in one axis, in the same order.
        if one.size != two.size or one.shape[:1] != two.shape[:1] or one.shape[-1:] != two.shape[-1:]:
            return Row(name, left.shape, problem=f"shape {left.shape}, B has {right.shape}")
        two = two.reshape(one.shape)
    for side, array in (("A", one), ("B", two)):
        if not np.isfinite(array).all():
            return Row(name, left.shape, problem=f"NaN or infinities in {side}")
    largest, top = float(np.abs(one - two).max(initial=0)), float(np.abs(two).max(initial=0))
    relative = largest / top if top else (math.inf if largest else 0.0)
    return Row(name, left.shape, largest, relative, _cosine(np.atleast_1d(one), np.atleast_1d(two)))


def _cosine(one: np.ndarray, two: np.ndarray) -> float:
    dots, lengths = (one * two).sum(-1), np.linalg.norm(one, axis=-1) * np.linalg.norm(two, axis=-1)
    same = (one == two).all(-1)
    return float(np.where(same, 1.0, dots / np.where(lengths > 0, lengths, 1.0)).min(initial=1.0))


def read_activations(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, nothing in it executed; ``input/...`` are the inputs they were made from.

    Raises:
        WeightsError: no such file, another kind of file, arrays that hold no numbers.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as problem:
        raise WeightsError(f"{path} holds no activations as numpy.savez writes them: {problem}") from problem
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise WeightsError(f"{path}: {name} holds no numbers but {array.dtype}")
    return arrays


def split_inputs(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(inputs by tower, activations) of what `read_activations` gave.

    Raises:
        WeightsError: an ``input/...`` that is none of `INPUTS`.
    """
    for name in arrays:
        if name.startswith("input/") and name not in INPUTS.values():
            raise WeightsError(f"{name!r} is no input{nearest(name, INPUTS.values())}")
    inputs = {tower: arrays[name] for tower, name in INPUTS.items() if name in arrays}
    return inputs, {name: array for name, array in arrays.items() if not name.startswith("input/")}


def compare_params(left: Params, right: Params) -> tuple[list[ParamRow], int]:
    """The parameters that differ, in the order of their paths, and how many are equal bit by bit."""
    one, two = flat(left), flat(right)
    rows, equal = [], 0
    for path in sorted({*one, *two}):
        if path not in one or path not in two:
            rows.append(ParamRow(path, "only in A" if path in one else "only in B"))
            continue
        a, b = np.asarray(one[path]), np.asarray(two[path])
        if a.shape != b.shape:
            rows.append(ParamRow(path, f"{a.shape}, B has {b.shape}"))
        elif a.dtype == b.dtype and a.tobytes() == b.tobytes():
            equal += 1
        else:
            rows.append(_param_row(path, a.astype(np.float32), b.astype(np.float32)))
    return rows, equal


def _param_row(path: str, a: np.ndarray, b: np.ndarray) -> ParamRow:
    # NaN is unequal to itself: a parameter of NaN is always listed.
    unequal = a != b
    count = int(unequal.sum())
    layers: tuple[int, ...] = ()
    if "/layers/" in path:
        layers = tuple(np.flatnonzero(unequal.reshape(len(a), -1).any(axis=1)).tolist())
    text = f"{count:,} of {a.size:,} values" if count else "the same values in another dtype"
    return ParamRow(path, text, layers, float(np.abs(a - b).max(initial=0)))


def _some(names: Sequence[str] | Mapping[str, Any]) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "") or "nothing"
