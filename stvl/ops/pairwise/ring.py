"""The ring form: every device keeps its rows, and the columns travel around the devices that split the batch.

With P devices and B rows each holds B/P rows of both sides. In step k a device meets the columns of its k-th
neighbour: it sends them on first, so that they travel while their tile is computed. The reduced vectors of the columns
(backward: the gradients of the columns) follow one step behind: what arrives is what the device before has summed, and
that too travels while the tile is computed. After P steps they are one hop from home. No device ever holds the pair
matrix or all features. A step costs one transfer of B/P columns and, backward, of their f32 gradients; P steps are
sent where P - 1 would do, so that one loop body serves all steps.
Source: the communication pattern of RingAttention (arXiv 2310.01889, Section 3), applied to a loss over pairs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from stvl.core.errors import NotSupported, nearest
from stvl.core.sharding import mesh_in_force
from stvl.ops.pairwise.exact import Results, exact
from stvl.ops.pairwise.options import PairwiseOptions
from stvl.ops.pairwise.sweep import Gradient, Pull, States, Sweep
from stvl.ops.pairwise.tile import Output, Side, Term


@dataclasses.dataclass(frozen=True)
class Ring:
    """All tiles over a ring of devices.

    Attributes:
        sweep: what each device does with its rows and the columns that it holds.
        mesh: the mesh in force.
        axes: mesh axes that the ring goes over, the last one fastest.
    """

    sweep: Sweep
    mesh: Mesh
    axes: tuple[str, ...]

    @property
    def found(self) -> tuple[Output, ...]:
        """What the term answers."""
        return self.sweep.found

    @property
    def devices(self) -> int:
        """Devices in the ring."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    def forward(self, rows: Side, columns: Side, params: Any) -> Results:
        """The reduced vectors."""
        sweep = self.sweep

        def local(rows: Side, columns: Side, params: Any) -> tuple[Results, Results]:
            def step(carry: tuple[Side, States, States], _: None) -> tuple[tuple[Side, States, States], None]:
                held, behind, seen = carry
                ahead, arrived = self._send(held), self._send(behind)
                per_row, per_column = sweep.forward(rows, held, params)
                return (
                    ahead,
                    sweep.merge(False, arrived, per_column),
                    sweep.merge(True, seen, per_row),
                ), None

            start = (columns, sweep.start(False, columns.size), sweep.start(True, rows.size))
            (_, behind, seen), _ = jax.lax.scan(step, start, length=self.devices)
            return sweep.finish(True, seen), sweep.finish(False, self._send(behind))

        split = PartitionSpec(self.axes)
        per_row, per_column = self._mapped(local, 3, (split, split))(
            self._even(rows), self._even(columns), params
        )
        return {
            **{name: a[: rows.size] for name, a in per_row.items()},
            **{name: a[: columns.size] for name, a in per_column.items()},
        }

    def backward(
        self, rows: Side, columns: Side, params: Any, row_pull: Pull, column_pull: Pull
    ) -> tuple[Gradient, Gradient, Any]:
        """Gradients of rows, columns and parameters, from a second way around the ring."""
        sweep = self.sweep

        def local(
            rows: Side, columns: Side, params: Any, row_pull: Pull, column_pull: Pull
        ) -> tuple[Gradient, Gradient, Any]:
            def step(carry: Any, _: None) -> tuple[Any, None]:
                held, behind, on_rows, on_params = carry
                ahead, arrived = self._send(held), self._send(behind)
                more_rows, on_columns, more_params = sweep.backward(rows, held[0], params, row_pull, held[1])
                sums = jax.tree.map(
                    jnp.add, (arrived, on_rows, on_params), (on_columns, more_rows, more_params)
                )
                return (ahead, *sums), None

            nothing = (_gradient_like(columns), _gradient_like(rows), params)
            start = ((columns, column_pull), *jax.tree.map(jnp.zeros_like, nothing))
            (_, behind, on_rows, on_params), _ = jax.lax.scan(step, start, length=self.devices)
            return on_rows, self._send(behind), jax.lax.psum(on_params, self.axes)

        split = PartitionSpec(self.axes)
        on_rows, on_columns, on_params = self._mapped(local, 5, (split, split, PartitionSpec()))(
            self._even(rows),
            self._even(columns),
            params,
            jax.tree.map(self._filled, row_pull),
            jax.tree.map(self._filled, column_pull),
        )
        cut = [
            jax.tree.map(lambda a, side=side: a[: side.size], gradient)
            for side, gradient in ((rows, on_rows), (columns, on_columns))
        ]
        return cut[0], cut[1], on_params

    def _send(self, tree: Any) -> Any:
        """To the next device of the ring."""
        hops = [(place, (place + 1) % self.devices) for place in range(self.devices)]
        return jax.tree.map(lambda a: jax.lax.ppermute(a, self.axes, hops), tree)

    def _mapped(self, local: Any, arguments: int, out_specs: Any) -> Any:
        """`local` on every device: sides and pulls split over the ring, parameters (the third) whole."""
        split = PartitionSpec(self.axes)
        specs = tuple(PartitionSpec() if number == 2 else split for number in range(arguments))
        # The gradients are written out, so shard_map need not track what varies over which axis.
        return jax.shard_map(local, mesh=self.mesh, in_specs=specs, out_specs=out_specs, check_vma=False)

    def _even(self, side: Side) -> Side:
        """Padded so that every device has as many entries."""
        return side.padded(-(-side.size // self.devices) * self.devices)

    def _filled(self, a: Array) -> Array:
        return jnp.pad(a, (0, -a.shape[0] % self.devices))


def pairwise_ring(
    term: Term,
    rows: Side,
    columns: Side,
    params: Any,
    found: tuple[Output, ...],
    options: PairwiseOptions,
) -> dict[str, Array]:
    """The dense form's results over the mesh in force; rows and columns need not divide by the ring."""
    placed = ring_axes(options)
    if isinstance(placed, str):
        raise NotSupported(placed)
    mesh, axes = placed
    parts = math.prod(mesh.shape[axis] for axis in axes)
    padded = rows.size % parts > 0 or columns.size % parts > 0
    sweep = Sweep(term, found, (rows.size, columns.size), options.chunk, padded)
    return exact(Ring(sweep, mesh, axes), rows, columns, params)


def ring_axes(options: PairwiseOptions) -> tuple[Mesh, tuple[str, ...]] | str:
    """The mesh in force and the axes of the ring, or the reason why there is none.

    Raises:
        ValueError: an axis that the mesh does not have.
    """
    found = mesh_in_force()
    if found is None:
        return "no mesh is in force: trace inside stvl.core.sharding.activation_sharding(mesh, rules)"
    mesh, rules = found
    wanted = rules.get("batch", ()) if options.ring_axes is None else options.ring_axes
    for axis in wanted:
        if axis not in mesh.shape:
            raise ValueError(f"the mesh has no axis {axis!r}{nearest(axis, mesh.shape)}")
    axes = tuple(axis for axis in wanted if mesh.shape[axis] > 1)
    if not axes:
        return f"the batch is not split: the mesh axes {tuple(wanted)} have one device each"
    return mesh, axes


def _gradient_like(side: Side) -> Gradient:
    return Gradient(jnp.zeros(side.x.shape, jnp.float32), side.floats)
