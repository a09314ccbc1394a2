"""What the pairwise backends hold in memory, and the benchmark that measures it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.ops.pairwise import PairwiseOptions
from stvl.ops.pairwise.api import BACKENDS
from stvl.ops.pairwise.bench import Case, cases, resident, run
from stvl.ops.pairwise.shapes import SHAPES
from tests.contracts.pairwise import LOSSES, batch, mesh_of


def temporaries(size: int, impl: str, devices: int | None = None, loss: str = "sms") -> int:
    """Bytes that forward and gradients need on a device besides their arguments."""
    data = batch(size)

    def total(x: jax.Array, y: jax.Array) -> jax.Array:
        params = {"scale": 5.0, "bias": 0.0}
        return LOSSES[loss][0](x, y, params, data, impl=impl, options=PairwiseOptions(chunk=16))

    data.rows.update({name: jnp.asarray(a) for name, a in data.rows.items()})
    data.columns.update({name: jnp.asarray(a) for name, a in data.columns.items()})
    with mesh_of(devices):
        step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
        memory = step.lower(*data.rounded("float32")).compile().memory_analysis()
    return memory.temp_size_in_bytes


@pytest.mark.parametrize("loss", ["egonce", "sms"])
def test_memory_of_chunks_grows_with_the_batch_and_not_with_its_square(loss):
    small, large = (temporaries(size, "chunked", loss=loss) for size in (1024, 2048))
    assert large < 2.3 * small
    assert large < 2048 * 2048
    assert temporaries(1024, "dense", loss=loss) > 4 * 1024 * 1024 > 2 * small


def test_memory_of_a_device_falls_with_the_ring():
    sizes = [temporaries(2048, "ring", devices) for devices in (2, 4, 8)]
    assert sizes[0] > 1.6 * sizes[1] > 1.6 * 1.6 * sizes[2]


def test_the_ring_gathers_nothing():
    data = batch(32)

    def total(x: jax.Array, y: jax.Array) -> jax.Array:
        return LOSSES["infonce"][0](x, y, {"scale": 5.0}, data, impl="ring")

    with mesh_of(8):
        sharding = jax.sharding.NamedSharding(
            jax.sharding.Mesh(np.asarray(jax.devices()), ("data",)), jax.sharding.PartitionSpec("data")
        )
        step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)), in_shardings=sharding)
        text = step.lower(*data.rounded("float32")).compile().as_text()
    assert "collective-permute" in text
    assert "all-gather" not in text
    assert "f32[32,8]" not in text
    assert "f32[4,8]" in text


def test_bench_measures_and_checks(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", type(SHAPES["ek100"])(24, 24, 8, source="a test"))
    rows = [run(case, repeats=1) for case in cases(["tiny"])]
    assert {(row["impl"], row["loss"]) for row in rows} == {
        (impl, loss) for impl in BACKENDS for loss in ("infonce", "margin")
    }
    for row in rows:
        assert 0 <= row["error"] < 1e-5
        assert row["seconds"] > 0
        assert row["temp_bytes"] > 0


@pytest.mark.slow
def test_a_process_of_its_own_tells_its_peak():
    assert 2**26 < resident(Case("ek100", "chunked")) < 2**33
