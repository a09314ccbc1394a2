"""Symmetric Multi-Similarity: graded relevancy on both sides of every comparison.

Both losses here are means over the 2 B (B - 1) terms of both directions; the own pair is drawn as the positive, but where
another is more relevant the hinge turns round. They compare cosine similarities, so a temperature that the model learns
is not used.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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

#: Relevancies are fractions of small numbers of classes in f32; two that differ at all differ by far more than this.
ROUNDING = 1e-6


@runtime_checkable
class Variant(Protocol):
    """The three cases of SMS."""

    def gap(self, own: Float[Array, "*any"], other: Float[Array, "*any2"]) -> Float[Array, "..."]:
        """``R = c_ii - c_ij``."""
        ...

    def higher(self, gap: Float[Array, "q s"]) -> Bool[Array, "q s"]:
        """Where the own pair is the more relevant one."""
        ...

    def lower(self, gap: Float[Array, "q s"]) -> Bool[Array, "q s"]:
        """Where the other is; what is neither counts as equal."""
        ...

    def distance(self, demand: Float[Array, "q s"], ahead: Float[Array, "q s"]) -> Float[Array, "q s"]:
        """What tau is taken from where both count as equal; `demand` is ``R g``, `ahead` is ``s_ii - s_ij``."""
        ...


@config
class SMSPaper:
    """The paper's Eq. 16: ``R >= lam``, ``R <= -lam``, and ``[|s_ii - s_ij| - tau]+`` between.

    Attributes:
        threshold: lam; the paper sets it to the threshold of hard mining.

    Source: arXiv 2506.14356, Eq. 13 to 16.
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        finite(self, "threshold", above=0.0)

    def gap(self, own: Float[Array, "*any"], other: Float[Array, "*any2"]) -> Float[Array, "..."]:
        """``R = c_ii - c_ij``."""
        return own - other

    def higher(self, gap: Float[Array, "q s"]) -> Bool[Array, "q s"]:
        """``R >= lam``."""
        return gap >= self.threshold - ROUNDING

    def lower(self, gap: Float[Array, "q s"]) -> Bool[Array, "q s"]:
        """``R <= -lam``."""
        return gap <= ROUNDING - self.threshold

    def distance(self, demand: Float[Array, "q s"], ahead: Float[Array, "q s"]) -> Float[Array, "q s"]:
        """``|s_ii - s_ij|``."""
        return jnp.abs(ahead)


@config
class SMSRelease:
    """The released code: lam = 1.1 / 240, c_ij cut down to multiples of 1 / 240, ``[|R g - s_ii + s_ij| - tau]+`` between.

    The release cuts c_ij, which it stores in bytes, and not c_ii, which comes with the drawn text; 1.1 units make up for
    that. It pairs the transposed relevancies with text-to-video, and since its similarities are texts x clips there, both
    are of clip j and text i, as in the paper: no difference.

    Attributes:
        units: parts that a relevancy of 1 is cut into.
        slack: lam in units.

    Source: github.com/xqwang14/SMS-Loss, avion/losses/losses.py.
    """

    units: int = 240
    slack: float = 1.1

    def __post_init__(self) -> None:
        finite(self, "units", "slack", above=0.0)

    def gap(self, own: Float[Array, "*any"], other: Float[Array, "*any2"]) -> Float[Array, "..."]:
        """``R = c_ii - floor(240 c_ij) / 240``."""
        # An f32 product just below a whole unit is that unit.
        return own - jnp.floor(other * self.units + 1e-3) / self.units

    def higher(self, gap: Float[Array, "q s"]) -> Bool[Array, "q s"]:
        """``R > lam``."""
        return gap > self.slack / self.units

    def lower(self, gap: Float[Array, "q s"]) -> Bool[Array, "q s"]:
        """``R < -lam``."""
        return gap < -self.slack / self.units

    def distance(self, demand: Float[Array, "q s"], ahead: Float[Array, "q s"]) -> Float[Array, "q s"]:
        """``|R g - s_ii + s_ij|``."""
        return jnp.abs(demand - ahead)


@config
class AdaptiveTau:
    """``tau = share * g * mean |R|`` over the terms of the batch that differ in relevancy (``|R| >= lam``).

    SMS asks pairs that differ to lie R g apart. tau is how far apart pairs that count as equal may lie; a share of the
    mean separation asked for keeps it below what the graded terms work for, whatever the spread of relevancies and g.
    A batch without any difference takes the constant tau. On batches of 256 drawn from EK-100's test list by hard mining
    the mean ``|R|`` is 0.46 to 0.47, so 1/3 gives 0.093 at g = 0.6, beside the paper's constant 0.1.

    This answers an open question and is no published rule: arXiv 2506.14356, Section IV-B, only says that tau should in
    theory be less than the smallest c > 0, and has to be larger in practice.

    Attributes:
        share: part of the mean separation.
    """

    share: float = 1 / 3

    def __post_init__(self) -> None:
        finite(self, "share")


@config
class SMS(How):
    """SMS: mean over both directions' terms, margin ``|R| g``, ``R = c_ii - c_ij``; no temperature.

    Attributes:
        margin: g; 0.6.
        tau: how far apart two of equal relevancy may lie; 0.1. 0 is the paper's "SMS without tau".
        variant: the cases as the paper writes them, or as the release computes them.
        adaptive_tau: a tau from the batch's relevancies; None, the default, keeps the constant.
        relevancy: how c is computed from the batch's codes.
    """

    margin: float = 0.6
    tau: float = 0.1
    variant: SMSPaper | SMSRelease = SMSPaper()
    adaptive_tau: AdaptiveTau | None = None
    relevancy: VerbNoun | SharedLabel = VerbNoun()

    def __post_init__(self) -> None:
        finite(self, "margin", "tau")
        super().__post_init__()

    def of(self, given: Given) -> Scored:
        """See `How`."""
        return sms(given.video, given.text, codes_of(given.labels), self)


@config
class SMSHard(How):
    """SMS for hard multi-labels: mean over both directions' terms; the hinge where labels differ, tau where shared.

    The own pair counts as a match whatever its codes say.

    Attributes:
        margin: g; 0.3 on Charades-Ego.
        tau: how far apart two texts of the same clip's labels may lie; 0.1.
        relevancy: which codes are the labels.
    """

    margin: float = 0.3
    tau: float = 0.1
    relevancy: SharedLabel = SharedLabel()

    def __post_init__(self) -> None:
        finite(self, "margin", "tau")
        super().__post_init__()

    def of(self, given: Given) -> Scored:
        """See `How`."""
        return sms_hard(given.video, given.text, codes_of(given.labels), self)


def sms(
    video: Float[Array, "b o"],
    text: Float[Array, "b o"],
    codes: tuple[Codes, Codes],
    options: SMS | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Mean over i != j and both directions of

    ``[R g - (s_ii - s_ij)]+`` where R >= lam, ``[(s_ii - s_ij) - R g]+`` where R <= -lam, ``[|s_ii - s_ij| - tau]+``
    between, with ``R = c_ii - c_ij`` (text to video: ``c_jj - c_ij``). A batch of one costs 0.

    Returns:
        The loss; ``higher``, ``lower``, ``equal``: shares of the three cases (where `equal` is near 1 the graded terms
        hardly count); ``violation``: mean of the hinge terms, which is 0 where every margin is kept;
        ``equal_violation``: mean of the others; ``tau``; mean similarities of the pairs and of all others.

    Source: arXiv 2506.14356, Eq. 16.
    """
    options = options or SMS()
    check_pairs(video, text)
    own = pair_relevancy(*codes, options.relevancy)
    term = _Sms(options.variant, options.relevancy, options.margin)
    tau = jnp.float32(options.tau)
    if options.adaptive_tau is not None:
        tau = _batch_tau(term, codes, own, options)
    return _score(term, video, text, codes, own, tau, options)


def sms_hard(
    video: Float[Array, "b o"],
    text: Float[Array, "b o"],
    codes: tuple[Codes, Codes],
    options: SMSHard | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Mean over i != j and both directions of ``[g - (s_ii - s_ij)]+`` where clip and text share no label (R = 1),
    ``[|s_ii - s_ij| - tau]+`` where they do (R = 0). Metrics as `sms`.

    Source: arXiv 2506.14356, Eq. 17.
    """
    options = options or SMSHard()
    size = check_pairs(video, text)
    term = _Sms(SMSPaper(threshold=0.5), options.relevancy, options.margin)
    own, tau = jnp.ones(size, jnp.float32), jnp.float32(options.tau)
    return _score(term, video, text, codes, own, tau, options)


@dataclasses.dataclass(frozen=True)
class _Sms:
    """The terms of both directions of one tile, added: the loss is a mean over both."""

    variant: SMSPaper | SMSRelease
    relevancy: Relevancy
    margin: float

    def gaps(self, tile: Tile) -> list[tuple[Array, Array, Array]]:
        """For clips as queries and for texts as queries: R, where it is higher, where it is lower."""
        c, v = tile_relevancy(tile, self.relevancy), self.variant
        queries = (tile.rows["own_c"][:, None], tile.columns["own_c"][None, :])
        found = (v.gap(own, c) for own in queries)
        return [(gap, v.higher(gap) & ~tile.diagonal, v.lower(gap) & ~tile.diagonal) for gap in found]

    def __call__(self, tile: Tile) -> dict[str, PerRow]:
        off, nothing = ~tile.diagonal, jnp.zeros_like(tile.similarity)
        sums = dict.fromkeys(("hinge", "equal", "highs", "lows"), nothing)
        queries = (tile.rows["own"][:, None], tile.columns["own"][None, :])
        for own, (gap, higher, lower) in zip(queries, self.gaps(tile), strict=True):
            ahead, demand = own - tile.similarity, gap * self.margin
            short = jax.nn.relu(jnp.where(higher, demand - ahead, ahead - demand))
            apart = jax.nn.relu(self.variant.distance(demand, ahead) - tile.params["tau"])
            sums["hinge"] += jnp.where(higher | lower, short, 0.0)
            sums["equal"] += jnp.where(higher | lower, 0.0, jnp.where(off, apart, 0.0))
            sums["highs"] += higher.astype(jnp.float32)
            sums["lows"] += lower.astype(jnp.float32)
        losses = {name: PerRow(sums[name], SUM) for name in ("hinge", "equal")}
        return losses | {name: PerRow(sums[name], TALLY) for name in ("highs", "lows")}


@dataclasses.dataclass(frozen=True)
class _Gaps:
    """Sum and number of |R| over the terms that differ in relevancy."""

    term: _Sms

    def __call__(self, tile: Tile) -> dict[str, PerRow]:
        total, count = jnp.zeros_like(tile.similarity), jnp.zeros_like(tile.similarity)
        for gap, higher, lower in self.term.gaps(tile):
            total += jnp.where(higher | lower, jnp.abs(gap), 0.0)
            count += (higher | lower).astype(jnp.float32)
        return {"total": PerRow(total, TALLY), "count": PerRow(count, TALLY)}


def _batch_tau(
    term: _Sms, codes: tuple[Codes, Codes], own: Float[Array, " b"], options: SMS
) -> Float[Array, ""]:
    """The tau of `AdaptiveTau`, from codes alone."""
    assert options.adaptive_tau is not None
    rows, columns = (code_arrays(side) | {"own_c": own} for side in codes)
    nothing = jnp.zeros((own.shape[0], 1), jnp.float32)
    how = {"impl": options.impl, "options": options.options}
    found = pairwise(_Gaps(term), nothing, nothing, rows=rows, columns=columns, **how)
    count = found["count"].sum()
    mean = found["total"].sum() / jnp.maximum(count, 1.0)
    return jnp.where(count > 0, options.adaptive_tau.share * options.margin * mean, options.tau)


def _score(
    term: _Sms,
    video: Float[Array, "b o"],
    text: Float[Array, "b o"],
    codes: tuple[Codes, Codes],
    own: Float[Array, " b"],
    tau: Float[Array, ""],
    how: How,
) -> tuple[Float[Array, ""], Metrics]:
    extra = {"own": pair_similarity(video, text), "own_c": own}
    rows, columns = (code_arrays(side) | extra for side in codes)
    options: PairwiseOptions = how.options
    params = {"tau": tau}
    found = pairwise(
        term, video, text, rows=rows, columns=columns, params=params, impl=how.impl, options=options
    )
    count, total = terms(video.shape[0]), {name: x.sum() for name, x in found.items()}
    graded = total["highs"] + total["lows"]
    hinge, equal = jax.lax.stop_gradient((total["hinge"], total["equal"]))
    metrics = {
        "higher": total["highs"] / count,
        "lower": total["lows"] / count,
        "equal": 1.0 - graded / count,
        "violation": hinge / jnp.maximum(graded, 1.0),
        "equal_violation": equal / jnp.maximum(count - graded, 1.0),
        "tau": jax.lax.stop_gradient(tau),
        **similarities(video, text),
    }
    return (total["hinge"] + total["equal"]) / count, metrics
