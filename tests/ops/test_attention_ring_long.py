"""Ring attention at length: work, memory and transfers of each device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stvl.core.sharding import activation_sharding
from stvl.ops.attention import AttentionOptions, Causal, attention
from stvl.ops.attention.chunked import ChunkedCore, _tiles
from stvl.ops.attention.core import Visible
from stvl.ops.attention.ring import ring_attention
from stvl.ops.attention.shapes import SHAPES as NAMED
from tests.contracts.attention import Shape, close, draw


def ring_mesh(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("context",))


class Counting(NamedTuple):
    """`ChunkedCore` that reports how many tiles each device visits at each call."""

    block: int
    seen: Any
    fuses_rotary: bool = False

    def forward(self, q: Any, k: Any, v: Any, rotary: Any, visible: Visible, options: Any) -> Any:
        core = ChunkedCore(self.block, self.block)
        tiles = _tiles(core, q, k, visible, options)
        spans = [tiles.span(jnp.asarray(i)) for i in range(-(-q.shape[1] // self.block))]
        visited = sum(jnp.maximum(end - start, 0) for start, end in spans)
        jax.debug.callback(self.seen.append, jnp.stack([jax.lax.axis_index("context"), visited]))
        return core.forward(q, k, v, rotary, visible, options)

    def backward(self, *args: Any) -> Any:
        raise NotImplementedError


class Seen(list):
    """A list that can be part of a static argument."""

    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.mark.parametrize("devices", [4, 8])
def test_zigzag_balances_a_causal_mask(devices):
    tokens, block = 128 * devices // 4, 4
    q, k, v, _ = draw(Shape(1, tokens, tokens, 1, 1, 4))
    visited = {}
    for zigzag in (False, True):
        seen = Seen()
        options = AttentionOptions(ring_zigzag=zigzag)
        jax.block_until_ready(
            ring_attention(
                q,
                k,
                v,
                mesh=ring_mesh(devices),
                mask=Causal(),
                local=Counting(block, seen),
                options=options,
            )
        )
        jax.effects_barrier()
        count = Counter()
        for device, tiles in np.stack(seen).tolist():
            count[device] += tiles
        assert len(seen) == 2 * devices * devices
        visited[zigzag] = [count[device] for device in range(devices)]
    side = tokens // block
    # Nothing above the diagonal is computed: both orders visit the tiles on and below it.
    assert sum(visited[True]) == sum(visited[False]) == side * (side + 1) // 2
    assert max(visited[True]) - min(visited[True]) <= 1
    # In plain order the last device does nearly twice its share, the first one nearly nothing.
    assert max(visited[False]) > 1.7 * sum(visited[False]) / devices
    assert min(visited[False]) < 0.3 * sum(visited[False]) / devices


TOKENS = 65536


def kept(devices: int) -> int:
    """Bytes that one device keeps besides arguments and results in forward and backward of the shape of record."""
    long = NAMED["ring-64k"]
    place = NamedSharding(ring_mesh(devices), PartitionSpec(None, "context"))
    x = jax.ShapeDtypeStruct((long.b, long.q, long.h, long.e), "float32", sharding=place)
    options = AttentionOptions(block_q=512, block_kv=512)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        impl = "chunked" if devices == 1 else "ring"
        return attention(q, k, v, mask=Causal(), impl=impl, options=options).sum()

    with activation_sharding(ring_mesh(devices), {}):
        made = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(x, x, x).compile()
    return made.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_of_64k_tokens_falls_with_the_ring():
    """Each doubling of the ring halves it, but for the tiles; a ring of two pays for its buffers what it saves."""
    found = {devices: kept(devices) for devices in (1, 2, 4, 8)}
    print({devices: f"{size / 2**20:.0f} MiB" for devices, size in found.items()})
    assert found[2] < 1.5 * found[1]
    assert found[4] < 0.55 * found[2]
    assert found[8] < 0.55 * found[4]
    assert found[8] < 0.4 * found[1]


@pytest.mark.slow
def test_64k_tokens_on_eight_devices():
    """A real causal run against the chunked core on one device, for some of the queries."""
    q, k, v, _ = draw(Shape(1, TOKENS, TOKENS, 1, 1, 8))
    with activation_sharding(ring_mesh(8), {}):
        out = jax.jit(lambda *qkv: attention(*qkv, mask=Causal(), impl="ring"))(q, k, v)
    chunk = TOKENS // 16
    edges = [0, chunk - 1, chunk, TOKENS - chunk - 1, TOKENS - chunk, TOKENS - 1]
    some = np.random.default_rng(0).choice(TOKENS, 200, replace=False)
    asked = np.unique(np.concatenate([some, edges])).astype(np.int32)
    seen = Visible(first=np.zeros_like(asked), last=asked)
    expected, _ = ChunkedCore().forward(q[:, asked], k, v, None, seen, AttentionOptions())
    close(out[:, asked], expected, 1e-5)


OVERLAP = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from stvl.core.sharding import activation_sharding
from stvl.ops.attention import AttentionOptions, Causal, attention

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
mesh = Mesh(np.array(devices), ("context",))
place = NamedSharding(mesh, PartitionSpec(None, "context"))
x = jax.ShapeDtypeStruct((1, 65536, 4, 64), jnp.bfloat16, sharding=place)
options = AttentionOptions(ring_local=sys.argv[1])
total = lambda *qkv: attention(*qkv, mask=Causal(), impl="ring", options=options).astype(jnp.float32).sum()
with activation_sharding(mesh, {}):
    print(jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(x, x, x).compile().as_text())
"""


@pytest.mark.libtpu
@pytest.mark.slow
@pytest.mark.parametrize("local", ["chunked", "tpu"])
def test_transfers_run_beside_the_products_on_tpus(local):
    """In the compiled program of a v5e, every transfer of a ring step starts before its loop over tiles and ends after."""
    pytest.importorskip("libtpu", reason="the libtpu wheel is an optional package")
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", OVERLAP, local], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert " collective-permute(" not in done.stdout
    assert "all-gather" not in done.stdout
    steps = []
    for body in done.stdout.split("\n\n"):
        order = re.findall(r" (collective-permute-start|collective-permute-done|while)\(", body)
        if "while" in order and "collective-permute-start" in order and not body.lstrip().startswith("ENTRY"):
            steps.append([name.rpartition("-")[2] for name in order])
    # Keys and values each way; backward their gradients as well.
    assert steps == [
        ["start"] * 2 + ["while"] + ["done"] * 2,
        ["start"] * 4 + ["while"] + ["done"] * 4,
    ]
