"""The exact gradient of tiled forms: what the forward pass keeps is the inputs and the reduced vectors only."""

from __future__ import annotations

import functools
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array

from stvl.ops.pairwise.sweep import Gradient, Pull
from stvl.ops.pairwise.tile import Output, Side

Results = dict[str, Array]
Saved = tuple[Side, Side, Any, Results]


@runtime_checkable
class Method(Protocol):
    """A hashable way to go over all tiles."""

    @property
    def found(self) -> tuple[Output, ...]:
        """What the term answers."""
        ...

    def forward(self, rows: Side, columns: Side, params: Any) -> Results:
        """The reduced vectors."""
        ...

    def backward(
        self, rows: Side, columns: Side, params: Any, row_pull: Pull, column_pull: Pull
    ) -> tuple[Gradient, Gradient, Any]:
        """Gradients of rows, columns and parameters."""
        ...


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def exact(method: Method, rows: Side, columns: Side, params: Any) -> Results:
    """``method.forward``, whose gradient is ``method.backward``."""
    return method.forward(rows, columns, params)


def _forward(method: Method, rows: Side, columns: Side, params: Any) -> tuple[Results, Saved]:
    results = method.forward(rows, columns, params)
    return results, (rows, columns, params, results)


def _backward(method: Method, saved: Saved, cotangents: Results) -> tuple[Side, Side, Any]:
    rows, columns, params, results = saved
    pulls = []
    for way in (True, False):
        names = [out.name for out in method.found if out.per_row == way and out.reduction.differentiable]
        pulls.append(
            Pull({name: cotangents[name] for name in names}, {name: results[name] for name in names})
        )
    on_rows, on_columns, on_params = method.backward(rows, columns, params, *pulls)
    return _cotangent(rows, on_rows), _cotangent(columns, on_columns), on_params


def _cotangent(side: Side, gradient: Gradient) -> Any:
    # None stands for the zero cotangent of arrays that are no floats.
    none: Any = None
    others: Any = dict.fromkeys(side.others)
    return Side(gradient.x.astype(side.x.dtype), gradient.floats, others, none)


exact.defvjp(_forward, _backward)
