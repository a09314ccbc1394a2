"""What an evaluation asks of a model: two functions from arrays to arrays, and a description of itself."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from stvl.core.errors import ConfigError, StvlError, nearest
from stvl.data.augment import EvalTransform
from stvl.data.text import Tokenizer

#: What `Encoders.describe` must tell, because a score cannot be compared without it.
DESCRIBED = ("positions", "dtype", "weights_sha256", "mean", "std")


@runtime_checkable
class Described(Protocol):
    """What a protocol card asks of any model: the frames that it takes, and a description of itself."""

    frames: int
    size: int

    @property
    def transform(self) -> EvalTransform: ...

    def describe(self) -> dict[str, Any]:
        """At least the facts of `DESCRIBED`, as JSON types."""
        ...


@runtime_checkable
class Encoders(Protocol):
    """A video encoder and a text encoder with one shared space, weights included.

    Attributes:
        frames: frames that the video encoder takes.
        size: rows and columns of a frame.
        width: numbers in an embedding.
        tokenizer: texts to ids.
        transform: frames as decoded to frames as the encoder takes them.
    """

    frames: int
    size: int
    width: int

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def transform(self) -> EvalTransform: ...

    def describe(self) -> dict[str, Any]:
        """The facts for a protocol card: ``positions, dtype, weights_sha256, mean, std`` and any more, as JSON types."""
        ...

    def video(self, frames: UInt8[np.ndarray, "b t y x c"]) -> Float32[np.ndarray, "b o"]:
        """L2-normalised embeddings of clips."""
        ...

    def text(self, ids: Int32[np.ndarray, "b l"]) -> Float32[np.ndarray, "b o"]:
        """L2-normalised embeddings of texts."""
        ...


def described(encoders: Described) -> dict[str, Any]:
    """`encoders.describe()`, checked to hold all of `DESCRIBED`.

    Raises:
        ConfigError: a fact is missing, or the transform makes frames of another size than the encoder takes.
    """
    facts = encoders.describe()
    for key in DESCRIBED:
        if key not in facts:
            raise ConfigError(
                f"the encoders do not describe {key!r}, without which no score is printed{nearest(key, facts)}"
            )
    if encoders.transform.size != encoders.size:
        raise ConfigError(
            f"the transform makes frames of {encoders.transform.size}, the encoder takes {encoders.size}"
        )
    return facts


def embed_batch(
    encoders: Encoders, array: np.ndarray, names: list[str], *, kind: str, batch: int
) -> Float32[np.ndarray, "n o"]:
    """Embed up to `batch` clips (``kind="video"``) or texts (``"text"``), padded to `batch` so that one shape compiles.

    Raises:
        ConfigError: embeddings of another shape than the encoders announce.
        StvlError: non-finite or unnormalised embeddings, with the names of the inputs.
    """
    count = len(array)
    if count < batch:
        array = np.concatenate([array, np.repeat(array[-1:], batch - count, axis=0)])
    out = np.asarray(encoders.video(array) if kind == "video" else encoders.text(array), np.float32)
    if out.shape != (batch, encoders.width):
        raise ConfigError(f"{kind} embeddings are {out.shape}, expected {(batch, encoders.width)}")
    out = out[:count]
    length = np.linalg.norm(out, axis=1)
    bad = ~(np.abs(length - 1) < 1e-2)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise StvlError(
            f"{int(bad.sum())} {kind} embeddings of a batch of {count} are not of length 1, first {names[row]!r}:"
            f" {length[row]}; NaN here means damaged weights"
        )
    return out
