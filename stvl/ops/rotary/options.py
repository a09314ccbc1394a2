"""Options of the rotary op that change its speed, never its meaning."""

from __future__ import annotations

from stvl.core.config import config


@config
class RotaryOptions:
    """Sizes and switches of the kernels; None lets the kernel choose.

    Attributes:
        block_n: tokens in a block.
        interpret: run Pallas kernels step by step in Python; None: only on the CPU.
    """

    block_n: int | None = None
    interpret: bool | None = None
