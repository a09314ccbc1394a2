"""Runs a few real steps in a process of its own and compares the memory that they took with what the compiler foretold.

    python -m stvl.plan.resident CONFIG [name=value ...]

On a CPU the measured figure is how far the process's resident memory grew above its size just before the first array was
made, the program already compiled; on a GPU or TPU it is the allocator's own peak.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stvl.dist.mesh import batch_sharding, make_mesh
from stvl.plan.ahead import decided
from stvl.train.experiment import Experiment, load_experiment
from stvl.train.state import Starter, abstract_batch
from stvl.train.step import make_step


def main(argv: Sequence[str]) -> int:
    """Print predicted and measured bytes as JSON."""
    print(json.dumps(measured(load_experiment(argv[0], argv[1:]))))
    return 0


def measured(experiment: Experiment, steps: int = 2) -> dict[str, Any]:
    """Bytes of one device: ``predicted`` by the compiler and ``measured`` over `steps` real steps on random clips."""
    devices = jax.local_devices()
    platform = devices[0].platform
    experiment = decided(experiment, platform)
    mesh = make_mesh(experiment.mesh, devices)
    starter = Starter(experiment, mesh)
    sharding = batch_sharding(mesh)
    rows = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for name, leaf in abstract_batch(experiment, experiment.loader.batch).items()
    }
    compiled = make_step(starter).lower(starter.target(), rows).compile()
    found: Any = compiled.memory_analysis()
    arrays = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    predicted = arrays + found.temp_size_in_bytes
    before = _reset()
    state = _zeros(starter.target())
    batch = {name: _random(name, leaf, starter) for name, leaf in rows.items()}
    for _ in range(steps):
        state, metrics = compiled(state, batch)
    loss = float(metrics["loss"])
    stats = devices[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use") if platform != "cpu" else None
    # The fake devices of a CPU share one process.
    share = len(devices) if platform == "cpu" else 1
    taken = (_status("VmHWM") - before) // share if peak is None else peak
    return {
        "platform": platform,
        "device": devices[0].device_kind,
        "batch": experiment.loader.batch,
        "temp": found.temp_size_in_bytes,
        "predicted": predicted,
        "measured": taken,
        "ratio": predicted / taken,
        "loss": loss,
    }


def _zeros(target: Any) -> Any:
    """A state of zeros; every byte is written, so that it is really there."""
    return jax.tree.map(
        lambda leaf: jax.device_put(np.full(leaf.shape, 0, leaf.dtype), leaf.sharding), target
    )


def _random(name: str, leaf: Any, starter: Starter) -> jax.Array:
    rng = np.random.default_rng(0)
    top = 256 if name == "video" else starter.experiment.model.text.vocabulary if name == "text" else 4
    return jax.device_put(rng.integers(0, top, leaf.shape).astype(leaf.dtype), leaf.sharding)


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
