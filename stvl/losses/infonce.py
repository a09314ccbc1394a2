"""InfoNCE over the global batch."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.core.config import config


@config
class InfoNCE:
    """Symmetric InfoNCE: cross-entropy of each clip over all texts and of each text over all clips.

    Attributes:
        temperature: divides the cosine similarities; 0.05 in EVA02-AT's pre-training (arXiv 2506.14356, Section 4).
            Not used where the model brings a learnable one.
        directions: ``mean`` of the two directions (CLIP) or their ``sum`` (EgoVLP, LaViLa).
    """

    temperature: float = 0.05
    directions: Literal["mean", "sum"] = "mean"

    def __call__(
        self,
        video: Float[Array, "b o"],
        text: Float[Array, "b o"],
        temperature: Float[Array, ""] | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Loss and metrics of unit features whose rows are pairs; exact over the global batch under sharding."""
        scale = 1.0 / (self.temperature if temperature is None else temperature)
        return infonce(video, text, scale, self.directions)


def infonce(
    video: Float[Array, "b o"],
    text: Float[Array, "b o"],
    scale: float | Float[Array, ""],
    directions: str = "mean",
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """``-1/B sum_i log softmax_j(scale * v_i . t_j)_i`` and the same with clips and texts exchanged.

    Returns the loss and ``accuracy`` (share of rows, over both directions, whose pair has the largest similarity).
    """
    logits = scale * jnp.matmul(video.astype(jnp.float32), text.astype(jnp.float32).T, precision="highest")
    diagonal = jnp.diagonal(logits)
    video_to_text = (jax.nn.logsumexp(logits, axis=1) - diagonal).mean()
    text_to_video = (jax.nn.logsumexp(logits, axis=0) - diagonal).mean()
    loss = video_to_text + text_to_video
    right = jnp.arange(logits.shape[0])
    accuracy = 0.5 * ((logits.argmax(axis=1) == right).mean() + (logits.argmax(axis=0) == right).mean())
    return loss * (0.5 if directions == "mean" else 1.0), {"accuracy": accuracy}
