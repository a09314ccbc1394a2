"""InfoNCE over the global batch."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.core.config import config
from stvl.losses.pairs import Given, How, Metrics, Scored, both, check_pairs, finite
from stvl.losses.queue import Queue
from stvl.ops.pairwise import ARGMAX, LOGSUMEXP, SUM, PairwiseOptions, PerColumn, PerRow, Tile, pairwise


@config
class InfoNCE(How):
    """Symmetric InfoNCE: cross-entropy of each clip over all texts and of each text over all clips.

    Attributes:
        temperature: divides the cosine similarities; 0.05 in EVA02-AT's pre-training (arXiv 2506.14356, Section 4).
            Not used where the model brings a learnable one.
        directions: ``mean`` of the two directions (CLIP) or their ``sum`` (EgoVLP, LaViLa).
    """

    temperature: float = 0.05
    directions: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        finite(self, "temperature", above=0.0)
        super().__post_init__()

    def of(self, given: Given) -> Scored:
        """See `How`."""
        scale = 1.0 / (self.temperature if given.temperature is None else given.temperature)
        return infonce(given.video, given.text, scale, self.directions, impl=self.impl, options=self.options)


def infonce(
    video: Float[Array, "b o"],
    text: Float[Array, "b o"],
    scale: float | Float[Array, ""],
    directions: str = "mean",
    *,
    queue: Queue | None = None,
    impl: str | None = None,
    options: PairwiseOptions | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """``-1/B sum_i log softmax_j(scale * v_i . t_j)_i`` and the same with clips and texts exchanged, mean or sum.

    The own pair is the only positive and is part of the denominator. With a `queue`, past texts join the denominator of
    the clips and past clips that of the texts; they are constants.

    Returns the loss and ``accuracy`` (share of rows, over both directions, whose pair has the largest similarity in the
    batch). `impl` and `options` are those of `stvl.ops.pairwise.pairwise`; they do not change the loss.
    """
    size = check_pairs(video, text)
    how = {"params": {"scale": scale}, "impl": impl, "options": options}
    found = pairwise(_contrast, video, text, **how)
    clips, texts = found["clips"], found["texts"]
    if queue is not None:
        past = Queue(*(jax.lax.stop_gradient(x) for x in queue))
        live = {"live": jnp.arange(past.video.shape[0]) < past.filled}
        clips = jnp.logaddexp(clips, pairwise(_past_texts, video, past.text, columns=live, **how)["clips"])
        texts = jnp.logaddexp(texts, pairwise(_past_clips, past.video, text, rows=live, **how)["texts"])
    loss = both((clips - found["pairs"]).mean(), (texts - found["pairs"]).mean(), directions)
    right = jnp.arange(size)
    accuracy = 0.5 * ((found["best_text"] == right).mean() + (found["best_clip"] == right).mean())
    return loss, {"accuracy": accuracy}


def _contrast(tile: Tile) -> dict[str, PerRow | PerColumn]:
    logits = tile.params["scale"] * tile.similarity
    return {
        "clips": PerRow(logits, LOGSUMEXP),
        "texts": PerColumn(logits, LOGSUMEXP),
        # From the same product as the sums, so that rounding cannot make a pair likelier than certain.
        "pairs": PerRow(jnp.where(tile.diagonal, logits, 0.0), SUM),
        "best_text": PerRow(logits, ARGMAX),
        "best_clip": PerColumn(logits, ARGMAX),
    }


def _past_texts(tile: Tile) -> dict[str, PerRow]:
    logits = tile.params["scale"] * tile.similarity
    return {"clips": PerRow(jnp.where(tile.columns["live"][None, :], logits, -jnp.inf), LOGSUMEXP)}


def _past_clips(tile: Tile) -> dict[str, PerColumn]:
    logits = tile.params["scale"] * tile.similarity
    return {"texts": PerColumn(jnp.where(tile.rows["live"][:, None], logits, -jnp.inf), LOGSUMEXP)}
