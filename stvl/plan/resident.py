"""Runs a few real steps in a process of its own and compares the memory that they took with what the compiler foretold.

    python -m stvl.plan.resident CONFIG [name=value ...]

On a CPU the measured figure is how far the process's resident memory grew above its size just before the first array was
made, the program already compiled; on a GPU or TPU it is the allocator's own peak.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stvl.dist.mesh import batch_sharding, make_mesh
from stvl.ops.attention.backends import Case
from stvl.ops.attention.record import recorded
from stvl.plan.ahead import decided
from stvl.train.experiment import Experiment, load_experiment
from stvl.train.state import Starter, abstract_batch
from stvl.train.step import make_step


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A train step, compiled for devices that are here.

    Attributes:
        starter: of the experiment with its dtype decided.
        rows: shapes and shardings of a batch.
        program: ``program(state, batch)``.
        cases: the attentions that were traced, repeated ones too.
        seconds: spent on tracing and compiling.
    """

    starter: Starter
    rows: dict[str, jax.ShapeDtypeStruct]
    program: Any
    cases: tuple[Case, ...]
    seconds: float

    @property
    def temp(self) -> int:
        """Bytes of temporaries on one device."""
        return self.program.memory_analysis().temp_size_in_bytes

    @property
    def predicted(self) -> int:
        """Bytes of one device at the peak: arguments, results that take nobody's place, temporaries."""
        found: Any = self.program.memory_analysis()
        arrays = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
        return arrays + found.temp_size_in_bytes


def main(argv: Sequence[str]) -> int:
    """Print predicted and measured bytes as JSON."""
    print(json.dumps(measured(load_experiment(argv[0], argv[1:]))))
    return 0


def measured(experiment: Experiment, steps: int = 2) -> dict[str, Any]:
    """Bytes of one device: ``predicted`` by the compiler and ``measured`` over `steps` real steps on random clips."""
    devices = jax.local_devices()
    step = compile_step(experiment, devices)
    taken, loss = taken_by(step, steps)
    return {
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "batch": experiment.loader.batch,
        "temp": step.temp,
        "predicted": step.predicted,
        "measured": taken,
        "ratio": step.predicted / taken,
        "loss": loss,
    }


def compile_step(experiment: Experiment, devices: Sequence[Any]) -> CompiledStep:
    """Compile the train step of an experiment for `devices`; nothing is put there yet.

    Raises:
        ConfigError: a mesh that the devices do not make up, or a batch that it cannot split.
    """
    experiment = decided(experiment, devices[0].platform)
    mesh = make_mesh(experiment.mesh, devices)
    starter = Starter(experiment, mesh)
    sharding = batch_sharding(mesh)
    rows = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for name, leaf in abstract_batch(experiment, experiment.loader.batch).items()
    }
    start = time.perf_counter()
    with recorded() as cases:
        program = make_step(starter).lower(starter.target(), rows).compile()
    return CompiledStep(starter, rows, program, tuple(cases), time.perf_counter() - start)


def taken_by(step: CompiledStep, steps: int = 2) -> tuple[int, float]:
    """Bytes of one device over the first `steps` steps, from parameters of zeros on random clips, and the last loss.

    The allocator of an accelerator keeps one peak for its process: nothing larger may have run there before.
    """
    devices = list(step.starter.mesh.devices.flat)
    on_cpu = devices[0].platform == "cpu"
    before = _reset()
    state = _zeros(step.starter.target())
    batch = random_batch(step)
    for _ in range(steps):
        state, metrics = step.program(state, batch)
    loss = float(metrics["loss"])
    stats = devices[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use") if not on_cpu else None
    # The fake devices of a CPU share one process.
    share = len(devices) if on_cpu else 1
    return ((_status("VmHWM") - before) // share if peak is None else peak), loss


def random_batch(step: CompiledStep, seed: int = 0) -> dict[str, jax.Array]:
    """A batch of noise and of random words, on the step's devices."""
    return {name: _random(name, leaf, step.starter, seed) for name, leaf in step.rows.items()}


def _zeros(target: Any) -> Any:
    """A state of zeros; every byte is written, so that it is really there."""
    return jax.tree.map(
        lambda leaf: jax.device_put(np.full(leaf.shape, 0, leaf.dtype), leaf.sharding), target
    )


def _random(name: str, leaf: Any, starter: Starter, seed: int) -> jax.Array:
    rng = np.random.default_rng(seed)
    top = 256 if name == "video" else starter.experiment.model.text.vocabulary if name == "text" else 4
    return jax.device_put(rng.integers(0, top, leaf.shape, leaf.dtype), leaf.sharding)


def _reset() -> int:
    """Give free memory back, forget the peak so far, and say how large the process is."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (OSError, AttributeError):
        return 0
    return _status("VmRSS")


def _status(key: str) -> int:
    """A figure of /proc/self/status in bytes; 0 where there is none (not Linux)."""
    path = Path("/proc/self/status")
    text = path.read_text(encoding="ascii") if path.exists() else ""
    found = re.search(rf"{key}:\s+(\d+) kB", text)
    return int(found.group(1)) * 1024 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
