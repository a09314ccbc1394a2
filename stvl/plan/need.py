"""What a step needs on one device of the machine at hand, and what that machine has; by analysis, nothing is compiled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from stvl.core.sharding import activation_sharding
from stvl.dist.mesh import RULES
from stvl.ops.pairwise import explain
from stvl.ops.pairwise.sweep import CHUNK_ROWS
from stvl.plan.ahead import Memory
from stvl.plan.analytic import Analysis, analyse
from stvl.plan.chips import CHIPS, USABLE, Chip
from stvl.plan.topology import Topology, parse
from stvl.train.experiment import Experiment

#: What `device_kind` begins with -> the planner's chip; the longest one that fits.
KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA A100": "a100",
    "NVIDIA H100": "h100",
    "NVIDIA H200": "h200",
}

#: Arrays of the size of the pair matrix (or of a tile of it) that a loss holds at its peak: temporaries of InfoNCE, forward
#: and gradients, over rows x columns x 4 bytes, dense and in chunks: 3.0 (the table in stvl/ops/pairwise/api.py).
LOSS_ARRAYS = 3


@dataclasses.dataclass(frozen=True)
class Room:
    """What one device has.

    Attributes:
        limit: bytes that a program may use.
        source: who says so.
        whole: bytes of the device's memory that could be used; 0 where unknown.
    """

    limit: int
    source: str
    whole: int = 0


@dataclasses.dataclass(frozen=True)
class Need:
    """What a step needs of one device, in bytes, by analysis.

    Attributes:
        experiment: with its dtype decided.
        state: parameters, optimizer, average and batch, by their shardings.
        activations: what the towers keep for the backward pass.
        gradients: as large as the parameters.
        loss: the pair matrix of the loss, or its tile, as often as the loss holds it.
        form: of the loss: ``dense 64 x 64``.
        cost: of a step, seconds where the chip's rates are known, else FLOPs of a device.
    """

    experiment: Experiment
    state: Memory
    activations: int
    gradients: int
    loss: int
    form: str
    cost: float

    @property
    def held(self) -> int:
        """What lies in memory between steps, and the batch."""
        return self.state.params + self.state.optimizer + self.state.ema + self.state.batch

    @property
    def temp(self) -> int:
        """What is there during the step only."""
        return self.activations + self.gradients + self.loss

    @property
    def total(self) -> int:
        """All of it."""
        return self.held + self.temp


def need(experiment: Experiment, topology: Topology) -> Need:
    """What a step of an experiment needs.

    Raises:
        ConfigError: a mesh or a batch that the topology cannot split.
    """
    done = analyse(experiment, topology)
    loss, form = _loss(done)
    return Need(
        experiment=done.experiment,
        state=dataclasses.replace(done.memory, arguments=0, temp=0, total=0),
        activations=done.memory.temp - done.memory.params,
        gradients=done.memory.params,
        loss=loss,
        form=form,
        cost=done.flops if math.isnan(done.step) else done.step,
    )


def _loss(done: Analysis) -> tuple[int, str]:
    """Bytes of the loss on one device, and the form that it takes there."""
    experiment, mesh = done.experiment, done.starter.mesh
    loss, batch = experiment.loss, experiment.loader.batch
    impl = loss.impl
    if impl is None:
        features = jax.ShapeDtypeStruct((batch, experiment.model.embedding), jnp.float32)
        with activation_sharding(mesh, RULES):
            impl, _ = explain(features, features, options=loss.options)
    slices = mesh.shape["data"] * mesh.shape["fsdp"]
    rows, columns = {
        "dense": (batch // slices, batch),
        "ring": (min(loss.chunk or CHUNK_ROWS, batch // slices), batch // slices),
        "chunked": (min(loss.chunk or CHUNK_ROWS, batch), batch),
    }[impl]
    return LOSS_ARRAYS * 4 * rows * columns, f"{impl}, {rows} x {columns} in f32"


def room(device: Any, here: int) -> Room:
    """What a jax device has; `here` devices of a CPU share its memory.

    The allocator says it; where it does not, the planner's table does.
    """
    chip = known_chip(device)
    usable = 0 if chip is None else int(chip.memory / chip.devices * USABLE[chip.platform])
    stats = device.memory_stats() or {}
    if stats.get("bytes_limit"):
        return Room(int(stats["bytes_limit"]), "the device's allocator", usable)
    if usable:
        return Room(usable, f"the planner's table, {device.device_kind}", usable)
    memory = parse("cpu").memory
    if device.platform == "cpu":
        share = f", divided by its {here} devices" if here > 1 else ""
        return Room(memory // here, f"this machine's memory{share}", memory // here)
    return Room(0, f"nobody: {device.device_kind} tells no limit and is not in the planner's table")


def known_chip(device: Any) -> Chip | None:
    """The planner's chip of a jax device."""
    for kind in sorted(KINDS, key=len, reverse=True):
        if device.device_kind.startswith(kind):
            return CHIPS[KINDS[kind]]
    return None


def topology_of(devices: Sequence[Any]) -> Topology:
    """The topology of the jax devices at hand; one of unknown rates where the planner does not know the chip."""
    first = devices[0]
    chip = known_chip(first)
    if chip is None:
        nan = math.nan
        count = len(devices)
        chip = Chip(first.device_kind, first.platform, 0, nan, nan, nan, 0, 0, nan, "unknown", host=count)
        return Topology(first.device_kind, chip, (len(devices),))
    slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    chips = len(devices) // chip.devices // slices
    if not chip.links:
        return Topology(f"{chip.name}x{chips}", chip, (chips,), slices)
    sides = [
        set(axis) for axis in zip(*(tuple(device.coords)[: chip.links] for device in devices), strict=True)
    ]
    shape = tuple(max(side) - min(side) + 1 for side in sides)
    if math.prod(shape) != chips:
        # A part of a slice that is no box: its links are not known, so all chips are taken for one line.
        shape = (chips, *(1,) * (chip.links - 1))
    return Topology(f"{chip.name}:{'x'.join(map(str, shape))}", chip, shape, slices)
