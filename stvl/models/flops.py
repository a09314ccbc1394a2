"""Analytic FLOPs of the dual encoder: matrix products only, two per multiply-add."""

from __future__ import annotations

from stvl.models.dual import DualEncoderConfig
from stvl.nn.flops import block_flops
from stvl.nn.stack import SAVES_PRODUCTS

__all__ = ["block_flops", "forward_flops", "repeated_flops", "train_flops"]


def forward_flops(config: DualEncoderConfig, frames: int, context: int) -> dict[str, int]:
    """FLOPs of one clip and one text through the towers, by tower (causal attention counted in full)."""
    return {
        "video": config.video.flops(frames) + 2 * config.video.width * config.embedding,
        "text": config.text.flops(context) + 2 * config.text.width * config.embedding,
    }


def train_flops(config: DualEncoderConfig, frames: int, context: int, batch: int) -> int:
    """FLOPs of a step: three forwards (one forward, two for the gradients) and the B x B similarities.

    What remat computes a second time is not counted, so MFU stays comparable between remat policies.
    """
    towers = sum(forward_flops(config, frames, context).values())
    return 3 * batch * towers + 3 * 2 * batch * batch * config.embedding


def repeated_flops(
    config: DualEncoderConfig, frames: int, context: int, batch: int, grad_cache: int = 1
) -> int:
    """FLOPs of a step that remat and GradCache compute a second time.

    Policies that save products compute only the rest again, which has no products to count.
    """
    towers = forward_flops(config, frames, context)
    again = sum(flops for name, flops in towers.items() if getattr(config, name).remat not in SAVES_PRODUCTS)
    return batch * (again + (sum(towers.values()) if grad_cache > 1 else 0))
