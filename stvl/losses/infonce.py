"""InfoNCE over the global batch."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.core.config import config
from stvl.ops.pairwise import ARGMAX, LOGSUMEXP, SUM, PairwiseOptions, PerColumn, PerRow, Tile, pairwise


@config
class InfoNCE:
    """Symmetric InfoNCE: cross-entropy of each clip over all texts and of each text over all clips.

    Attributes:
        temperature: divides the cosine similarities; 0.05 in EVA02-AT's pre-training (arXiv 2506.14356, Section 4).
            Not used where the model brings a learnable one.
        directions: ``mean`` of the two directions (CLIP) or their ``sum`` (EgoVLP, LaViLa).
        impl: how to go over all pairs (`stvl.ops.pairwise`); None chooses by size and mesh.
    """

    temperature: float = 0.05
    directions: Literal["mean", "sum"] = "mean"
    impl: Literal["dense", "chunked", "ring"] | None = None

    def __call__(
        self,
        video: Float[Array, "b o"],
        text: Float[Array, "b o"],
        temperature: Float[Array, ""] | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Loss and metrics of unit features whose rows are pairs; exact over the global batch under sharding."""
        scale = 1.0 / (self.temperature if temperature is None else temperature)
        return infonce(video, text, scale, self.directions, impl=self.impl)


def infonce(
    video: Float[Array, "b o"],
    text: Float[Array, "b o"],
    scale: float | Float[Array, ""],
    directions: str = "mean",
    *,
    impl: str | None = None,
    options: PairwiseOptions | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """``-1/B sum_i log softmax_j(scale * v_i . t_j)_i`` and the same with clips and texts exchanged.

    Returns the loss and ``accuracy`` (share of rows, over both directions, whose pair has the largest similarity).
    `impl` and `options` are those of `stvl.ops.pairwise.pairwise`; they do not change the loss.
    """
    found = pairwise(_contrast, video, text, params={"scale": scale}, impl=impl, options=options)
    video_to_text = (found["clips"] - found["pairs"]).mean()
    text_to_video = (found["texts"] - found["pairs"]).mean()
    loss = video_to_text + text_to_video
    right = jnp.arange(video.shape[0])
    accuracy = 0.5 * ((found["best_text"] == right).mean() + (found["best_clip"] == right).mean())
    return loss * (0.5 if directions == "mean" else 1.0), {"accuracy": accuracy}


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
