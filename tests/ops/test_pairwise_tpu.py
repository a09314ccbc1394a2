"""The ring compiles for real TPU topologies, without a TPU; needs the libtpu wheel of the `tpu` extra."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from stvl.core.sharding import activation_sharding
from stvl.losses.infonce import infonce
from stvl.ops.pairwise.shapes import shape

size = shape("pod-16k")
devices = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices
mesh = Mesh(np.asarray(devices).reshape(-1, 2), ("data", "fsdp"))
rules = {"batch": ("data", "fsdp")}
split, whole = (NamedSharding(mesh, PartitionSpec(*entries)) for entries in ((rules["batch"],), ()))
rows = jax.ShapeDtypeStruct((size.rows, size.width), jnp.float32, sharding=split)
scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
step = jax.jit(jax.value_and_grad(lambda *inputs: infonce(*inputs, impl=sys.argv[2])[0], argnums=(0, 1, 2)))
with activation_sharding(mesh, rules):
    compiled = step.lower(rows, rows, scale).compile()
print(json.dumps({"temp": compiled.memory_analysis().temp_size_in_bytes, "text": compiled.as_text()}))
"""


def compiled(topology: str, impl: str) -> tuple[int, str]:
    """Bytes of temporaries of a device, and the compiler's program in the order of its schedule."""
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        # Nothing is opened but the compiler, so several may run at once.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    command = [sys.executable, "-c", SCRIPT, topology, impl]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found["temp"], found["text"]


@pytest.mark.libtpu
@pytest.mark.slow
def test_columns_travel_while_their_tile_is_computed():
    pytest.importorskip("libtpu", reason="the libtpu wheel is an optional package")
    temp, text = compiled("v5e:2x4", "ring")
    # A device's features are 2,048 x 256; all of them, or a row of its share of the matrix, would be 16 MiB.
    assert temp < 8 * 2**20
    assert "all-gather" not in text
    products = re.findall(r"^.* convolution\(.*$", text, re.MULTILINE)
    assert len(products) >= 4
    assert all("operand_precision={highest,highest}" in line for line in products)
    bodies = [part for part in text.split("\n\n") if re.search(r"while\(.*", part)]
    overlapped = 0
    for body in bodies:
        started = re.findall(r"(collective-permute-start[.\d]*) = \(f32\[2048,256\]", body)
        for name in started:
            flight = body.split(f"%{name} = ", 1)[1].split(f"collective-permute-done(%{name})", 1)
            assert len(flight) == 2
            overlapped += "while(" in flight[0]
    # Forward: the columns. Backward: the columns and the gradients of those before.
    assert overlapped == 3
