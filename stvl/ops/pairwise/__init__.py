"""Losses over all pairs of two sets of features, without the matrix of all pairs in one device's memory."""

from stvl.ops.pairwise.api import explain, pairwise
from stvl.ops.pairwise.options import PairwiseOptions
from stvl.ops.pairwise.reductions import ARGMAX, LOGSUMEXP, MAX, SUM, TALLY
from stvl.ops.pairwise.tile import PerColumn, PerRow, Term, Tile, pair_similarity

__all__ = [
    "ARGMAX",
    "LOGSUMEXP",
    "MAX",
    "SUM",
    "TALLY",
    "PairwiseOptions",
    "PerColumn",
    "PerRow",
    "Term",
    "Tile",
    "explain",
    "pair_similarity",
    "pairwise",
]
