"""The rotary op: checks its arguments and hands them to a backend."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
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
    check_rotary(x, rotary)
    return rotate_reference(x, *rotary)


def check_rotary(x: Float[Array, "b n h e"], rotary: Rotary) -> None:
    """Refuse coordinates and frequencies that do not fit the heads or each other.

    Raises:
        ValueError: says which sizes differ.
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


def angle_gradient(
    rotary: Rotary, *turned: tuple[Float[Array, "b n h e"], Float[Array, "b n h e"]]
) -> Rotary:
    """Gradients with respect to coords and frequencies, from tensors and their gradients *before* the rotation.

    With ``y = R(angle) x`` the derivative is ``dL/dangle = x1 dx2 - x2 dx1``, summed over heads: turning both x and
    dx by one angle leaves this cross product as it is, so the unturned pairs serve.
    """
    coords, frequencies = (jnp.asarray(part, jnp.float32) for part in rotary)
    angles = 0.0
    for x, dx in turned:
        x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        dx1, dx2 = jnp.split(dx.astype(jnp.float32), 2, axis=-1)
        angles = angles + (x1 * dx2 - x2 * dx1).sum(axis=2)
    if coords.ndim == 2:
        angles = angles.sum(axis=0)
    d_coords = jnp.einsum("...np,ap->...na", angles, frequencies, precision="highest")
    d_frequencies = jnp.einsum("...na,...np->ap", coords, angles, precision="highest")
    return Rotary(d_coords.astype(rotary.coords.dtype), d_frequencies.astype(rotary.frequencies.dtype))
