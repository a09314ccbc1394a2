"""Compiles the real train step of an experiment for devices that need not be here, and keeps what the compiler says."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from stvl.core.errors import ConfigError
from stvl.dist.mesh import batch_sharding, make_mesh
from stvl.ops.attention.backends import Case
from stvl.ops.attention.record import recorded
from stvl.plan.shardings import tree_bytes
from stvl.plan.topology import Topology, devices_of
from stvl.train.experiment import Experiment
from stvl.train.state import Starter, abstract_batch
from stvl.train.step import make_step

#: How the TPU compiler says that a program does not fit: in whole, or by its temporaries alone.
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? (?:hbm|HBM)")
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        params, optimizer, ema, batch: of the arguments, by their shardings.
        arguments: all arguments as the compiler lays them out, with padding.
        temp: temporaries at the peak: activations, gradients, buffers of collectives.
        outputs: results that do not take the place of an argument.
        code: the program, where it lies in the device's memory.
        total: at the peak.
        host: of the optimizer's state in the host's memory, for this device (`offload`); not part of the others.
    """

    params: int
    optimizer: int
    ema: int
    batch: int
    arguments: int = 0
    temp: int = 0
    outputs: int = 0
    code: int = 0
    total: int = 0
    host: int = 0


@dataclasses.dataclass(frozen=True)
class Ahead:
    """A step that was compiled, or that the compiler refused for lack of memory.

    Attributes:
        experiment: with its dtype decided.
        starter: shapes and shardings of its state.
        devices: in the order of the program.
        memory: bytes on one device; without the compiler's part where the step was refused.
        text: the compiled program; empty where the step was refused.
        cases: the attentions that were traced.
        seconds: spent on tracing and compiling.
        refused: the compiler's words, empty where the step was compiled.
    """

    experiment: Experiment
    starter: Starter
    devices: tuple[Any, ...]
    memory: Memory
    text: str
    cases: tuple[Case, ...]
    seconds: float
    refused: str = ""


def decided(experiment: Experiment, platform: str) -> Experiment:
    """The experiment with the compute dtype that ``auto`` stands for on a platform."""
    if experiment.dtype != "auto":
        return experiment
    return dataclasses.replace(experiment, dtype="float32" if platform == "cpu" else "bfloat16")


def ahead(
    experiment: Experiment, topology: Topology, options: Mapping[str, str | bool] | None = None
) -> Ahead:
    """Compile the train step of an experiment for a topology.

    Args:
        experiment: its mesh must fit the topology's devices.
        topology: TPUs (libtpu must be installed) or CPUs.
        options: flags for the compiler, by name.

    Raises:
        ConfigError: no compiler, or a mesh that does not fit.
    """
    experiment = decided(experiment, topology.platform)
    devices = devices_of(topology)
    mesh = make_mesh(experiment.mesh, devices)
    starter = Starter(experiment, mesh)
    rows = abstract_batch(experiment, experiment.loader.batch)
    placed = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=batch_sharding(mesh))
        for name, leaf in rows.items()
    }
    state = state_bytes(starter, rows)
    order = tuple(mesh.devices.flat)
    start = time.perf_counter()
    with recorded() as cases:
        lowered = make_step(starter).lower(starter.target(), placed)
    with _dumped(topology) as folder:
        try:
            compiled = lowered.compile({**folder.flags, **(options or {})} or None)
        except jax.errors.JaxRuntimeError as problem:
            took = time.perf_counter() - start
            return Ahead(
                experiment,
                starter,
                order,
                refused_memory(state, problem),
                "",
                tuple(cases),
                took,
                str(problem),
            )
        text = folder.text() or compiled.as_text()
    took = time.perf_counter() - start
    return Ahead(experiment, starter, order, measured_memory(state, compiled), text or "", tuple(cases), took)


def state_bytes(starter: Starter, rows: Mapping[str, Any]) -> Memory:
    """What the state and a batch take on one device, by their shardings."""
    abstract, shardings = starter.abstract, starter.shardings
    parts = {
        name: tree_bytes(getattr(abstract, name), getattr(shardings, name))
        for name in ("params", "opt_state", "ema")
    }
    split = {name: batch_sharding(starter.mesh) for name in rows}
    batch = tree_bytes(dict(rows), split)
    away = parts["opt_state"] if starter.experiment.offload == "optimizer" else 0
    optimizer = parts["opt_state"] - away
    return Memory(params=parts["params"], optimizer=optimizer, ema=parts["ema"], batch=batch, host=away)


def measured_memory(state: Memory, compiled: Any) -> Memory:
    """`state` with what a compiled step says of itself."""
    found = compiled.memory_analysis()
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    # A CPU's code is not part of the arrays' memory, and tiny.
    code = found.generated_code_size_in_bytes
    total = found.argument_size_in_bytes + found.temp_size_in_bytes + outputs + code
    return dataclasses.replace(
        state,
        arguments=found.argument_size_in_bytes,
        temp=found.temp_size_in_bytes,
        outputs=outputs,
        code=code,
        total=total,
    )


def refused_memory(state: Memory, problem: Exception) -> Memory:
    """The memory that the compiler says it would need.

    Raises:
        ConfigError: it refused for another reason.
    """
    whole, part = _USED.search(str(problem)), _TEMPORARIES.search(str(problem))
    found = whole or part
    if found is None:
        told = " ".join(str(problem).split())[:500]
        raise ConfigError(f"the compiler refused the step: {told}") from problem
    wanted = int(float(found.group(1)) * _UNITS[found.group(2)])
    if whole:
        return dataclasses.replace(state, total=wanted)
    arguments = state.params + state.optimizer + state.ema + state.batch
    return dataclasses.replace(state, arguments=arguments, temp=wanted, total=wanted + arguments)


@dataclasses.dataclass(frozen=True)
class _Folder:
    """Where the TPU compiler writes the program, which it cannot always print (jax 0.10, asynchronous operations of v5p)."""

    path: Path | None

    @property
    def flags(self) -> dict[str, str | bool]:
        if self.path is None:
            return {}
        return {"xla_dump_to": str(self.path), "xla_dump_hlo_as_text": True}

    def text(self) -> str:
        """The scheduled program; the largest where kernels have files of their own."""
        if self.path is None:
            return ""
        for end in ("after_codegen.txt", "after_optimizations.txt"):
            found: Sequence[Path] = sorted(self.path.glob(f"*.{end}"), key=lambda file: file.stat().st_size)
            if found:
                return found[-1].read_text(encoding="utf-8", errors="replace")
        return ""


@contextmanager
def _dumped(topology: Topology) -> Iterator[_Folder]:
    if topology.platform != "tpu":
        yield _Folder(None)
        return
    with tempfile.TemporaryDirectory(prefix="stvl-plan-") as folder:
        yield _Folder(Path(folder))
