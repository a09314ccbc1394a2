"""The device mesh: four named axes whose sizes come from the config."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stvl.core.config import config
from stvl.core.errors import ConfigError, nearest
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
        gather: when parameters that `fsdp` slices are put together: ``layer``, each layer's when its turn comes (FSDP,
            ZeRO-3), or ``step``, all of them once a step, in the compute dtype (FSDP's SHARD_GRAD_OP, ZeRO-2). The second
            holds a whole copy during the step and leaves no exchange inside the loop over layers. It takes neither
            tensor nor context slices, nor drop path.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    gather: Literal["layer", "step"] = "layer"

    def __post_init__(self) -> None:
        if self.gather == "step" and (self.tensor, self.context) != (1, 1):
            raise ConfigError(
                f"mesh.gather = 'step' takes no tensor or context slices, found tensor {self.tensor}, context {self.context}"
            )


def _dp(devices: int, slices: int) -> MeshConfig:
    return MeshConfig(data=devices)


def _fsdp(devices: int, slices: int) -> MeshConfig:
    return MeshConfig(data=devices // _within(devices, slices), fsdp=_within(devices, slices))


def _zero2(devices: int, slices: int) -> MeshConfig:
    return dataclasses.replace(_fsdp(devices, slices), gather="step")


def _with_tensor(devices: int, slices: int) -> MeshConfig:
    tensor = math.gcd(devices // slices, 4)
    return dataclasses.replace(_fsdp(devices // tensor, slices), tensor=tensor)


def _with_context(devices: int, slices: int) -> MeshConfig:
    context = math.gcd(devices // slices, 4)
    return dataclasses.replace(_fsdp(devices // context, slices), context=context)


def _within(devices: int, slices: int) -> int:
    """Slices of the parameters: the largest power of two up to 16 that divides a slice's devices.

    More slices make pieces of a width of 768 to 1,024 narrower than the 128 lanes of a TPU's tile can hold well, and 16
    bring the state of the largest model here below a gigabyte a chip; the rest of the devices hold copies.
    """
    return math.gcd(devices // slices, 16)


#: Name -> ``layout(devices, slices) -> MeshConfig``: the usual ways to lay a run out on `devices` chips in `slices` groups.
LAYOUTS: Mapping[str, Callable[[int, int], MeshConfig]] = MappingProxyType(
    {"dp": _dp, "fsdp": _fsdp, "zero2": _zero2, "fsdp+tp": _with_tensor, "fsdp+context": _with_context}
)


def layout(name: str, devices: int, slices: int = 1) -> MeshConfig:
    """The mesh sizes that the preset `name` gives to `devices` devices; slices of a model never span the slower network.

    Raises:
        ConfigError: an unknown name, with the nearest; slices that do not divide the devices.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"unknown sharding preset {name!r}{nearest(name, LAYOUTS)}")
    if slices < 1 or devices % slices:
        raise ConfigError(f"{devices} devices cannot be divided into {slices} slices")
    return LAYOUTS[name](devices, slices)


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
            raise ConfigError(
                f"a mesh of {text} does not fit {len(devices)} devices: {known} does not divide them"
            )
        shape[shape.index(-1)] = len(devices) // known
    if math.prod(shape) != len(devices):
        raise ConfigError(
            f"a mesh of {text} needs {math.prod(shape)} devices, found {len(devices)}: "
            "set one size to -1 and it takes the devices that are left"
        )
    return Mesh(_placed(shape, devices), AXIS_NAMES)


def _placed(shape: list[int], devices: list[Any]) -> Any:
    """Devices in the order in which neighbours on the last axes are neighbours on the interconnect.

    Where devices come in slices, only the data axis crosses from one to another.

    Raises:
        ConfigError: a data axis that the slices do not divide.
    """
    slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    if slices == 1:
        # Splitting an axis of the torus is allowed last: fsdp = 16 on 8 x 8 x 8 needs it.
        try:
            return mesh_utils.create_device_mesh(shape, devices)
        except NotImplementedError:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        raise ConfigError(
            f"mesh.data = {shape[0]} is no multiple of the {slices} slices, which only data may span"
        )
    within, across = [shape[0] // slices, *shape[1:]], [slices, 1, 1, 1]
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
