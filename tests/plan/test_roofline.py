"""Times by hand: collectives on a torus, between slices and between GPUs, and a program of two instructions."""

from __future__ import annotations

import dataclasses
import math

import pytest

from stvl.plan.chips import GIB, Chip
from stvl.plan.collectives import Collective
from stvl.plan.hlo import parse as parse_program
from stvl.plan.network import FAR, HOP, Network, Place, places
from stvl.plan.roofline import roofline
from stvl.plan.topology import Topology, parse

#: Links of 1 GB/s, an axis of 4 closes, 10 MB/s between slices; 1 TFLOP/s and 100 GB/s.
ROUND = Chip("round", "tpu", GIB, 1e12, 100e9, 1e9, 2, 4, 1e7, "made up")


def network(shape: tuple[int, ...], slices: int = 1) -> Network:
    """Devices in the order of rows."""
    at = [Place(number, (x, y)) for number in range(slices) for x in range(shape[0]) for y in range(shape[1])]
    return Network(Topology("round", ROUND, shape, slices), tuple(at))


def moved(
    kind: str, group: tuple[int, ...], size: int = 10**9, hops: tuple[tuple[int, int], ...] = ()
) -> Collective:
    return Collective(kind, size, group, hops, 1, False, (0, 0), "", "", "", "")


ROW, BOTH = (0, 1, 2, 3), tuple(range(16))


@pytest.mark.parametrize(
    ("kind", "group", "seconds"),
    [
        # One ring of 4: two links bring 3/4 of a GB; two hops to the far side.
        ("all-gather", ROW, 0.75 / 2 + 2 * HOP),
        ("reduce-scatter", ROW, 0.75 / 2 + 2 * HOP),
        ("all-reduce", ROW, 2 * (0.75 / 2 + 2 * HOP)),
        # Two rings at once: four links, 15/16 of a GB.
        ("all-gather", BOTH, 15 / 16 / 4 + 4 * HOP),
        # A part of an axis is a line: one link, one hop.
        ("all-gather", (0, 1), 0.5 / 1 + HOP),
        ("all-to-all", ROW, 0.75 / 2 + 2 * HOP),
        ("all-gather", (5,), 0.0),
    ],
)
def test_torus(kind, group, seconds):
    assert network((4, 4)).seconds(moved(kind, group)) == pytest.approx(seconds)


def test_permute_goes_the_short_way_round():
    ring = network((4, 4))
    assert ring.seconds(moved("collective-permute", (), hops=((0, 1), (3, 0)))) == pytest.approx(1.0 + HOP)
    # Without the closing link 3 -> 0 takes three hops.
    line = network((2, 3))
    assert line.seconds(moved("collective-permute", (), hops=((2, 0),))) == pytest.approx(2 * 1.0 + 2 * HOP)


def test_between_slices():
    # Within a slice 3/4 over two links, then each chip sends its quarter's half over the slower network, both ways.
    found = network((1, 4), 2).seconds(moved("all-reduce", tuple(range(8))))
    assert found == pytest.approx(2 * (0.75 / 2 + 2 * HOP) + 2 * 0.25e9 * 0.5 / 1e7 + FAR)


def test_what_is_sent_between_slices():
    far = dataclasses.replace(moved("all-gather", (), 10**6), far=True)
    # A megabyte to each of three other slices at 10 MB/s; an all-reduce sends and gathers three quarters.
    assert network((1, 4), 4).seconds(far) == pytest.approx(0.3 + FAR)
    both = dataclasses.replace(far, kind="all-reduce")
    assert network((1, 4), 4).seconds(both) == pytest.approx(2 * 0.75 * 0.1 + FAR)
    one = dataclasses.replace(far, kind="one-to-one")
    assert network((1, 4), 4).seconds(one) == pytest.approx(0.1 + FAR)


def test_gpus_use_nvlink_within_and_adapters_between_hosts():
    topology = parse("h200x16")
    one = Network(topology, tuple(places(topology)))
    within = one.seconds(moved("all-gather", tuple(range(8))))
    assert within == pytest.approx(7 / 8 / 450 + 8 * HOP)
    assert one.seconds(moved("all-gather", tuple(range(16)))) == pytest.approx(
        7 / 8 / 450 + (1 / 8) * 0.5 / 50 + FAR + 8 * HOP
    )


PROGRAM = """ENTRY %main (x: f32[1000,1000]) -> f32[1000,1000] {
  %x = f32[1000,1000]{1,0} parameter(0)
  %g-start = (f32[1000,1000]{1,0}, f32[4000,1000]{1,0}) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  %product = f32[1000,1000]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %g-done = f32[4000,1000]{1,0} all-gather-done(%g-start)
  %late = f32[1000,1000]{1,0} all-reduce(%product), replica_groups={{0,1,2,3}}, to_apply=%sum
  ROOT %sum.2 = f32[1000,1000]{1,0} add(%late, %product)
}
"""


def test_program_by_hand():
    found = roofline(parse_program(PROGRAM), network((4, 4)))
    # The product: 2 GFLOP at 1 TFLOP/s, longer than its 12 MB; the sum: 12 MB at 100 GB/s, longer than its megaflop.
    # What collectives read and write counts as traffic, but not the start's.
    product, add, reduce = 2e-3, 12e6 / 100e9, 8e6 / 100e9
    assert found.compute == pytest.approx(2e-3)
    assert found.device == pytest.approx(product + add + reduce)
    gather = 16e6 * 0.75 / 2e9 + 2 * HOP
    late = 2 * (4e6 * 0.75 / 2e9 + 2 * HOP)
    assert found.network == pytest.approx(gather + late)
    # 2 ms of the gather's 6 are covered by the product; nothing covers the reduction.
    assert found.exposed == pytest.approx(gather - product + late)
    assert found.step == pytest.approx(found.device + found.exposed)
    assert found.bound == "network"


def test_an_unknown_rate_gives_an_unknown_time():
    chip = dataclasses.replace(ROUND, flops=math.nan, bandwidth=math.nan)
    bare = dataclasses.replace(network((4, 4)), topology=Topology("bare", chip, (4, 4)))
    assert math.isnan(roofline(parse_program(PROGRAM), bare).step)
