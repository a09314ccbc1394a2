"""Analytic FLOPs of the parts that towers share: matrix products only, two FLOPs per multiply-add."""

from __future__ import annotations


def block_flops(tokens: int, width: int, hidden: int, mlp_products: int) -> int:
    """One pre-norm block on one sequence: four projections, two attention products, and the MLP's products."""
    scores = 2 * 2 * tokens * tokens * width
    return projection_flops(tokens, width) + scores + mlp_flops(tokens, width, hidden, mlp_products)


def projection_flops(tokens: int, width: int) -> int:
    """The four projections of an attention: q, k, v and out."""
    return 2 * tokens * 4 * width * width


def mlp_flops(tokens: int, width: int, hidden: int, products: int) -> int:
    """The products of an MLP: two, or three with a gate."""
    return 2 * tokens * products * width * hidden


def divided_flops(frames: int, places: int, width: int, hidden: int) -> int:
    """One block of divided space-time attention on ``1 + frames * places`` tokens, its MLP of two products included.

    A patch sees the class token and its place in every frame, then the class token and its frame; the class token sees
    all tokens both times.
    """
    patches = frames * places
    tokens = patches + 1
    scores = 2 * 2 * width * (patches * (frames + 1) + patches * (places + 1) + 2 * tokens)
    return 2 * projection_flops(tokens, width) + scores + mlp_flops(tokens, width, hidden, 2)


def stem_flops(tokens: int, tube: int, patch: int, width: int) -> int:
    """The patch embedding of RGB tubes of ``tube x patch x patch`` pixels."""
    return 2 * tokens * tube * patch**2 * 3 * width
