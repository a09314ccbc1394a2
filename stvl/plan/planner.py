"""The plan of a run: memory, arithmetic, traffic and time of its step, what hinders it, and what would mend that."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from stvl.dist.mesh import AXIS_NAMES
from stvl.ops.attention.api import choose
from stvl.plan.ahead import Ahead, Memory, ahead
from stvl.plan.analytic import Analysis, analyse, model_flops, sizes_of
from stvl.plan.collectives import blocking
from stvl.plan.hlo import parse
from stvl.plan.network import Network, places
from stvl.plan.roofline import Moved, Roofline, roofline
from stvl.plan.shardings import Placed, boxed_params, explained, path_text, placed, replicated_big
from stvl.plan.topology import Topology
from stvl.train.experiment import Experiment

#: Version of the JSON's keys; it changes when one of them changes its meaning.
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one step on one device.

    Attributes:
        model: what the model needs, by formula; nothing computed twice.
        compiled: what the program does: `matrix`, `kernels` and `vector` together; None without a compiler.
        matrix: products that XLA compiles.
        kernels: what Pallas kernels declare of themselves.
        vector: one for each element of each elementwise operation.
    """

    model: float
    compiled: float | None = None
    matrix: float | None = None
    kernels: float | None = None
    vector: float | None = None

    @property
    def ratio(self) -> float | None:
        """Compiled over model FLOPs."""
        return None if self.compiled is None else self.compiled / self.model


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that the planner says of one experiment on one topology.

    Attributes:
        experiment: with its dtype decided.
        topology: the chips.
        method: ``compiled`` or ``analytic``.
        memory: bytes on one device.
        fits: whether `memory.total` is within the usable memory.
        flops: of one device.
        roofline: of the compiled program; None where there is none.
        step: seconds of a step at least, NaN where unknown.
        network: seconds of all collectives.
        exposed: seconds of collectives that nothing hides.
        moved: collectives with their times.
        blocking: those over a megabyte that nothing hides in a loop over layers.
        shardings: every parameter.
        replicated: big tensors of parameters and optimizer that are whole on every device.
        attention: the attentions that were traced, and their backends.
        compile_seconds: tracing and compiling; 0 without.
        refused: what the compiler said when it refused the step.
    """

    experiment: Experiment
    topology: Topology
    method: str
    memory: Memory
    fits: bool
    flops: Flops
    roofline: Roofline | None
    step: float
    network: float
    exposed: float
    moved: tuple[Moved, ...]
    blocking: tuple[Moved, ...]
    shardings: tuple[Placed, ...]
    replicated: tuple[Placed, ...]
    attention: tuple[dict[str, Any], ...] = ()
    compile_seconds: float = 0.0
    refused: str = ""

    @property
    def mfu(self) -> float:
        """Share of the peak rate that the model's FLOPs take at `step`: the most that can be reached."""
        chip = self.topology.chip
        return self.flops.model / self.step / (chip.flops / chip.devices) if self.step else math.nan

    @property
    def chip_hours(self) -> float:
        """Of the whole run at `step`."""
        return self.experiment.steps * self.step * self.topology.chips / 3600

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the mesh axes, none of them -1."""
        return dict(zip(AXIS_NAMES, sizes_of(self.experiment.mesh, self.topology.devices), strict=True))

    @property
    def rows(self) -> int:
        """Samples of a batch on one device that splits it."""
        return self.experiment.loader.batch // (self.sizes["data"] * self.sizes["fsdp"])


def plan(experiment: Experiment, topology: Topology, options: Mapping[str, str | bool] | None = None) -> Plan:
    """Plan the train step of an experiment: compiled ahead of time for TPUs and CPUs, by analysis for GPUs.

    Raises:
        ConfigError: libtpu is missing, or the mesh or the batch do not fit the topology.
    """
    if topology.platform == "gpu":
        return of_analysis(analyse(experiment, topology), topology)
    return of_program(ahead(experiment, topology, options), topology)


def of_program(done: Ahead, topology: Topology) -> Plan:
    """The plan of a compiled (or refused) step."""
    experiment = done.experiment
    model = model_flops(experiment) / topology.devices
    cases = tuple(_attention(done))
    shared: dict[str, Any] = dict(
        experiment=experiment,
        topology=topology,
        method="compiled",
        memory=done.memory,
        attention=cases,
        compile_seconds=done.seconds,
        **_placed(done.starter),
    )
    if not done.text:
        nothing: dict[str, Any] = dict(
            roofline=None, step=math.nan, network=math.nan, exposed=math.nan, moved=(), blocking=()
        )
        return Plan(fits=False, flops=Flops(model), refused=_brief(done.refused), **nothing, **shared)
    network = Network(topology, tuple(places(topology, done.devices)))
    found = roofline(parse(done.text), network)
    work = found.work
    stuck = {(one.name, one.home) for one in blocking(moved.what for moved in found.moved)}
    return Plan(
        fits=done.memory.total <= topology.memory,
        flops=Flops(model, *(float(count) for count in (work.flops, work.matrix, work.kernel, work.vector))),
        roofline=found,
        step=found.step,
        network=found.network,
        exposed=found.exposed,
        moved=found.moved,
        blocking=tuple(one for one in found.moved if (one.what.name, one.what.home) in stuck),
        **shared,
    )


def of_analysis(done: Analysis, topology: Topology) -> Plan:
    """The plan of a step that no compiler has seen."""
    moved = tuple(
        Moved(one, seconds, min(seconds, done.compute / max(one.times, 1)))
        for one, seconds in done.collectives
    )
    return Plan(
        experiment=done.experiment,
        topology=topology,
        method="analytic",
        memory=done.memory,
        fits=done.memory.total <= topology.memory,
        flops=Flops(model_flops(done.experiment) / topology.devices, compiled=done.flops),
        roofline=None,
        step=done.step,
        network=done.network,
        exposed=max(done.network - done.compute, 0.0),
        moved=moved,
        blocking=(),
        **_placed(done.starter),
    )


def _placed(starter: Any) -> dict[str, Any]:
    params = explained(boxed_params(starter.experiment), starter.shardings.params)
    reasons = {one.path: one for one in params}
    state = []
    leaves = jax.tree_util.tree_leaves_with_path(starter.abstract.opt_state)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(starter.shardings.opt_state), strict=True):
        name = path_text(path)
        # A moment's path ends in that of its parameter, whose axes and reasons it shares.
        like = next((one for key, one in reasons.items() if name.endswith(f"/{key}")), None)
        found = placed(f"optimizer/{name}", leaf, sharding, like.axes if like else ())
        state.append(found)
    sizes = dict(starter.mesh.shape)
    return {"shardings": tuple(params), "replicated": tuple(replicated_big([*params, *state], sizes))}


def _attention(done: Ahead) -> list[dict[str, Any]]:
    """Each attention once, with the backend that the rules choose; a step may trace one several times."""
    found: dict[str, dict[str, Any]] = {}
    for case in done.cases:
        impl, _ = choose(case)
        row = {
            "q": list(case.q.shape),
            "k": list(case.k.shape),
            "mask": type(case.mask).__name__,
            "impl": impl,
        }
        found.setdefault(str(row), row)
    return list(found.values())


def _brief(problem: str) -> str:
    return " ".join(problem.split())[:400]


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest batch that is expected to fit.

    Attributes:
        batch: global, a multiple of what the mesh splits it into; 0 where not even the state fits.
        method: how it was found.
        points: global batch and bytes of a device that it rests on.
    """

    batch: int
    method: str
    points: tuple[tuple[int, int], ...]


def with_batch(experiment: Experiment, batch: int) -> Experiment:
    """The experiment with another global batch."""
    return dataclasses.replace(experiment, loader=dataclasses.replace(experiment.loader, batch=batch))


def largest_batch(first: Plan, again: Callable[[Experiment], Plan]) -> Largest:
    """Largest batch by an affine model of memory, ``total = a + b * batch``, through two batches.

    `again` plans the same experiment with half the batch (twice, where a device has one row only). The model is exact but
    for what the compiler does differently at another size; it is not compiled to be sure.
    """
    rows = first.rows
    unit = first.experiment.loader.batch // rows * first.experiment.grad_cache
    other = rows // 2 if rows >= 2 * first.experiment.grad_cache else 2 * rows
    other = max(other // first.experiment.grad_cache, 1) * first.experiment.grad_cache
    second = again(with_batch(first.experiment, first.experiment.loader.batch // rows * other))
    points = sorted((one.experiment.loader.batch, one.memory.total) for one in (first, second))
    (small, less), (large, more) = points
    slope = (more - less) / (large - small)
    how = (
        "affine in the batch, from two compiled steps"
        if first.method == "compiled"
        else "affine, by analysis"
    )
    if slope <= 0:
        return Largest(large, f"{how}; memory does not grow between them", tuple(points))
    most = small + (first.topology.memory - less) / slope
    return Largest(max(int(most // unit) * unit, 0), how, tuple(points))
