"""Exact gradients of a rotation: by the opposite rotation for the heads, by a cross product for the angles."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

#: ``kernel(x, coords, frequencies, block_n, interpret)``.
Kernel = Callable[[Array, Array, Array, int | None, bool], Array]


class Rotary(NamedTuple):
    """Coordinates and frequencies that turn heads; a pytree, so that it can be passed through jit and scan.

    Attributes:
        coords: (n, a) or (b, n, a), where each token stands.
        frequencies: (a, e/2), radians per unit of each axis.
    """

    coords: Float[Array, "*lead n a"]
    frequencies: Float[Array, "a p"]


def angle_gradient(
    rotary: Rotary, *turned: tuple[Float[Array, "b n _ e"], Float[Array, "b n _ e"]]
) -> Rotary:
    """Gradients with respect to coords and frequencies, from tensors and their gradients *before* the rotation.

    With ``y = R(angle) x`` the derivative is ``dL/dangle = x1 dx2 - x2 dx1``, summed over heads: turning both x and
    dx by one angle leaves this cross product as it is, so the unturned pairs serve.
    """
    coords, frequencies = (jnp.asarray(part, jnp.float32) for part in rotary)
    angles = jnp.zeros((), jnp.float32)
    for x, dx in turned:
        x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        dx1, dx2 = jnp.split(dx.astype(jnp.float32), 2, axis=-1)
        angles = angles + (x1 * dx2 - x2 * dx1).sum(axis=2)
    if coords.ndim == 2:
        angles = angles.sum(axis=0)
    d_coords = jnp.einsum("...np,ap->...na", angles, frequencies, precision="highest")
    d_frequencies = jnp.einsum("...na,...np->ap", coords, angles, precision="highest")
    return Rotary(d_coords.astype(rotary.coords.dtype), d_frequencies.astype(rotary.frequencies.dtype))


class Static(NamedTuple):
    """A kernel and how to run it."""

    kernel: Kernel
    block_n: int | None
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def turned(
    static: Static,
    x: Float[Array, "b n h e"],
    coords: Float[Array, "*lead n a"],
    frequencies: Float[Array, "a p"],
) -> Float[Array, "b n h e"]:
    """Heads turned by a kernel. The transpose of a rotation is the rotation by the opposite angle."""
    return static.kernel(x, coords, frequencies, static.block_n, static.interpret)


def _forward(static: Static, x: Any, coords: Any, frequencies: Any) -> tuple[Array, Any]:
    # The heads are kept only where somebody asks for the gradient of the angles.
    kept = x.value if coords.perturbed or frequencies.perturbed else None
    return turned(static, x.value, coords.value, frequencies.value), (kept, coords.value, frequencies.value)


def _backward(static: Static, saved: Any, ct: Any) -> tuple[Any, Any, Any]:
    x, coords, frequencies = saved
    if isinstance(ct, jax.custom_derivatives.SymbolicZero):
        return None, None, None
    dx: Any = turned(static, ct, coords, -frequencies)
    if x is None:
        return dx, None, None
    slopes = angle_gradient(Rotary(coords, frequencies), (x, dx))
    return dx, slopes.coords, slopes.frequencies


turned.defvjp(_forward, _backward, symbolic_zeros=True)
