"""Reads ``v5e:16x16``, ``h200x8`` or ``cpu`` into a topology, and makes the devices or the abstract mesh of it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from typing import Any

from stvl.core.errors import ConfigError, nearest
from stvl.plan.chips import CHIPS, USABLE, Chip

#: Variables without which libtpu asks a metadata server that is not there; they describe no real machine.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    # No device is opened, so several compilers may run side by side, also beside a real TPU's runtime.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

#: What libtpu must be told beside the shape: both cores of a v4 chip work as one device, as they do on a real one.
DESCRIBED = {"v4": {"chip_config_name": "megacore"}}

#: Words for the error message, one of each kind.
EXAMPLES = (
    "v5e:16x16",
    "v5p:8x8x8",
    "v6e:16x16",
    "v4:4x4x4",
    "tpu7x:4x4x4",
    "h200x8",
    "h100x8",
    "a100x8",
    "cpu",
)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind, and how they are wired.

    Attributes:
        name: as the user wrote it.
        chip: the accelerator.
        shape: chips along each axis of the torus of one slice; one number for GPUs and CPUs.
        slices: groups that only the slower network joins.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """jax devices of all slices."""
        return self.chips * self.chip.devices

    @property
    def memory(self) -> int:
        """Bytes that a program may use on one device."""
        return int(self.chip.memory / self.chip.devices * USABLE[self.chip.platform])

    @property
    def platform(self) -> str:
        """``tpu``, ``gpu`` or ``cpu``."""
        return self.chip.platform

    def rings(self) -> tuple[bool, ...]:
        """Whether each axis of the torus closes."""
        return tuple(bool(self.chip.wrap) and size % self.chip.wrap == 0 for size in self.shape)


def parse(name: str, slices: int = 1) -> Topology:
    """The topology called `name`: ``CHIP:AxB[xC]`` for TPUs, ``CHIPxN`` for GPUs, ``cpu`` or ``cpu:N`` for CPUs.

    Raises:
        ConfigError: an unknown chip or a shape that it cannot have, with the nearest one.
    """
    if slices < 1:
        raise ConfigError(f"--slices is at least 1, found {slices}")
    cpu = re.fullmatch(r"cpu(?::(\d+))?", name)
    if cpu:
        return Topology(name, _cpu(), (max(int(cpu.group(1) or 1), 1),), slices)
    gpu = re.fullmatch(r"([a-z]\w*?\d+)x(\d+)", name)
    if gpu and gpu.group(1) in CHIPS and CHIPS[gpu.group(1)].platform == "gpu":
        return _gpu(name, CHIPS[gpu.group(1)], int(gpu.group(2)), slices)
    kind, colon, sizes = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None or not colon or chip.platform != "tpu" or not re.fullmatch(r"\d+(x\d+)*", sizes):
        known = [
            *EXAMPLES,
            *(f"{one}:{sizes}" for one, found in CHIPS.items() if colon and found.platform == "tpu"),
        ]
        raise ConfigError(
            f"unknown topology {name!r}{nearest(name, known)}: write v5e:16x16, v5p:8x8x8, h200x8 or cpu"
        )
    shape = tuple(int(size) for size in sizes.split("x"))
    if len(shape) != chip.links or 0 in shape:
        example = "x".join(["4"] * chip.links)
        raise ConfigError(
            f"{kind} has a torus of {chip.links} axes, found {name!r}: write for example {kind}:{example}"
        )
    return Topology(name, chip, shape, slices)


def _gpu(name: str, chip: Chip, count: int, slices: int) -> Topology:
    if count < 1 or (count > chip.host and count % chip.host):
        raise ConfigError(
            f"{chip.name} comes in hosts of {chip.host}: {name!r} is neither within one nor a multiple"
        )
    return Topology(name, chip, (count,), slices)


def _cpu() -> Chip:
    """The CPU at hand: its memory; rates are not known."""
    pages, size = (os.sysconf(key) for key in ("SC_PHYS_PAGES", "SC_PAGE_SIZE"))
    return Chip("cpu", "cpu", pages * size, math.nan, math.nan, math.nan, 0, 0, math.nan, "this machine")


def devices_of(topology: Topology) -> list[Any]:
    """The jax devices to compile for: described by libtpu for TPUs, the ones at hand for CPUs.

    Raises:
        ConfigError: libtpu is not installed or does not know the shape; too few CPU devices; a GPU topology.
    """
    if topology.platform == "gpu":
        raise ConfigError(
            f"no compiler for {topology.name} is here: GPU topologies are planned by analysis only"
        )
    if topology.platform == "cpu":
        return _cpu_devices(topology)
    import importlib.util

    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"{topology.name} needs the TPU compiler: pip install 'stvl[tpu]' (no TPU is needed; set JAX_PLATFORMS=cpu)"
        )
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    options: dict[str, Any] = dict(DESCRIBED.get(topology.chip.name, {}))
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except Exception as problem:
        told = str(problem).strip().splitlines() or [type(problem).__name__]
        raise ConfigError(
            f"the TPU compiler does not describe {topology.name!r}: {told[0][:300]}"
        ) from problem
    return list(found.devices)


def _cpu_devices(topology: Topology) -> list[Any]:
    import jax

    devices = jax.devices("cpu")
    if len(devices) < topology.devices:
        raise ConfigError(
            f"{topology.name} needs {topology.devices} CPU devices, jax shows {len(devices)}: set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={topology.devices}"
        )
    return list(devices[: topology.devices])
