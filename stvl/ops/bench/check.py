"""The program that is measured, its inputs, and how far it is from the f32 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from stvl.ops.bench.adapter import Adapter
from stvl.ops.bench.timing import input_sets


def program(call: Callable[..., Any], op: Adapter, backward: bool) -> Callable[..., Any]:
    """The op, or the op and its gradients towards the last argument."""
    if not backward:
        return call
    count = op.inputs_differentiated

    def both(*inputs: Any) -> Any:
        *arguments, towards = inputs
        out, pull = jax.vjp(lambda *first: call(*first, *arguments[count:]), *arguments[:count])
        return out, pull(towards)

    return both


def inputs_of(op: Adapter, shape: Any, dtype: jnp.dtype, backward: bool) -> Callable[..., tuple[Any, ...]]:
    """Random inputs of `program` from a seed: those of the op and, for gradients, a cotangent like its output."""

    def make(seed: jax.Array) -> tuple[Any, ...]:
        inputs = op.inputs(shape, dtype, seed)
        if not backward:
            return inputs
        out = op.output(shape, dtype)
        key = jax.random.fold_in(jax.random.key(seed), 1)
        return (*inputs, jax.random.normal(key, out.shape).astype(out.dtype))

    return make


class Subject:
    """One shape in one direction: inputs, and the answer that every backend has to give.

    Where the reference cannot hold all rows of the output, some are compared. Gradients are then those of a sum over
    these rows alone, which are exact for every input.

    Attributes:
        sets: inputs of `program`, each set from a seed of its own.
        rows: how many rows are compared; None for all.
    """

    def __init__(self, op: Adapter, shape: Any, dtype: jnp.dtype, backward: bool) -> None:
        self._backward = backward
        self._index = op.rows(shape)
        self.rows = None if self._index is None else len(self._index)
        self.sets = input_sets(inputs_of(op, shape, dtype, backward))
        self._inputs = self.sets[0]
        if backward and self._index is not None:
            self._inputs = (*self._inputs[:-1], jax.jit(self._kept)(self._inputs[-1]))
        reference = program(op.reference(shape, self._index), op, backward)
        self._meant = jax.jit(lambda *inputs: reference(*self._exact(inputs)))(*self._inputs)
        self._worst = jax.jit(self._errors)

    def error(self, compiled: Callable[..., Any]) -> float:
        """Largest error of a program's output and gradients, each relative to the largest value of the reference.

        NaN where any value is NaN.
        """
        return float(self._worst(compiled(*self._inputs), self._meant))

    def _kept(self, towards: jax.Array) -> jax.Array:
        return jnp.zeros_like(towards).at[:, self._index].set(towards[:, self._index])

    def _exact(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        exact = jax.tree.map(lambda x: x.astype(jnp.float32), inputs)
        if self._backward and self._index is not None:
            exact = (*exact[:-1], exact[-1][:, self._index])
        return exact

    def _errors(self, found: Any, meant: Any) -> jax.Array:
        if self._index is not None:
            out = found[0] if self._backward else found
            found = (out[:, self._index], found[1]) if self._backward else out[:, self._index]
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(meant), strict=True)
        return jnp.stack([_error(one, two) for one, two in pairs]).max()


def _error(found: jax.Array, meant: jax.Array) -> jax.Array:
    largest = jnp.maximum(jnp.abs(meant).max(), jnp.finfo(jnp.float32).tiny)
    return jnp.abs(found.astype(jnp.float32) - meant).max() / largest
