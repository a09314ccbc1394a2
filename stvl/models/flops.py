"""Analytic FLOPs of the dual encoder: matrix products only, two per multiply-add."""

from __future__ import annotations

from stvl.models.dual import DualEncoderConfig


def block_flops(tokens: int, width: int, hidden: int, mlp_products: int) -> int:
    """One pre-norm block on one sequence: four projections, two attention products, and the MLP's products."""
    projections = 2 * tokens * 4 * width * width
    scores = 2 * 2 * tokens * tokens * width
    mlp = 2 * tokens * mlp_products * width * hidden
    return projections + scores + mlp


def forward_flops(config: DualEncoderConfig, frames: int, context: int) -> dict[str, int]:
    """FLOPs of one clip and one text through the towers, by tower (causal attention counted in full)."""
    video, text = config.video, config.text
    places = video.side**2 * (frames // video.tube)
    stem = 2 * places * video.tube * video.patch**2 * 3 * video.width
    clip = stem + video.depth * block_flops(places + 1, video.width, video.mlp_hidden, 3)
    words = text.depth * block_flops(context, text.width, 4 * text.width, 2)
    return {
        "video": clip + 2 * video.width * config.embedding,
        "text": words + 2 * text.width * config.embedding,
    }


def train_flops(config: DualEncoderConfig, frames: int, context: int, batch: int) -> int:
    """FLOPs of a step: three forwards (one forward, two for the gradients) and the B x B similarities.

    What remat computes a second time is not counted, so MFU stays comparable between remat policies.
    """
    towers = sum(forward_flops(config, frames, context).values())
    return 3 * batch * towers + 3 * 2 * batch * batch * config.embedding
