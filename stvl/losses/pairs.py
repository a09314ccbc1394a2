"""What losses over pairs have in common: checks, the form in which they go over all pairs, and plain metrics."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.core.config import config
from stvl.core.errors import ConfigError
from stvl.losses.relevancy import Labels
from stvl.ops.pairwise import PairwiseOptions, pair_similarity

Metrics = dict[str, Float[Array, ""]]
Scored = tuple[Float[Array, ""], Metrics]
Directions = Literal["mean", "sum"]


class Given(NamedTuple):
    """What a loss is called with: unit features whose rows are pairs, and what the model and the batch have besides."""

    video: Float[Array, "b o"]
    text: Float[Array, "b o"]
    temperature: Float[Array, ""] | None
    bias: Float[Array, ""] | None
    labels: Labels | None


@config
class How:
    """Base of the losses: how they are called, and how they go over all pairs, which never changes the loss.

    Attributes:
        impl: ``dense``, ``chunked`` or ``ring`` (`stvl.ops.pairwise`); None chooses by size and mesh.
        chunk: rows of a tile; None lets the op choose.
    """

    impl: Literal["dense", "chunked", "ring"] | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        _ = self.options

    def __call__(
        self,
        video: Float[Array, "b o"],
        text: Float[Array, "b o"],
        temperature: Float[Array, ""] | None = None,
        *,
        bias: Float[Array, ""] | None = None,
        labels: Labels | None = None,
    ) -> Scored:
        """Loss and metrics of unit features whose rows are pairs; exact over the global batch under sharding."""
        return self.of(Given(video, text, temperature, bias, labels))

    def of(self, given: Given) -> Scored:
        """The loss itself."""
        raise NotImplementedError(f"{type(self).__name__} says no loss")

    @property
    def options(self) -> PairwiseOptions:
        """The options of the op."""
        return PairwiseOptions(chunk=self.chunk)


def check_pairs(video: Float[Array, "b o"], text: Float[Array, "b1 o1"]) -> int:
    """The number of pairs.

    Raises:
        ValueError: not as many clips as texts of one width.
    """
    if video.ndim != 2 or video.shape != text.shape:
        raise ValueError(
            f"a loss over pairs takes as many clips as texts in one space, found {video.shape} and {text.shape}"
        )
    return video.shape[0]


def terms(size: int) -> int:
    """``2 B (B - 1)``: pairs off the diagonal, both directions; at least 1, so that a batch of one costs 0."""
    return max(2 * size * (size - 1), 1)


def both(one: Float[Array, ""], two: Float[Array, ""], directions: str) -> Float[Array, ""]:
    """The mean or the sum of two directions."""
    return (one + two) * (0.5 if directions == "mean" else 1.0)


def similarities(video: Float[Array, "b o"], text: Float[Array, "b o"]) -> Metrics:
    """Mean similarity of the pairs and of all others, as metrics: no gradient flows.

    ``sum_ij s_ij = (sum_i v_i) . (sum_j t_j)``, so the matrix is not needed.
    """
    one, two = (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (video, text))
    own, size = pair_similarity(one, two).sum(), one.shape[0]
    others = jnp.vdot(one.sum(0), two.sum(0)) - own
    return {
        "positive_similarity": own / size,
        "negative_similarity": others / max(size * (size - 1), 1),
    }


def finite(owner: object, *names: str, above: float | None = None) -> None:
    """Refuse fields that are not finite numbers >= 0 (or > `above`).

    Raises:
        ConfigError: the field, what it may be and what it is.
    """
    for name in names:
        value = getattr(owner, name)
        if not math.isfinite(value) or (value < 0 if above is None else value <= above):
            least = "at least 0" if above is None else f"above {above:g}"
            raise ConfigError(f"{type(owner).__name__}.{name} is a finite number {least}, found {value}")
