"""Hinge losses over triplets (query, its pair, another): MI-MM, adaptive MI-MM, relevance margin.

All three are means over the 2 B (B - 1) terms of both directions; the own pair is the positive and no term itself. They
compare cosine similarities, so a temperature that the model learns is not used.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.core.config import config
from stvl.losses.pairs import Given, How, Metrics, Scored, check_pairs, finite, similarities, terms
from stvl.losses.relevancy import (
    Codes,
    Relevancy,
    SharedLabel,
    VerbNoun,
    code_arrays,
    codes_of,
    pair_relevancy,
    tile_relevancy,
)
from stvl.ops.pairwise import SUM, TALLY, PairwiseOptions, PerRow, Tile, pair_similarity, pairwise


@config
class MIMM(How):
    """MI-MM: mean over both directions' terms of ``[g - s_ii + s_ij]+``, the same margin for every pair.

    Attributes:
        margin: g; 0.2 is the best on EK-100 (arXiv 2506.14356, Section V-C).
    """

    margin: float = 0.2

    def __post_init__(self) -> None:
        finite(self, "margin")
        super().__post_init__()

    def of(self, given: Given) -> Scored:
        """See `How`."""
        return mimm(given.video, given.text, self.margin, impl=self.impl, options=self.options)


@config
class AdaptiveMIMM(How):
    """Adaptive MI-MM: mean over both directions' terms of ``[c_ii g - s_ii + s_ij]+``, margin by the pair's relevancy.

    Attributes:
        margin: g; 0.4 is the best on EK-100 (arXiv 2506.14356, Section V-C).
        relevancy: how c is computed from the batch's codes.
    """

    margin: float = 0.4
    relevancy: VerbNoun | SharedLabel = VerbNoun()

    def __post_init__(self) -> None:
        finite(self, "margin")
        super().__post_init__()

    def of(self, given: Given) -> Scored:
        """See `How`."""
        own = pair_relevancy(*codes_of(given.labels), self.relevancy)
        return adaptive_mimm(given.video, given.text, own, self.margin, impl=self.impl, options=self.options)


@config
class RelevanceMargin(How):
    """Relevance margin: mean over both directions' terms of ``[(1 - c_ij) g - s_ii + s_ij]+``, margin by the other's c.

    Attributes:
        margin: g; the source has none (g = 1).
        relevancy: how c is computed from the batch's codes.
    """

    margin: float = 1.0
    relevancy: VerbNoun | SharedLabel = VerbNoun()

    def __post_init__(self) -> None:
        finite(self, "margin")
        super().__post_init__()

    def of(self, given: Given) -> Scored:
        """See `How`."""
        codes = codes_of(given.labels)
        how = {"impl": self.impl, "options": self.options}
        return relevance_margin(given.video, given.text, codes, self.margin, self.relevancy, **how)


def mimm(
    video: Float[Array, "b o"],
    text: Float[Array, "b o"],
    margin: float = 0.2,
    *,
    impl: str | None = None,
    options: PairwiseOptions | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """``mean_{i != j} [g - s_ii + s_ij]+`` over rows and columns: 2 B (B - 1) terms; a batch of one costs 0.

    Returns the loss, ``active`` (share of terms above 0) and the mean similarities of pairs and others.

    Source: arXiv 2506.14356, Eq. 4; the mean over the terms as in the releases of EgoVLP, LaViLa and AVION.
    """
    own = jnp.full(check_pairs(video, text), margin, jnp.float32)
    return _hinge(_FixedByQuery(), video, text, ({"demand": own}, {"demand": own}), impl, options)


def adaptive_mimm(
    video: Float[Array, "b o"],
    text: Float[Array, "b o"],
    own: Float[Array, " b"],
    margin: float = 0.4,
    *,
    impl: str | None = None,
    options: PairwiseOptions | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """``mean_{i != j} [c_ii g - s_ii + s_ij]+`` over rows and columns; `own` is c_ii. Metrics as `mimm`.

    The relevancy of j is taken as 0, whatever it is: that is what SMS mends.

    Source: arXiv 2506.14356, Eq. 6; EgoVLP (arXiv 2206.01670), which brings c_ii with each drawn text.
    """
    check_pairs(video, text)
    demand = {"demand": margin * own.astype(jnp.float32)}
    return _hinge(_FixedByQuery(), video, text, (demand, demand), impl, options)


def relevance_margin(
    video: Float[Array, "b o"],
    text: Float[Array, "b o"],
    codes: tuple[Codes, Codes],
    margin: float = 1.0,
    relevancy: Relevancy | None = None,
    *,
    impl: str | None = None,
    options: PairwiseOptions | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """``mean_{i != j} [(1 - c_ij) g - s_ii + s_ij]+`` over rows and columns. Metrics as `mimm`.

    Source: arXiv 2204.13001, whose margin is one minus the relevancy of the negative. There the negatives are mined;
    here, as in the other losses of arXiv 2506.14356, every other pair of the batch is one.
    """
    check_pairs(video, text)
    sides = (code_arrays(codes[0]), code_arrays(codes[1]))
    return _hinge(_ByOther(relevancy or VerbNoun(), margin), video, text, sides, impl, options)


@dataclasses.dataclass(frozen=True)
class _FixedByQuery:
    """``[demand_i - s_ii + s_ij]+``; the demand is that of the row, or of the column."""

    def __call__(self, tile: Tile) -> dict[str, PerRow]:
        rows = tile.rows["demand"][:, None] - tile.rows["own"][:, None]
        columns = tile.columns["demand"][None, :] - tile.columns["own"][None, :]
        return _sums(tile, rows, columns)


@dataclasses.dataclass(frozen=True)
class _ByOther:
    """``[(1 - c_ij) g - s_ii + s_ij]+``."""

    relevancy: Relevancy
    margin: float

    def __call__(self, tile: Tile) -> dict[str, PerRow]:
        demand = self.margin * (1.0 - tile_relevancy(tile, self.relevancy))
        return _sums(tile, demand - tile.rows["own"][:, None], demand - tile.columns["own"][None, :])


def _sums(tile: Tile, rows: Float[Array, "#q #s"], columns: Float[Array, "#q #s"]) -> dict[str, PerRow]:
    """Both directions of ``[... + s_ij]+`` off the diagonal, added: the loss is a mean over both."""
    sides = [jnp.where(tile.diagonal, 0.0, jax.nn.relu(x + tile.similarity)) for x in (rows, columns)]
    active = sum((x > 0).astype(jnp.float32) for x in sides)
    return {"terms": PerRow(sides[0] + sides[1], SUM), "active": PerRow(active, TALLY)}


def _hinge(
    term: _FixedByQuery | _ByOther,
    video: Float[Array, "b o"],
    text: Float[Array, "b o"],
    sides: tuple[dict[str, Array], dict[str, Array]],
    impl: str | None,
    options: PairwiseOptions | None,
) -> tuple[Float[Array, ""], Metrics]:
    own = {"own": pair_similarity(video, text)}
    found = pairwise(
        term, video, text, rows=sides[0] | own, columns=sides[1] | own, impl=impl, options=options
    )
    count = terms(video.shape[0])
    metrics = {"active": found["active"].sum() / count, **similarities(video, text)}
    return found["terms"].sum() / count, metrics
