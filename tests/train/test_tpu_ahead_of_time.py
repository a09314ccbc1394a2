"""The real train step compiles for real TPU topologies, without a TPU; needs the libtpu wheel of the `tpu` extra."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
KERNELS = ("stvl_attention_forward", "stvl_attention_backward")
import dataclasses, json, sys
import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from stvl.data.augment import EvalTransform, TrainTransform
from stvl.data.pipeline import LoaderOptions
from stvl.data.sources import ManifestSource
from stvl.dist.mesh import MeshConfig, batch_sharding, make_mesh
from stvl.models.eva02_at.presets import preset
from stvl.train.experiment import Experiment
from stvl.train.state import Starter, abstract_inputs
from stvl.train.step import make_step

name, sizes, batch, depth = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
model = preset("b16")
video = dataclasses.replace(model.video, depth=depth, remat="full")
model = dataclasses.replace(model, video=video, text=dataclasses.replace(model.text, depth=depth))
experiment = Experiment(
    name="aot", model=model, source=ManifestSource(csv="none.csv"), train_transform=TrainTransform(),
    eval_transform=EvalTransform(), loader=LoaderOptions(batch=batch), dtype="bfloat16", mesh=MeshConfig(**sizes),
    offload=sys.argv[5],
)
devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
mesh = make_mesh(experiment.mesh, devices)
starter = Starter(experiment, mesh)
rows = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)) for x in abstract_inputs(experiment, batch)]
lowered = make_step(starter).lower(starter.target(), {"video": rows[0], "text": rows[1]})
calls = [line for line in lowered.as_text().splitlines() if "tpu_custom_call" in line]
kernels = [any(name in line for line in calls) for name in KERNELS]
compiled = lowered.compile()
memory = compiled.memory_analysis()
whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(starter.abstract))
inputs = sum(x.size * x.dtype.itemsize for x in rows)
moments = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(starter.abstract.opt_state) if leaf.ndim)
places = {"moments": moments, "host": memory.host_argument_size_in_bytes}
found = places | {"arguments": memory.argument_size_in_bytes, "temp": memory.temp_size_in_bytes, "kernels": kernels}
print(json.dumps({"devices": len(devices), "whole": whole, "inputs": inputs, **found}))
"""


@pytest.mark.libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "sizes", "batch", "offload"),
    [
        ("v5e:4x4", {"data": 4, "fsdp": 4}, 256, "none"),
        ("v5e:4x4", {"data": 4, "fsdp": 4}, 256, "optimizer"),
        ("v5p:2x2x2", {"data": 2, "fsdp": 2, "tensor": 2}, 64, "none"),
        ("v6e:2x4", {"data": 4, "context": 2}, 64, "none"),
    ],
)
def test_train_step_compiles_for_tpus(topology: str, sizes: dict[str, int], batch: int, offload: str) -> None:
    pytest.importorskip("libtpu", reason="the libtpu wheel is an optional package")
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        # No device is opened, so compilers may run side by side.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    command = [sys.executable, "-c", SCRIPT, topology, json.dumps(sizes), str(batch), "2", offload]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    devices = 1
    for size in sizes.values():
        devices *= size
    assert found["devices"] == devices
    # Where tokens are split, and the scores are small, XLA splits the attention itself.
    assert found["kernels"] == ([False, False] if "context" in sizes else [True, True])
    # fsdp and tensor cut the state, data and fsdp the batch; position tables, norms and biases stay whole.
    parts, rows = sizes.get("fsdp", 1) * sizes.get("tensor", 1), sizes.get("fsdp", 1) * sizes.get("data", 1)
    if offload == "optimizer":
        assert found["host"] >= found["moments"] / parts
        found["whole"] -= found["moments"]
    else:
        assert found["host"] == 0
    assert (
        found["whole"] / parts
        <= found["arguments"]
        <= 1.1 * (found["whole"] / parts + found["inputs"] / rows)
    )
    # A v5e chip, the smallest of the three, has 16 GiB.
    assert 0 < found["temp"] + found["arguments"] < 16 * 2**30
