"""Multi-Similarity: positives above a threshold, negatives below it, the hardest of both weighing most."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.core.config import config
from stvl.core.errors import ConfigError
from stvl.losses.pairs import Given, How, Metrics, Scored, both, check_pairs, finite, similarities
from stvl.losses.relevancy import (
    Codes,
    Relevancy,
    SharedLabel,
    VerbNoun,
    code_arrays,
    codes_of,
    tile_relevancy,
)
from stvl.ops.pairwise import LOGSUMEXP, TALLY, PerColumn, PerRow, Tile, pairwise


@config
class MultiSimilarity(How):
    """Multi-Similarity: mean over queries, mean of both directions; the own pair is a positive; no temperature.

    Attributes:
        alpha: sharpness of the positives; 2.
        beta: sharpness of the negatives; 50.
        threshold: gamma, the similarity that positives are to be above and negatives below; 0.5.
        positive: relevancy from which on a pair is a positive; 1 takes exact matches.
        directions: ``mean`` of the two directions or their ``sum``.
        relevancy: how c is computed from the batch's codes.
    """

    alpha: float = 2.0
    beta: float = 50.0
    threshold: float = 0.5
    positive: float = 1.0
    directions: Literal["mean", "sum"] = "mean"
    relevancy: VerbNoun | SharedLabel = VerbNoun()

    def __post_init__(self) -> None:
        finite(self, "alpha", "beta", above=0.0)
        finite(self, "threshold", above=-1.0)
        if not 0 < self.positive <= 1:
            raise ConfigError(
                f"positive is a relevancy above 0 and at most 1 (at 0 every pair would be one), found {self.positive}"
            )
        super().__post_init__()

    def of(self, given: Given) -> Scored:
        """See `How`."""
        return multi_similarity(given.video, given.text, codes_of(given.labels), self)


def multi_similarity(
    video: Float[Array, "b o"],
    text: Float[Array, "b o"],
    codes: tuple[Codes, Codes],
    options: MultiSimilarity | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """``1/B sum_i (1/a log(1 + sum_{P_i} e^{-a (s_ij - g)}) + 1/b log(1 + sum_{N_i} e^{b (s_ij - g)}))``, both ways.

    ``P_i`` holds i itself and every j whose relevancy is `positive` or more, ``N_i`` all others. An empty set costs 0.

    Returns the loss, ``positives`` (mean size of P_i) and the mean similarities of the pairs and of all others.

    Source: arXiv 2506.14356, Eq. 11, which writes one direction; Wang et al., CVPR 2019, whose mining of pairs is no part
    of the equation and is left out.
    """
    options = options or MultiSimilarity()
    check_pairs(video, text)
    rows, columns = (code_arrays(side) for side in codes)
    term = _Sets(options.relevancy, options.positive, options.alpha, options.beta, options.threshold)
    how = {"impl": options.impl, "options": options.options}
    found = pairwise(term, video, text, rows=rows, columns=columns, **how)

    def side(name: str) -> Float[Array, ""]:
        # softplus(log sum exp) = log(1 + sum exp); -inf, an empty set, gives 0.
        near = jax.nn.softplus(found[f"{name}_near"]) / options.alpha
        far = jax.nn.softplus(found[f"{name}_far"]) / options.beta
        return (near + far).mean()

    metrics = {"positives": found["count"].mean(), **similarities(video, text)}
    return both(side("clips"), side("texts"), options.directions), metrics


@dataclasses.dataclass(frozen=True)
class _Sets:
    """Exponents of positives and negatives; -inf for what is not in the set."""

    relevancy: Relevancy
    positive: float
    alpha: float
    beta: float
    threshold: float

    def __call__(self, tile: Tile) -> dict[str, PerRow | PerColumn]:
        c = tile_relevancy(tile, self.relevancy)
        chosen = (c >= self.positive - 1e-6) | tile.diagonal
        above = tile.similarity - self.threshold
        near = jnp.where(chosen, -self.alpha * above, -jnp.inf)
        far = jnp.where(chosen, -jnp.inf, self.beta * above)
        return {
            "clips_near": PerRow(near, LOGSUMEXP),
            "clips_far": PerRow(far, LOGSUMEXP),
            "texts_near": PerColumn(near, LOGSUMEXP),
            "texts_far": PerColumn(far, LOGSUMEXP),
            "count": PerRow(chosen.astype(jnp.float32), TALLY),
        }
