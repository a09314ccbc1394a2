"""Softmax attention over heads, with structured masks and exchangeable backends."""

from stvl.ops.attention.api import BACKENDS, attention, explain
from stvl.ops.attention.masks import (
    Band,
    BlockCausal,
    Causal,
    Full,
    Lengths,
    Mask,
    Prefix,
    Segments,
    Window,
)
from stvl.ops.attention.options import AttentionOptions

__all__ = [
    "BACKENDS",
    "AttentionOptions",
    "Band",
    "BlockCausal",
    "Causal",
    "Full",
    "Lengths",
    "Mask",
    "Prefix",
    "Segments",
    "Window",
    "attention",
    "explain",
]
