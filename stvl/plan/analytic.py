"""What can be said of a step without a compiler: state by shardings, activations by what autodiff saves, FLOPs by formula.

GPU topologies are planned by this alone. It knows nothing of XLA's fusions, of layouts, or of memory lost between arrays:
treat the memory as an estimate (`docs/performance.md` compares it with compiled steps) and the time as a lower bound.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stvl.core.errors import ConfigError
from stvl.dist.mesh import AXIS_NAMES, MeshConfig
from stvl.models.flops import repeated_flops, train_flops
from stvl.plan.ahead import Memory, decided, state_bytes
from stvl.plan.collectives import Collective
from stvl.plan.network import Network, places
from stvl.plan.topology import Topology
from stvl.train.experiment import Experiment
from stvl.train.state import Starter, abstract_batch, abstract_inputs, build


@dataclasses.dataclass(frozen=True)
class Analysis:
    """A step by analysis.

    Attributes:
        experiment: with its dtype decided.
        starter: shapes and shardings of its state, on a mesh without devices.
        memory: bytes on one device.
        flops: of one device, remat included.
        collectives: exchanges of a step with the seconds of one run.
        compute, network: seconds.
    """

    experiment: Experiment
    starter: Starter
    memory: Memory
    flops: float
    collectives: tuple[tuple[Collective, float], ...]
    compute: float
    network: float

    @property
    def step(self) -> float:
        """Compute and network at once, as XLA's scheduler for GPUs has them where it can."""
        return max(self.compute, self.network)


def sizes_of(mesh: MeshConfig, devices: int) -> tuple[int, ...]:
    """Sizes of the mesh axes, -1 filled in, in the order of `AXIS_NAMES`."""
    shape = [getattr(mesh, name) for name in AXIS_NAMES]
    if -1 in shape:
        known = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = devices // known
    return tuple(shape)


@dataclasses.dataclass(frozen=True)
class Described:
    """Stands for a device in a mesh on which nothing will run."""

    id: int
    platform: str
    device_kind: str
    process_index: int = 0


def described_mesh(mesh: MeshConfig, topology: Topology) -> Mesh:
    """The mesh of a topology that no compiler here can describe, in plain order.

    Raises:
        ConfigError: sizes whose product is not the number of devices.
    """
    shape = sizes_of(mesh, topology.devices)
    if math.prod(shape) != topology.devices:
        text = " x ".join(f"{name} {size}" for name, size in zip(AXIS_NAMES, shape, strict=True))
        raise ConfigError(
            f"a mesh of {text} needs {math.prod(shape)} devices, {topology.name} has {topology.devices}"
        )
    chip = topology.chip
    devices = [Described(number, chip.platform, chip.name) for number in range(topology.devices)]
    return Mesh(np.array(devices, dtype=object).reshape(shape), AXIS_NAMES)


def model_flops(experiment: Experiment) -> int:
    """FLOPs of a step over all devices that the model needs: nothing computed twice (`stvl.models.flops`)."""
    context, frames = experiment.tokenizer.context_length, experiment.loader.frames
    return train_flops(experiment.model, frames, context, experiment.loader.batch)


def executed_flops(experiment: Experiment) -> int:
    """FLOPs of a step over all devices with what remat and GradCache compute again."""
    context, loader = experiment.tokenizer.context_length, experiment.loader
    again = repeated_flops(experiment.model, loader.frames, context, loader.batch, experiment.grad_cache)
    return model_flops(experiment) + again


def saved_bytes(experiment: Experiment, rows: int) -> int:
    """Bytes that the towers' backward pass needs from their forward pass on `rows` samples: autodiff's own list."""
    model, _ = build(experiment)
    video, ids = abstract_inputs(experiment, rows)
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), video, ids))["params"]

    def pull(params: Any, video: Any, ids: Any) -> Any:
        def features(params: Any) -> Any:
            return model.apply(
                {"params": params}, video, ids, train=True, rngs={"drop_path": jax.random.key(0)}
            )

        return jax.vjp(features, params)[1]

    saved = collections.Counter(
        _kind(leaf) for leaf in jax.tree.leaves(jax.eval_shape(pull, params, video, ids))
    )
    # Parameters are saved as well; they are counted with the state.
    saved -= collections.Counter(_kind(leaf) for leaf in jax.tree.leaves(params))
    return sum(
        count * math.prod(shape) * jnp.dtype(dtype).itemsize for (shape, dtype), count in saved.items()
    )


def _kind(leaf: Any) -> tuple[tuple[int, ...], str]:
    """Shape and dtype; random keys count as their two words."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return (*leaf.shape, 2), "uint32"
    return tuple(leaf.shape), str(leaf.dtype)


def activation_bytes(experiment: Experiment, rows: int) -> int:
    """What is saved, and what one block needs while it is computed again."""
    total = saved_bytes(experiment, rows)
    video = experiment.model.video
    if video.remat != "none":
        one, two = (
            saved_bytes(_with_video(experiment, depth=depth, remat="none", unroll=1), rows)
            for depth in (1, 2)
        )
        total += two - one
    return total


def _with_video(experiment: Experiment, **changes: Any) -> Experiment:
    model = experiment.model
    return dataclasses.replace(
        experiment, model=dataclasses.replace(model, video=dataclasses.replace(model.video, **changes))
    )


def analyse(experiment: Experiment, topology: Topology) -> Analysis:
    """Plan a step without a compiler.

    Raises:
        ConfigError: a batch that the mesh cannot split.
    """
    experiment = decided(experiment, topology.platform)
    mesh = described_mesh(experiment.mesh, topology)
    starter = Starter(experiment, mesh)
    batch = experiment.loader.batch
    state = state_bytes(starter, abstract_batch(experiment, batch))
    sizes = dict(mesh.shape)
    rows = max(batch // (sizes["data"] * sizes["fsdp"] * experiment.grad_cache), 1)
    # Heads, hidden widths and tokens are split as well; norms and the like are not: a small part.
    temp = activation_bytes(experiment, rows) // (sizes["tensor"] * sizes["context"]) + state.params
    arguments = state.params + state.optimizer + state.ema + state.batch
    memory = dataclasses.replace(state, arguments=arguments, temp=temp, total=arguments + temp)
    flops = executed_flops(experiment) / topology.devices
    moved = _exchanges(experiment, starter, topology)
    return Analysis(
        experiment=experiment,
        starter=starter,
        memory=memory,
        flops=flops,
        collectives=moved,
        compute=flops / (topology.chip.flops / topology.chip.devices),
        network=math.fsum(one.times * seconds for one, seconds in moved),
    )


def _exchanges(
    experiment: Experiment, starter: Starter, topology: Topology
) -> tuple[tuple[Collective, float], ...]:
    """Gradients over data and fsdp, parameters over fsdp, products over tensor, in the compute dtype."""
    sizes = dict(starter.mesh.shape)
    width = jnp.dtype(experiment.compute_dtype).itemsize
    count = sum(leaf.size for leaf in jax.tree.leaves(starter.abstract.params))
    parts = sizes["fsdp"] * sizes["tensor"]
    network = Network(topology, tuple(places(topology)))
    found = []
    if sizes["fsdp"] > 1:
        gathers = 1 if experiment.mesh.gather == "step" else 2
        bytes_ = width * count // sizes["tensor"]
        found.append(_exchange("all-gather", bytes_, sizes["fsdp"], gathers, "parameters"))
        found.append(_exchange("reduce-scatter", bytes_, sizes["fsdp"], 1, "gradients"))
    if sizes["data"] > 1:
        stride = sizes["fsdp"] * sizes["tensor"] * sizes["context"]
        found.append(_exchange("all-reduce", width * count // parts, sizes["data"], 1, "gradients", stride))
    if sizes["tensor"] > 1:
        video = experiment.model.video
        tokens = video.side**2 * experiment.loader.frames // getattr(video, "tube", 1) + 1
        rows = experiment.loader.batch // (sizes["data"] * sizes["fsdp"])
        bytes_ = width * rows * tokens * video.width // sizes["context"]
        found.append(_exchange("all-reduce", bytes_, sizes["tensor"], 4 * video.depth, "video blocks"))
    return tuple((one, network.seconds(one)) for one in found)


def _exchange(kind: str, size: int, count: int, times: int, where: str, stride: int = 1) -> Collective:
    group = tuple(number * stride for number in range(count))
    return Collective(kind, size, group, (), times, True, (0, 0), "", where, where, "")
