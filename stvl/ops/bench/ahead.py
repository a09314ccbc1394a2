"""Compiles an op for a TPU that is not here, in a process of its own, and reads the compiler's schedule.

A process of its own because libtpu reads its flags once. Needs the libtpu wheel (the ``tpu`` extra), no TPU.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stvl.core.errors import ConfigError, NotSupported
from stvl.ops.bench.adapter import Adapter, Blocks, adapter, chosen
from stvl.ops.bench.machine import versions
from stvl.ops.bench.run import DTYPES, Plan
from stvl.ops.bench.schedule import KernelSchedule, schedule

#: Chip -> the smallest topology that libtpu describes; one chip of it is used.
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}

#: Exit code of the child for a case that the backend declines.
DECLINED = 3


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one case.

    Attributes:
        shape, impl, blocks, direction: see `stvl.ops.bench.run.Row`.
        chip: ``v5e``, ``v5p`` or ``v6e``.
        reason: why there is no schedule; empty where there is one.
        kernels: schedules of the Pallas kernels, on one core.
        others: executed bundles of everything that XLA put around them: copies, transposes, rotations not fused.
        temp: bytes of HBM for temporaries.
    """

    shape: str
    impl: str
    blocks: str
    direction: str
    chip: str
    batch: int | None = None
    reason: str = ""
    kernels: tuple[KernelSchedule, ...] = ()
    others: int = 0
    temp: int = 0

    @property
    def bundles(self) -> int:
        """Executed bundles of the kernels."""
        return sum(kernel.bundles for kernel in self.kernels)


def bench_ahead(
    op: Adapter, plan: Plan, chip: str, progress: Callable[[Compiled], None] = lambda done: None
) -> list[Compiled]:
    """Compile every case of a plan for one chip and read its schedule.

    Every block size of the plan is compiled; `best` picks among them.

    Raises:
        ConfigError: an unknown name (with the nearest), or libtpu is not installed.
    """
    chosen("chip", (chip,), TOPOLOGIES)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("--aot needs the TPU compiler: pip install 'stvl[tpu]' (no TPU is needed)")
    done = []
    for name, shape, impls in plan.cases(op, "tpu"):
        for impl in impls:
            for blocks in plan.blocks or op.tries(impl):
                start = Compiled(name, impl, str(blocks), plan.direction, chip, getattr(shape, "b", None))
                done.append(_compile(start, op, plan, blocks))
                progress(done[-1])
    return done


def best(done: list[Compiled]) -> list[Compiled]:
    """One for each shape and backend: every kernel at the block sizes at which it has the fewest bundles.

    Forward and backward kernels take their blocks separately, so their best need not stem from one compilation.
    """
    groups: dict[tuple[str, str], list[Compiled]] = {}
    for one in done:
        groups.setdefault((one.shape, one.impl), []).append(one)
    kept = []
    for group in groups.values():
        ready = [one for one in group if not one.reason]
        names = {tuple(sorted(kernel.name for kernel in one.kernels)) for one in ready}
        if len(ready) < 2 or len(names) > 1:
            kept += ready[:1] if len(ready) == 1 else sorted(ready, key=lambda one: one.bundles)[:1] or group
            continue
        kernels = []
        for kernel in ready[0].kernels:
            tries = [(other.bundles, one.blocks, other) for one in ready for other in one.kernels]
            _, blocks, least = min(
                (item for item in tries if item[2].name == kernel.name), key=lambda x: x[0]
            )
            kernels.append(dataclasses.replace(least, name=f"{kernel.name} {blocks}"))
        least_others = min(one.others for one in ready)
        blocks = f"(best of {len(ready)})"
        kept.append(dataclasses.replace(ready[0], blocks=blocks, kernels=tuple(kernels), others=least_others))
    return kept


def _compile(start: Compiled, op: Adapter, plan: Plan, blocks: Blocks) -> Compiled:
    task = {"op": op.name, "shape": start.shape, "impl": start.impl, "blocks": blocks, "batch": plan.batch}
    task |= {"dtype": plan.dtype, "direction": plan.direction, "chip": start.chip}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "stvl.ops.bench.ahead", json.dumps(task)]
        done = subprocess.run(
            command, env=environment(Path(folder)), capture_output=True, text=True, check=False
        )
        if done.returncode:
            told = (done.stdout if done.returncode == DECLINED else done.stderr).strip().splitlines() or [""]
            word = "declines" if done.returncode == DECLINED else "does not compile"
            return dataclasses.replace(start, reason=f"{word}: {told[-1][:300]}")
        stats = json.loads(done.stdout.strip().splitlines()[-1])
        found = schedule(folder, trips=stats["trips"])
    kernels = tuple(one for one in found if one.pallas)
    others = sum(one.bundles for one in found if not one.pallas)
    return dataclasses.replace(start, kernels=kernels, others=others, temp=stats["temp"])


def environment(folder: Path) -> dict[str, str]:
    """Variables under which libtpu compiles without a TPU and writes its schedule into `folder`."""
    paths = [str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        # No device is opened, so compilers may run side by side.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true",
    }


def main() -> int:
    """Compile the case given as JSON, and print what the compiler says of its memory."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from stvl.core.sharding import activation_sharding
    from stvl.ops.bench.check import inputs_of, program

    task = json.loads(sys.argv[1])
    op = adapter(task["op"])
    shape, dtype = op.shapes()[task["shape"]], jnp.dtype(DTYPES[task["dtype"]])
    shape = shape if task["batch"] is None else op.resized(shape, task["batch"])
    blocks, backward = Blocks(*(pair and tuple(pair) for pair in task["blocks"])), task["direction"] == "both"
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[task["chip"]]).devices
    mesh = Mesh(np.array(devices[:1]), ("data",))
    one = NamedSharding(mesh, PartitionSpec())
    with activation_sharding(mesh, {}):
        reason = op.declines(shape, task["impl"], dtype, blocks)
        try:
            if reason is not None:
                raise NotSupported(reason)
            inputs = jax.eval_shape(inputs_of(op, shape, dtype, backward), jnp.uint32(0))
            inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), inputs)
            call = program(op.call(shape, task["impl"], blocks), op, backward)
            compiled = jax.jit(call).lower(*inputs).compile()
        except NotSupported as problem:
            print(problem)
            return DECLINED
    memory: Any = compiled.memory_analysis()
    print(json.dumps({"temp": memory.temp_size_in_bytes, "trips": _trips()}))
    return 0


def _trips() -> dict[str, list[int]]:
    """Trips that kernels declare for loops whose end depends on memory: ``schedule_trips`` of any loaded module of an op."""
    found: dict[str, list[int]] = {}
    for name, module in list(sys.modules.items()):
        if re.match(r"stvl\.ops\.\w+\.", name):
            found |= {kernel: list(trips) for kernel, trips in getattr(module, "schedule_trips", {}).items()}
    return found


def report(done: list[Compiled], op: str, dtype: str) -> dict[str, Any]:
    """The schedules as JSON types, with command and versions."""
    rows = [dataclasses.asdict(one) for one in done]
    command = " ".join(["stvl", *sys.argv[1:]])
    return {"op": op, "dtype": dtype, "command": command, "versions": versions(), "compiled": rows}


if __name__ == "__main__":
    sys.exit(main())
