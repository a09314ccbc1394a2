"""How long a collective takes on a torus, inside a GPU host, or over the network between slices.

Rings on every axis of the torus that a group spans work at once. With V bytes of the whole array, n devices on an axis
and W bytes a second into a chip on the spanned axes together (two links an axis where it closes to a ring, one where not):

    all-gather, reduce-scatter   V (n - 1) / n / W
    all-reduce                   twice that
    all-to-all                   V (n - 1) / n / W times n / 8 on a ring, n / 4 on a line: bytes travel a quarter (half)
                                 of the axis on the mean, over links that all share
    collective-permute           V times the hops of the longest way, over one link

The same formulas as in "How to Scale Your Model" (jax-ml.github.io/scaling-book/sharding), plus `HOP` for each hop.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from stvl.plan.collectives import Collective
from stvl.plan.topology import Topology

#: Seconds for one hop on ICI or NVLink (the scaling book's figure), and for one message between slices (ours, a guess).
HOP, FAR = 1e-6, 50e-6

#: How often the whole array passes a link, next to an all-gather.
PASSES = {"all-gather": 1.0, "reduce-scatter": 1.0, "all-reduce": 2.0, "collective-broadcast": 1.0}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a device is: its slice and its coordinates on the slice's torus."""

    slice: int
    coords: tuple[int, ...]


def places(topology: Topology, devices: Sequence[object] | None = None) -> list[Place]:
    """Place of every device in the order of the program's devices; without devices, in plain order."""
    if devices is None or topology.platform != "tpu":
        per = math.prod(topology.shape)
        chips = [number // topology.chip.devices for number in range(topology.devices)]
        return [Place(chip // per, _unravelled(chip % per, topology.shape)) for chip in chips]
    width = len(topology.shape)
    return [
        Place(getattr(device, "slice_index", 0) or 0, tuple(getattr(device, "coords", (0, 0, 0)))[:width])
        for device in devices
    ]


def _unravelled(number: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Coordinates of a number in the order of rows."""
    found = []
    for size in reversed(shape):
        found.append(number % size)
        number //= size
    return tuple(reversed(found))


@dataclasses.dataclass(frozen=True)
class Network:
    """Times of collectives on one topology.

    Attributes:
        topology: chips and wires.
        at: place of every device.
    """

    topology: Topology
    at: tuple[Place, ...]

    def seconds(self, one: Collective) -> float:
        """One run of a collective."""
        return self.transfer(one) + self.latency(one)

    def latency(self, one: Collective) -> float:
        """The part that does not depend on its size: hops, which those of collectives that travel together share."""
        return 0.0 if self.topology.platform == "cpu" else self._whole(dataclasses.replace(one, bytes=1))

    def transfer(self, one: Collective) -> float:
        """The part that grows with its size."""
        return max(self._whole(one) - self.latency(one), 0.0)

    def _whole(self, one: Collective) -> float:
        if self.topology.platform == "cpu":
            return 0.0
        if one.far:
            slices = self.topology.slices
            shares = {"all-gather": slices - 1, "one-to-one": 1}
            share = shares.get(one.kind, (slices - 1) / slices)
            passes = 2 if one.kind == "all-reduce" else 1
            return passes * share * one.bytes / self.topology.chip.network + FAR
        if one.kind == "collective-permute":
            return self._permute(one)
        members = [self.at[number] for number in one.group if number < len(self.at)]
        if len(members) < 2 or not one.bytes:
            return 0.0
        groups = len({place.slice for place in members})
        within = len(members) // groups
        time = self._within(one.kind, one.bytes, [m for m in members if m.slice == members[0].slice])
        if groups > 1:
            # Hierarchical: each chip carries its share of the array to its peers in the other slices.
            share = one.bytes / max(within, 1)
            passes = PASSES.get(one.kind, 1.0)
            time += passes * share * (groups - 1) / groups / self.topology.chip.network + FAR
        return time

    def _within(self, kind: str, size: int, members: Sequence[Place]) -> float:
        if len(members) < 2:
            return 0.0
        chip = self.topology.chip
        if not chip.links:
            return self._host(kind, size, len(members))
        spans = self._spans(members)
        width = sum(chip.link * (2 if ring else 1) for _, ring in spans)
        n = len(members)
        time = size * (n - 1) / n / width
        hops = sum(size // 2 if ring else size - 1 for size, ring in spans)
        if kind.endswith("all-to-all"):
            longest, ring = max(spans)
            return time * max(longest / (8 if ring else 4), 1.0) + hops * HOP
        return PASSES.get(kind, 1.0) * (time + hops * HOP)

    def _spans(self, members: Sequence[Place]) -> list[tuple[int, bool]]:
        """Devices and whether they close to a ring, for every axis of the torus on which the members differ."""
        spans = []
        for axis, (size, ring) in enumerate(zip(self.topology.shape, self.topology.rings(), strict=True)):
            found = len({place.coords[axis] for place in members})
            if found > 1:
                spans.append((found, ring and found == size))
        # Two cores of one chip have the same coordinates; their exchange does not leave it.
        return spans or [(2, True)]

    def _host(self, kind: str, size: int, count: int) -> float:
        """GPUs: NVLink within a host, one adapter a GPU between hosts, both at once on large groups."""
        chip = self.topology.chip
        within = min(count, chip.host)
        hosts = -(-count // chip.host)
        time = size * (within - 1) / within / chip.link
        if hosts > 1:
            time += size / within * (hosts - 1) / hosts / chip.network + FAR
        return PASSES.get(kind, 1.0) * (time + within * HOP)

    def _permute(self, one: Collective) -> float:
        chip = self.topology.chip
        longest, far = 0, False
        for start, end in one.hops:
            if max(start, end) >= len(self.at):
                continue
            a, b = self.at[start], self.at[end]
            far = far or a.slice != b.slice
            if chip.links and a.slice == b.slice:
                longest = max(longest, self._distance(a, b))
        if not chip.links:
            return one.bytes / chip.link + HOP
        time = one.bytes * max(longest, 1) / chip.link + max(longest, 1) * HOP
        return max(time, one.bytes / chip.network + FAR) if far else time

    def _distance(self, a: Place, b: Place) -> int:
        hops = 0
        for axis, (size, ring) in enumerate(zip(self.topology.shape, self.topology.rings(), strict=True)):
            away = abs(a.coords[axis] - b.coords[axis])
            hops += min(away, size - away) if ring else away
        return hops
