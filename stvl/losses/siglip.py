"""SigLIP: every pair of the batch is a question of its own, match or not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.core.config import config
from stvl.losses.pairs import Given, How, Metrics, Scored, check_pairs, finite, similarities
from stvl.ops.pairwise import SUM, TALLY, PairwiseOptions, PerRow, Tile, pairwise


@config
class SigLIP(How):
    """Sigmoid loss: sum over all B x B pairs, divided by B (not by B^2); each pair counts once, not once a direction.

    Attributes:
        temperature: one over the scale t; 0.1 (t = 10) is where SigLIP starts. Not used where the model learns one
            (``model.temperature``).
        bias: added to all logits; -10 is where SigLIP starts. Not used where the model learns one (``model.bias``).
    """

    temperature: float = 0.1
    bias: float = -10.0

    def __post_init__(self) -> None:
        finite(self, "temperature", above=0.0)
        super().__post_init__()

    def of(self, given: Given) -> Scored:
        """See `How`."""
        scale = 1.0 / (self.temperature if given.temperature is None else given.temperature)
        bias = jnp.asarray(self.bias, jnp.float32) if given.bias is None else given.bias
        return siglip(given.video, given.text, scale, bias, impl=self.impl, options=self.options)


def siglip(
    video: Float[Array, "b o"],
    text: Float[Array, "b o"],
    scale: float | Float[Array, ""],
    bias: float | Float[Array, ""],
    *,
    impl: str | None = None,
    options: PairwiseOptions | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """``-1/B sum_ij log sigmoid(z_ij (scale * v_i . t_j + bias))``, z = 1 for the own pair and -1 for all others.

    Returns the loss, ``matched`` (mean probability of the own pairs) and the mean similarities of pairs and others.

    Source: arXiv 2303.15343, Eq. 1 and Algorithm 1.
    """
    check_pairs(video, text)
    params = {"scale": scale, "bias": bias}
    found = pairwise(_sigmoid, video, text, params=params, impl=impl, options=options)
    matched = jax.nn.sigmoid(found["own"]).mean()
    return found["all"].mean(), {"matched": matched, **similarities(video, text)}


def _sigmoid(tile: Tile) -> dict[str, PerRow]:
    logits = tile.params["scale"] * tile.similarity + tile.params["bias"]
    return {
        "all": PerRow(jax.nn.softplus(jnp.where(tile.diagonal, -logits, logits)), SUM),
        "own": PerRow(jnp.where(tile.diagonal, logits, 0.0), TALLY),
    }
