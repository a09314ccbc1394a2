"""The rotary op: checks its arguments, and hands them to the backend that is named or that the table chooses."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from stvl.core.errors import NotSupported, nearest
from stvl.ops.rotary.backends import BACKENDS, CHOICES, case_of
from stvl.ops.rotary.gradient import Rotary
from stvl.ops.rotary.options import RotaryOptions


def rotate(
    x: Float[Array, "b n h e"],
    rotary: Rotary,
    *,
    options: RotaryOptions | None = None,
    impl: str | None = None,
) -> Float[Array, "b n h e"]:
    """Turn pair ``(x[k], x[k + e/2])`` of every head by angle ``(coords @ frequencies)[n, k]``.

    Angles, sines and the products are f32; the result has the dtype of `x`. Differentiable in heads, coords and
    frequencies.

    Args:
        x: heads of queries or keys.
        rotary: where the tokens stand, and how fast each pair turns.
        options: sizes and switches; they change speed only.
        impl: name of a backend, or None for the one that the table chooses (`explain` says which).

    Raises:
        ValueError: coords, frequencies and heads that do not fit each other, or an unknown backend.
        NotSupported: the named backend declines the case; the message has the reason.
    """
    check_rotary(x, rotary)
    options = RotaryOptions() if options is None else options
    if impl is None:
        impl, _ = explain(x, rotary, options=options)
    elif impl not in BACKENDS:
        raise ValueError(f"unknown rotary backend {impl!r}{nearest(impl, BACKENDS)}")
    case = case_of(x, rotary.frequencies.shape[0], options)
    reason = BACKENDS[impl].declines(case)
    if reason is not None:
        raise NotSupported(f"rotary backend {impl!r}: {reason}")
    return BACKENDS[impl].run(x, rotary.coords, rotary.frequencies, case)


def explain(
    x: Array | jax.ShapeDtypeStruct, rotary: Rotary, *, options: RotaryOptions | None = None
) -> tuple[str, dict[str, str]]:
    """Name the backend that ``impl=None`` takes, and the reasons for which those before it were passed over."""
    case = case_of(x, rotary.frequencies.shape[0], options or RotaryOptions())
    reasons: dict[str, str] = {}
    for choice in CHOICES:
        if choice.platform == case.platform:
            reason = BACKENDS[choice.impl].declines(case)
            if reason is None:
                return choice.impl, reasons
            reasons[choice.impl] = reason
    # A platform that the table does not know, such as a plug-in's.
    return "reference", reasons


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
    if coords.ndim == 3 and coords.shape[0] != x.shape[0]:
        raise ValueError(f"coords are for {coords.shape[0]} samples, the heads have {x.shape[0]}")
