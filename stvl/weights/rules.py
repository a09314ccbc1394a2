"""How the tensors of a foreign checkpoint and the parameters of a model correspond: data, readable in both directions.

A `Rule` names one source tensor and the parameters that it holds. ``{i}`` in the source is a layer's number; its targets
are then row i of parameters that are stacked over layers. Between the two stand steps, each with an exact inverse: they
move numbers and never change one, so that a round trip is exact bit by bit.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol, runtime_checkable

import numpy as np

Shape = tuple[int, ...]
#: Arrays between two steps: one to begin with, one a target at the end.
Parts = tuple[np.ndarray, ...]


@runtime_checkable
class Step(Protocol):
    """One move of numbers, and its inverse."""

    def forward(self, parts: Parts, targets: tuple[Shape, ...]) -> Parts:
        """Towards the model; `targets` are the shapes that come out at the end, without the layer axis."""
        ...

    def backward(self, parts: Parts) -> Parts:
        """Towards the source."""
        ...


@dataclasses.dataclass(frozen=True)
class Linear:
    """torch's ``(out, in)`` to a kernel ``(in..., out...)``, for each part.

    Attributes:
        inputs: how many axes of the kernel are inputs.
    """

    inputs: int = 1

    def forward(self, parts: Parts, targets: tuple[Shape, ...]) -> Parts:
        """Transpose, then unfold heads."""
        return tuple(part.T.reshape(shape) for part, shape in zip(parts, targets, strict=True))

    def backward(self, parts: Parts) -> Parts:
        """Fold heads, then transpose."""
        return tuple(part.reshape(math.prod(part.shape[: self.inputs]), -1).T for part in parts)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A matrix that is stored ``(in, out)`` already, as CLIP's ``text_projection``: nothing moves."""

    def forward(self, parts: Parts, targets: tuple[Shape, ...]) -> Parts:
        """Nothing to move."""
        return parts

    def backward(self, parts: Parts) -> Parts:
        """Nothing to move."""
        return parts


@dataclasses.dataclass(frozen=True)
class Flat:
    """A vector to the target's axes (biases and scales over heads), for each part."""

    def forward(self, parts: Parts, targets: tuple[Shape, ...]) -> Parts:
        """Unfold."""
        return tuple(part.reshape(shape) for part, shape in zip(parts, targets, strict=True))

    def backward(self, parts: Parts) -> Parts:
        """Fold."""
        return tuple(part.reshape(-1) for part in parts)


@dataclasses.dataclass(frozen=True)
class Split:
    """Equal parts along the first axis: a fused ``(3 d, d)`` projection to query, key and value."""

    count: int = 3

    def forward(self, parts: Parts, targets: tuple[Shape, ...]) -> Parts:
        """Cut."""
        (whole,) = parts
        return tuple(np.split(whole, self.count, axis=0))

    def backward(self, parts: Parts) -> Parts:
        """Join."""
        return (np.concatenate(parts, axis=0),)


@dataclasses.dataclass(frozen=True)
class First:
    """The first row, and all others: a position table to the class token's row and the places' rows."""

    def forward(self, parts: Parts, targets: tuple[Shape, ...]) -> Parts:
        """Cut."""
        (whole,) = parts
        return whole[0], whole[1:]

    def backward(self, parts: Parts) -> Parts:
        """Join."""
        first, others = parts
        return (np.concatenate([first[None], others], axis=0),)


@dataclasses.dataclass(frozen=True)
class Leading:
    """Source axes of length one in front that the parameter does not have: ``(1, 1, d)`` to ``(d)``."""

    count: int = 1

    def forward(self, parts: Parts, targets: tuple[Shape, ...]) -> Parts:
        """Take them away."""
        return tuple(part.reshape(part.shape[self.count :]) for part in parts)

    def backward(self, parts: Parts) -> Parts:
        """Put them back."""
        return tuple(part.reshape((1,) * self.count + part.shape) for part in parts)


@dataclasses.dataclass(frozen=True)
class Patches:
    """torch's convolution ``(d, c, p, p)`` to a tube kernel ``(1, p, p, c, d)``."""

    def forward(self, parts: Parts, targets: tuple[Shape, ...]) -> Parts:
        """Pixels first, channels behind them."""
        (kernel,) = parts
        return (kernel.transpose(2, 3, 1, 0)[None],)

    def backward(self, parts: Parts) -> Parts:
        """The kernel of one frame."""
        (kernel,) = parts
        return (kernel[0].transpose(3, 2, 0, 1),)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor of the source (one a layer where it has ``{i}``) and the parameters it holds.

    Attributes:
        source: name in the checkpoint; ``{i}`` is a layer's number.
        targets: paths of parameters with slashes, ``video/stem/kernel``.
        steps: moves from source to targets, in order; none where the shapes are the same.
    """

    source: str
    targets: tuple[str, ...]
    steps: tuple[Step, ...] = ()

    def forward(self, array: np.ndarray, targets: tuple[Shape, ...]) -> Parts:
        """The parameters (of one layer) that a source tensor holds."""
        parts: Parts = (array,)
        for step in self.steps:
            parts = step.forward(parts, targets)
        return parts

    def backward(self, parts: Parts) -> np.ndarray:
        """The source tensor that holds these parameters (of one layer)."""
        for step in reversed(self.steps):
            parts = step.backward(parts)
        (array,) = parts
        return array


@dataclasses.dataclass(frozen=True)
class Ignored:
    """Source tensors that are not parameters, and why: rotary tables, buffers, another task's head.

    Attributes:
        pattern: a regular expression for the whole name.
        why: said to the user.
    """

    pattern: str
    why: str


@dataclasses.dataclass(frozen=True)
class New:
    """Parameters that a layout never holds, and how they start.

    Attributes:
        pattern: a regular expression for the whole path.
        why: said to the user.
    """

    pattern: str
    why: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """A checkpoint's naming: every tensor has a rule or is ignored by name; every parameter has a rule or is new by name.

    Attributes:
        name: ``FAMILY/NAMING``, e.g. ``eva02-clip/open_clip``.
        rules: where tensors go.
        ignored: tensors that go nowhere.
        new: parameters that come from nowhere.
        prefixes: wrappers that training programs put before every name (``module.``); taken away first.
    """

    name: str
    rules: tuple[Rule, ...]
    ignored: tuple[Ignored, ...] = ()
    new: tuple[New, ...] = ()
    prefixes: tuple[str, ...] = ("module.", "_orig_mod.")
