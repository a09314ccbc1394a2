"""Softmax attention over heads, with structured masks and exchangeable backends."""

from stvl.ops.attention.api import attention, explain
from stvl.ops.attention.masks import Causal, Full, Mask

__all__ = ["Causal", "Full", "Mask", "attention", "explain"]
