"""Options of the attention op that change its speed and memory, never its meaning."""

from __future__ import annotations

from stvl.core.config import config


@config
class AttentionOptions:
    """Sizes and switches of the tiled backends; None lets the backend choose.

    Attributes:
        block_q: queries in a tile.
        block_kv: sources in a tile.
        block_q_backward: queries in a tile of the backward pass.
        block_kv_backward: sources in a tile of the backward pass.
        interpret: run Pallas kernels step by step in Python; None: where no device of the kernel's kind is at hand.
        ring_axis: mesh axis over which the ring backend finds the tokens split.
        ring_local: backend that the ring uses on each device.
        ring_zigzag: give each device an early and a late chunk of the tokens, so that a causal mask leaves all devices
            the same work; None: where the mask makes that pay.
        ring_ordered: the caller's tokens are in the order of `ring.zigzag_order` already, and stay in it.
    """

    block_q: int | None = None
    block_kv: int | None = None
    block_q_backward: int | None = None
    block_kv_backward: int | None = None
    interpret: bool | None = None
    ring_axis: str = "context"
    ring_local: str | None = None
    ring_zigzag: bool | None = None
    ring_ordered: bool = False
