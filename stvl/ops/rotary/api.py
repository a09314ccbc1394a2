"""The rotary op: checks its arguments and hands them to a backend."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float

from stvl.ops.rotary.reference import rotate_reference


class Rotary(NamedTuple):
    """Coordinates and frequencies that turn heads; a pytree, so that it can be passed through jit and scan.

    Attributes:
        coords: (n, a) or (b, n, a), where each token stands.
        frequencies: (a, e/2), radians per unit of each axis.
    """

    coords: Float[Array, "*lead n a"]
    frequencies: Float[Array, "a p"]


def rotate(x: Float[Array, "b n h e"], rotary: Rotary) -> Float[Array, "b n h e"]:
    """Turn pair ``(x[k], x[k + e/2])`` of every head by angle ``(coords @ frequencies)[n, k]``.

    Angles, sines and the products are f32; the result has the dtype of `x`.

    Raises:
        ValueError: coords, frequencies and heads that do not fit each other.
    """
    coords, frequencies = rotary
    if frequencies.shape[-1] * 2 != x.shape[-1]:
        raise ValueError(
            f"rotary frequencies are for {frequencies.shape[-1]} pairs, the heads are {x.shape[-1]} wide: "
            f"expected {x.shape[-1] // 2} pairs"
        )
    if coords.shape[-1] != frequencies.shape[0]:
        raise ValueError(f"coords have {coords.shape[-1]} axes, frequencies have {frequencies.shape[0]}")
    if coords.shape[-2] != x.shape[1]:
        raise ValueError(f"coords are for {coords.shape[-2]} tokens, the heads have {x.shape[1]}")
    return rotate_reference(x, coords, frequencies)
