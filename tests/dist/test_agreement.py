"""One device against eight: the same numbers on every mesh, and parameters that are really split."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.train.optimizers import AdamW, Schedule
from stvl.train.state import Starter, TrainState
from stvl.train.step import make_step, put_batch
from tests.fixtures import random_batch, same, shrunk_model, tiny_experiment

STEPS = 20
ONE = MeshConfig(data=1)

ATTENTION = ("video", "stack", "layers", "attention", "query", "kernel")
GATE = ("video", "stack", "layers", "mlp", "gate", "kernel")
TOKENS = ("text", "tokens")

#: Mesh -> shape of one device's piece of some parameters, whole: (2, 48, 2, 24), (2, 48, 128) and (49408, 16).
MESHES = {
    "data 4 x fsdp 2": (
        MeshConfig(data=4, fsdp=2),
        {ATTENTION: (2, 24, 2, 24), GATE: (2, 24, 128), TOKENS: (49408, 8)},
    ),
    "data 4 x tensor 2": (
        MeshConfig(data=4, tensor=2),
        {ATTENTION: (2, 48, 1, 24), GATE: (2, 48, 64), TOKENS: (24704, 16)},
    ),
    "fsdp 2 x tensor 2 x context 2": (
        MeshConfig(data=1, fsdp=2, context=2, tensor=2),
        {ATTENTION: (2, 24, 1, 24), GATE: (2, 24, 64), TOKENS: (24704, 8)},
    ),
}


def experiment() -> Any:
    """Width 48 gives heads, MLP and width that every mesh divides; drop path shows that its keys know no mesh."""
    model = shrunk_model(width=48, drop_path=0.2, temporal_positions="both")
    schedule = Schedule(peak=1e-3, warmup=5)
    return tiny_experiment("no", model=model, steps=STEPS, ema=None, optimizer=AdamW(schedule=schedule))


@functools.cache
def starter(sizes: MeshConfig) -> Starter:
    devices = jax.devices()[:1] if sizes == ONE else None
    return Starter(dataclasses.replace(experiment(), mesh=sizes), make_mesh(sizes, devices))


@functools.cache
def first(sizes: MeshConfig) -> TrainState:
    return jax.device_get(starter(sizes).start())


def trained(sizes: MeshConfig) -> tuple[tuple[float, ...], TrainState]:
    """Losses of 20 steps on random batches, and the last state."""
    made = starter(sizes)
    # device_get gave numpy arrays, so the step may reuse the memory of what is put here.
    state = jax.device_put(first(sizes), made.shardings)
    step, losses = make_step(made), []
    for number in range(STEPS):
        state, metrics = step(state, put_batch(random_batch(number), made.mesh))
        losses.append(float(metrics["loss"]))
    return tuple(losses), state


@functools.cache
def expected() -> tuple[float, ...]:
    return trained(ONE)[0]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_agree_with_one(mesh):
    sizes, pieces = MESHES[mesh]
    same(first(sizes), first(ONE))
    losses, state = trained(sizes)
    np.testing.assert_allclose(losses, expected(), rtol=1e-5)
    # The run does something: batches differ and the parameters move.
    assert np.std(losses) > 1e-2
    for path, shape in pieces.items():
        leaf = functools.reduce(lambda tree, name: tree[name], path, state.params)
        assert {shard.data.shape for shard in leaf.addressable_shards} == {shape}
    params = [leaf.sharding for leaf in jax.tree.leaves(state.params)]
    assert [leaf.sharding for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim] == params * 2
