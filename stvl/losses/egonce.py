"""EgoNCE: a contrast whose positives are all pairs that show the same action."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.core.config import config
from stvl.losses.pairs import Given, How, Metrics, Scored, both, check_pairs, finite, similarities
from stvl.losses.relevancy import Codes, code_arrays, codes_of, verb_and_noun
from stvl.ops.pairwise import LOGSUMEXP, TALLY, PairwiseOptions, PerColumn, PerRow, Tile, pairwise


class Scene(NamedTuple):
    """Clips that lie beside the batch's clips in the same video, with their texts: scene-aware negatives."""

    video: Float[Array, "b o"]
    text: Float[Array, "b o"]
    clips: Codes
    texts: Codes


@config
class EgoNCE(How):
    """EgoNCE: sum of both directions, temperature 0.05, the own pair always among the positives.

    Attributes:
        temperature: divides the cosine similarities. Not used where the model brings a learnable one.
        directions: ``sum`` of the two directions (EgoVLP) or their ``mean``.
    """

    temperature: float = 0.05
    directions: Literal["mean", "sum"] = "sum"

    def __post_init__(self) -> None:
        finite(self, "temperature", above=0.0)
        super().__post_init__()

    def of(self, given: Given) -> Scored:
        """See `How`."""
        scale = 1.0 / (self.temperature if given.temperature is None else given.temperature)
        codes = codes_of(given.labels)
        return egonce(
            given.video, given.text, codes, scale, self.directions, impl=self.impl, options=self.options
        )


def egonce(
    video: Float[Array, "b o"],
    text: Float[Array, "b o"],
    codes: tuple[Codes, Codes],
    scale: float | Float[Array, ""],
    directions: str = "sum",
    *,
    scene: Scene | None = None,
    impl: str | None = None,
    options: PairwiseOptions | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """``-1/B sum_i log sum_{j in P_i} softmax_j(scale * v_i . t_j)`` and the same from texts to clips, sum or mean.

    ``P_i`` is the own pair and every j that shares a verb and a noun with i. A `scene` joins the batch: its clips and
    texts are rows and columns like the others, as in EgoVLP, whose batch is the union of clips and neighbours.

    Args:
        codes: of the clips and of the texts (`codes_of`).

    Returns:
        The loss; ``positives``: mean size of P_i; mean similarities of the pairs and of all others.

    Source: EgoVLP (arXiv 2206.01670), Section 4; the temperature, the sum of directions and the own pair as in its
    release. The release weighs nothing by the number of positives, and neither does this.
    """
    check_pairs(video, text)
    clips, texts = codes
    if scene is not None:
        video, text, clips, texts = jax.tree.map(
            lambda *x: jnp.concatenate(x), (video, text, clips, texts), tuple(scene)
        )
    found = pairwise(
        _positives,
        video,
        text,
        rows=code_arrays(clips),
        columns=code_arrays(texts),
        params={"scale": scale},
        impl=impl,
        options=options,
    )
    # Minus log of a share of the softmax: the difference is at least 0, up to rounding.
    video_to_text = (found["clips"] - found["good_clips"]).mean()
    text_to_video = (found["texts"] - found["good_texts"]).mean()
    metrics = {"positives": found["count"].mean(), **similarities(video, text)}
    return both(video_to_text, text_to_video, directions), metrics


def _positives(tile: Tile) -> dict[str, PerRow | PerColumn]:
    logits = tile.params["scale"] * tile.similarity
    chosen = verb_and_noun(tile) | tile.diagonal
    good = jnp.where(chosen, logits, -jnp.inf)
    return {
        "clips": PerRow(logits, LOGSUMEXP),
        "texts": PerColumn(logits, LOGSUMEXP),
        "good_clips": PerRow(good, LOGSUMEXP),
        "good_texts": PerColumn(good, LOGSUMEXP),
        "count": PerRow(chosen.astype(jnp.float32), TALLY),
    }
