"""A lower bound of the time of a step: every instruction at the speed of light, the network hidden where work hides it."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict

from stvl.plan.collectives import Collective, all_of, loops
from stvl.plan.count import Cost, cost
from stvl.plan.hlo import Program
from stvl.plan.network import Network


@dataclasses.dataclass(frozen=True)
class Moved:
    """A collective with its time.

    Attributes:
        what: the collective.
        seconds: of one run.
        hidden: seconds of one run that work between its start and its end covers.
    """

    what: Collective
    seconds: float
    hidden: float

    @property
    def exposed(self) -> float:
        """Seconds a step that nothing covers."""
        return self.what.times * (self.seconds - self.hidden)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Time of a step on one device, seconds.

    Attributes:
        work: FLOPs and bytes of a step.
        compute: all FLOPs at the peak rate.
        memory: all bytes at the memory's bandwidth.
        device: the sum over instructions of the longer of the two.
        network: all collectives.
        exposed: what of them no work covers.
        moved: the collectives.
        by_loop: seconds of `device` by loop, outside of loops under the empty name.
    """

    work: Cost
    compute: float
    memory: float
    device: float
    network: float
    exposed: float
    moved: tuple[Moved, ...]
    by_loop: dict[str, float]

    @property
    def step(self) -> float:
        """``device + exposed``."""
        return self.device + self.exposed

    @property
    def bound(self) -> str:
        """What takes most of it."""
        parts = {"compute": self.compute, "memory": self.memory, "network": self.exposed}
        return max(parts, key=lambda name: parts[name])


def roofline(program: Program, network: Network) -> Roofline:
    """The bound for a compiled program on the network's topology; times are NaN where the chip's rates are not known."""
    chip = network.topology.chip
    flops, bandwidth = chip.flops / chip.devices, chip.bandwidth / chip.devices
    work, device = Cost(), 0.0
    by_loop: dict[str, float] = defaultdict(float)
    times: dict[str, list[float]] = {}
    for home, count, loop in loops(program):
        each = []
        for one in home.instructions:
            found = cost(program, home, one)
            work += found * count
            each.append(max((found.matrix + found.kernel) / flops, found.bytes / bandwidth))
        times[home.name] = each
        device += count * math.fsum(each)
        by_loop[loop] += count * math.fsum(each)
    covering = _covering(program, times)
    moved = _shared(all_of(program, network.topology.devices), network, covering)
    return Roofline(
        work=work,
        compute=(work.matrix + work.kernel) / flops,
        memory=work.bytes / bandwidth,
        device=device,
        network=math.fsum(one.what.times * one.seconds for one in moved),
        exposed=math.fsum(one.exposed for one in moved),
        moved=moved,
        by_loop=dict(by_loop),
    )


def _covering(program: Program, times: dict[str, list[float]]) -> dict[str, list[float]]:
    """The same times, with those of a loop's body at the place of the loop: what may hide a collective around it."""
    found: dict[str, list[float]] = {}

    def of(name: str) -> list[float]:
        if name not in found:
            home = program.computations[name]
            found[name] = list(times[name])
            for number, one in enumerate(home.instructions):
                body = one.attribute("body") if one.kind == "while" else None
                if body in times:
                    found[name][number] += (program.trips(home, one) or 1) * math.fsum(of(body))
        return found[name]

    for name in times:
        of(name)
    return found


def _shared(found: list[Collective], network: Network, times: dict[str, list[float]]) -> tuple[Moved, ...]:
    """Collectives with their times. Those that travel at once wait for their hops together and one after the other for
    the bytes; work between the first start and the last end of such a group covers it once.
    """
    order = sorted(found, key=lambda one: (one.home, one.hidden))
    groups: list[list[Collective]] = []
    for one in order:
        last = groups[-1] if groups else []
        overlaps = (
            bool(last)
            and last[-1].home == one.home
            and one.hidden[0] < max(other.hidden[1] for other in last)
        )
        if one.asynchronous and overlaps and last[0].asynchronous:
            last.append(one)
        else:
            groups.append([one])
    moved = []
    for group in groups:
        slowest = max(group, key=network.latency)
        seconds = [network.transfer(one) + (network.latency(one) if one is slowest else 0.0) for one in group]
        left = 0.0
        if group[0].asynchronous:
            first, last = min(one.hidden[0] for one in group), max(one.hidden[1] for one in group)
            left = math.fsum(times[group[0].home][first:last])
        for one, time in zip(group, seconds, strict=True):
            moved.append(Moved(one, time, min(time, left)))
            left -= min(time, left)
    return tuple(moved)
