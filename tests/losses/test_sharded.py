"""The loss over the global batch: the same value and gradients on 1, 2, 4 and 8 devices, in tiles of any size."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from stvl.core.sharding import activation_sharding
from stvl.dist.mesh import RULES, MeshConfig, batch_sharding, make_mesh
from tests.losses.worked import CASES, batch, on_device

SIZE = 24
#: Largest difference of a loss and of its gradients from one dense matrix, relative to the largest value.
TOLERANCE = 1e-6

Found = dict[str, tuple[Any, tuple[Any, Any]]]


def every_loss(impl: str, chunk: int | None, video: Any, text: Any, codes: Any) -> Found:
    """All losses and their gradients in one program."""

    def both(name: str) -> Any:
        loss = dataclasses.replace(CASES[name].loss, impl=impl, chunk=chunk)
        return jax.value_and_grad(lambda v, t: loss(v, t, labels=codes)[0], argnums=(0, 1))(video, text)

    return {name: both(name) for name in CASES}


def run(impl: str, devices: int | None, chunk: int | None = None) -> Found:
    """On a mesh of so many devices over both axes of the batch, rows split from the start; None: no mesh."""
    video, text, codes = batch(SIZE, seed=6)
    inputs: Any = (jnp.asarray(video, jnp.float32), jnp.asarray(text, jnp.float32), on_device(codes))
    step, force = functools.partial(every_loss, impl, chunk), contextlib.nullcontext()
    if devices is None:
        return jax.device_get(jax.jit(step)(*inputs))
    sizes = MeshConfig(data=devices // 2, fsdp=2) if devices % 4 == 0 else MeshConfig(data=devices)
    mesh = make_mesh(sizes, jax.devices()[:devices])
    split, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    inputs = jax.device_put(inputs, split)
    out = {name: (whole, (split, split)) for name in CASES}
    force = activation_sharding(mesh, RULES)
    with force:
        return jax.device_get(jax.jit(step, out_shardings=out)(*inputs))


@functools.cache
def dense() -> Found:
    return run("dense", None)


def agree(found: Found) -> None:
    for name, (loss, slopes) in dense().items():
        assert found[name][0] == pytest.approx(loss, rel=TOLERANCE, abs=TOLERANCE), name
        for mine, meant in zip(found[name][1], slopes, strict=True):
            assert np.abs(mine - meant).max() <= TOLERANCE * max(1.0, np.abs(meant).max()), name
            assert np.abs(meant).max() > 1e-3, name


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_ring(devices):
    agree(run("ring", devices))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_plain_sharding(devices):
    agree(run("dense", devices))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 5])
def test_chunks(chunk):
    agree(run("chunked", None, chunk))


@pytest.mark.slow
def test_ring_of_chunks():
    agree(run("ring", 4, 5))
