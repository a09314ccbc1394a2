"""What the planner knows of each accelerator: memory, arithmetic, and networks, from the vendors' pages."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

GIB = 2**30
GB = 10**9


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
        name: the planner's word for it.
        platform: ``tpu``, ``gpu`` or ``cpu``.
        memory: bytes of its own memory (HBM).
        flops: dense bf16 FLOP/s at most.
        bandwidth: bytes a second to and from its memory.
        link: bytes a second of one link, one way: ICI to one neighbour of a TPU, NVLink to all others of a GPU's host.
        links: axes of the torus that the links form; 0 where every chip of a host reaches every other one.
        wrap: a torus axis closes to a ring where its size is a multiple of this (0: never).
        network: bytes a second that a chip may send over the network between slices or hosts.
        devices: jax devices on one chip.
        host: chips of one host, where that decides which network is used (GPUs).
        source: where the numbers come from.
    """

    name: str
    platform: str
    memory: int
    flops: float
    bandwidth: float
    link: float
    links: int
    wrap: int
    network: float
    source: str
    devices: int = 1
    host: int = 0


_TPU = "docs.cloud.google.com/tpu/docs/"

#: v5e, v5p, v6e and tpu7x give ICI per chip in both directions: it is divided by two and by the ports. v4 gives the
#: all-reduce bandwidth of a pod of 4,096: 1.1 PB/s / 4,096 chips / 6 ports. Networks between slices: v5e 6.4 Tbps for 256
#: chips, v6e 25.6 Tbps for 256, v5p 50 Gbps and tpu7x 100 Gbps a chip; v4 as v5p (its page gives none). v5e and v6e close
#: an axis only at 16, the cubes of v4, v5p and tpu7x at multiples of 4. GPUs: NVLink one way and one 400 Gbps
#: (A100: 200 Gbps) adapter a GPU as in DGX systems.
CHIPS = MappingProxyType(
    {
        chip.name: chip
        for chip in (
            Chip("v4", "tpu", 32 * GIB, 275e12, 1200e9, 45e9, 3, 4, 6.25e9, _TPU + "v4"),
            Chip("v5e", "tpu", 16 * GIB, 197e12, 819e9, 50e9, 2, 16, 3.125e9, _TPU + "v5e"),
            Chip("v5p", "tpu", 95 * GIB, 459e12, 2765e9, 100e9, 3, 4, 6.25e9, _TPU + "v5p"),
            Chip("v6e", "tpu", 32 * GIB, 918e12, 1638e9, 100e9, 2, 16, 12.5e9, _TPU + "v6e"),
            Chip("tpu7x", "tpu", 192 * GIB, 2307e12, 7380e9, 100e9, 3, 4, 12.5e9, _TPU + "tpu7x", devices=2),
            Chip(
                "a100",
                "gpu",
                80 * GB,
                312e12,
                2039e9,
                300e9,
                0,
                0,
                25e9,
                "NVIDIA A100 80GB data sheet",
                host=8,
            ),
            Chip(
                "h100",
                "gpu",
                80 * GB,
                989e12,
                3350e9,
                450e9,
                0,
                0,
                50e9,
                "NVIDIA H100 SXM data sheet",
                host=8,
            ),
            Chip(
                "h200",
                "gpu",
                141 * GB,
                989e12,
                4800e9,
                450e9,
                0,
                0,
                50e9,
                "NVIDIA H200 SXM data sheet",
                host=8,
            ),
        )
    }
)

#: Share of a chip's memory that a program may use: the compiler keeps some for itself (15.75 of 16 GiB on v5e), GPUs
#: need room for the runtime and its libraries.
USABLE = MappingProxyType({"tpu": 15.75 / 16, "gpu": 0.92, "cpu": 1.0})
