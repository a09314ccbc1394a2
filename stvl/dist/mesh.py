"""The device mesh: four named axes whose sizes come from the config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stvl.core.config import config
from stvl.core.errors import ConfigError
from stvl.core.sharding import Rules

#: Mesh axes in order; the last ones are neighbours on the interconnect.
AXIS_NAMES = ("data", "fsdp", "context", "tensor")

#: Which mesh axes a logical axis may be split over. The batch goes over `data` and `fsdp` (the same devices hold
#: slices of the parameters), heads and hidden widths over `tensor`, tokens of activations over `context`.
RULES: Rules = {
    "batch": ("data", "fsdp"),
    "token": ("context",),
    "width": ("fsdp",),
    "query_head": ("tensor",),
    "kv_head": ("tensor",),
    "mlp_width": ("tensor",),
    "vocabulary": ("tensor",),
}


@config
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1 and takes the devices that are left.

    Attributes:
        data: copies of the model, each with its share of the batch.
        fsdp: slices of parameters and optimizer state; also splits the batch.
        tensor: slices of heads and hidden widths.
        context: slices of the token axis.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1


def make_mesh(sizes: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Lay jax `devices` (default: all) out on the four axes.

    Raises:
        ConfigError: sizes whose product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = [getattr(sizes, name) for name in AXIS_NAMES]
    text = " x ".join(f"{name} {size}" for name, size in zip(AXIS_NAMES, shape, strict=True))
    if any(size == 0 or size < -1 for size in shape) or shape.count(-1) > 1:
        raise ConfigError(f"mesh sizes are at least 1, and one of them may be -1; found {text}")
    if -1 in shape:
        known = math.prod(size for size in shape if size != -1)
        if len(devices) % known:
            raise ConfigError(f"a mesh of {text} does not fit {len(devices)} devices: {known} does not divide them")
        shape[shape.index(-1)] = len(devices) // known
    if math.prod(shape) != len(devices):
        raise ConfigError(
            f"a mesh of {text} needs {math.prod(shape)} devices, found {len(devices)}: "
            "set one size to -1 and it takes the devices that are left"
        )
    return Mesh(mesh_utils.create_device_mesh(shape, devices), AXIS_NAMES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
