"""Plans of neighbouring configurations, side by side, and which of them to take."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from stvl.core.errors import ConfigError, nearest
from stvl.dist.mesh import LAYOUTS, layout
from stvl.nn.stack import REMAT
from stvl.plan.analytic import sizes_of
from stvl.plan.planner import Plan, with_batch
from stvl.plan.topology import Topology
from stvl.train.experiment import Experiment

#: Presets and remat policies that are tried, in this order; the configuration's own, and unknown ones, are left out.
SHARDINGS = ("dp", "fsdp", "zero2")
REMATS = ("full", "attention", "dots_without_batch", "none")

#: Most compilations of one `--what-if`.
MOST = 7


@dataclasses.dataclass(frozen=True)
class Row:
    """One configuration beside the others.

    Attributes:
        changes: what differs from the configuration asked for, as name=value words; empty for itself.
        plan: its plan, or None where it could not be made.
        reason: why not.
    """

    changes: tuple[str, ...]
    plan: Plan | None
    reason: str = ""

    @property
    def sound(self) -> bool:
        """Whether it fits, nothing big is whole on every device, and no big exchange blocks the loop over layers."""
        return (
            self.plan is not None and self.plan.fits and not self.plan.replicated and not self.plan.blocking
        )

    @property
    def rate(self) -> float:
        """Samples a second."""
        if self.plan is None or not self.plan.fits or math.isnan(self.plan.step):
            return 0.0
        return self.plan.experiment.loader.batch / self.plan.step


def with_sharding(experiment: Experiment, name: str, topology: Topology) -> Experiment:
    """The experiment laid out by a preset."""
    return dataclasses.replace(experiment, mesh=layout(name, topology.devices, topology.slices))


def with_remat(experiment: Experiment, policy: str) -> Experiment:
    """The experiment with one remat policy in both towers.

    Raises:
        ConfigError: an unknown policy.
    """
    if policy not in REMAT:
        raise ConfigError(f"unknown remat policy {policy!r}{nearest(policy, REMAT)}")
    model = experiment.model
    towers = {name: dataclasses.replace(getattr(model, name), remat=policy) for name in ("video", "text")}
    return dataclasses.replace(experiment, model=dataclasses.replace(model, **towers))


def mesh_words(experiment: Experiment) -> tuple[str, ...]:
    """The overrides that spell the experiment's mesh."""
    mesh = experiment.mesh
    words = [f"mesh.{name}={getattr(mesh, name)}" for name in ("data", "fsdp", "tensor", "context")]
    return (*words, *(["mesh.gather=step"] if mesh.gather == "step" else []))


def neighbours(first: Plan) -> Iterator[tuple[tuple[str, ...], Experiment]]:
    """Configurations to try: other shardings, other remat policies, twice the batch."""
    experiment, topology = first.experiment, first.topology
    for name in SHARDINGS:
        try:
            other = with_sharding(experiment, name, topology)
        except ConfigError:
            continue
        if _sizes(other, topology) != _sizes(experiment, topology) and name in LAYOUTS:
            yield (f"{name}:", *mesh_words(other)), other
    for policy in REMATS:
        if policy in REMAT and experiment.model.video.remat != policy:
            yield (
                (f"model.video.remat={policy}", f"model.text.remat={policy}"),
                with_remat(experiment, policy),
            )
    batch = experiment.loader.batch * 2
    yield (f"loader.batch={batch}",), with_batch(experiment, batch)


def _sizes(experiment: Experiment, topology: Topology) -> tuple[object, ...]:
    return (*sizes_of(experiment.mesh, topology.devices), experiment.mesh.gather)


def what_if(
    first: Plan, again: Callable[[Experiment], Plan], progress: Callable[[Row], None] = lambda row: None
) -> list[Row]:
    """The configuration asked for and at most `MOST` neighbours, each planned by `again`."""
    rows = [Row((), first)]
    for changes, experiment in list(neighbours(first))[:MOST]:
        try:
            rows.append(Row(changes, again(experiment)))
        except ConfigError as problem:
            rows.append(Row(changes, None, str(problem)))
        progress(rows[-1])
    return rows


def recommended(rows: list[Row]) -> tuple[Row | None, str]:
    """The row to take and why: among sound ones the most samples a second, else the most among those that fit."""
    fitting = [row for row in rows if row.rate > 0]
    if not fitting:
        return None, "no configuration fits: take more chips, a smaller batch, or grad_cache"
    sound = [row for row in fitting if row.sound]
    best = max(sound or fitting, key=lambda row: row.rate)
    first = rows[0]
    why = [f"{best.rate:.0f} samples a second at best"]
    if not sound:
        why.append("no row is free of faults")
    if best is not first and first.plan is not None:
        faults = faults_of(first.plan)
        why.append(
            f"the configuration asked for {'; '.join(faults)}"
            if faults
            else f"it has {first.rate:.0f} as it stands"
        )
    return best, "; ".join(why)


def faults_of(plan: Plan) -> list[str]:
    """What is wrong with a plan, in words."""
    found = []
    if not plan.fits:
        found.append("does not fit")
    if plan.replicated:
        size = sum(one.whole for one in plan.replicated) / 2**20
        found.append(f"keeps {len(plan.replicated)} big tensors ({size:.0f} MiB) whole on every device")
    if plan.blocking:
        size = sum(one.what.bytes * one.what.times for one in plan.blocking) / 2**20
        found.append(f"waits for {size:.0f} MiB of exchanges inside the loop over layers")
    return found


def remedies(plan: Plan) -> list[str]:
    """The nearest ways out of the faults of a plan, cheapest first."""
    found = []
    video, mesh = plan.experiment.model.video, plan.experiment.mesh
    if plan.blocking:
        found.append("exchange once a step instead of once a layer: --sharding zero2 (mesh.gather=step)")
    if plan.replicated:
        found.append("let fsdp slice them: --sharding fsdp or zero2; a width that the slices divide")
    if not plan.fits:
        if video.remat != "full":
            found.append("keep only the inputs of blocks: model.video.remat=full model.text.remat=full")
        if plan.sizes["fsdp"] * plan.sizes["tensor"] == 1 and plan.topology.devices > 1:
            found.append("slice parameters and optimizer state: --sharding fsdp")
        elif mesh.gather == "step":
            found.append("gather parameters layer by layer: --sharding fsdp (mesh.gather=layer)")
        if plan.rows > plan.experiment.grad_cache:
            found.append(f"encode the batch in parts: grad_cache={plan.experiment.grad_cache * 2}")
        found.append(f"a smaller batch: loader.batch={plan.experiment.loader.batch // 2}")
    return found
