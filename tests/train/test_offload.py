"""The optimizer's state in the host's memory: the same numbers, kept elsewhere."""

from __future__ import annotations

from typing import Any

import jax
import pytest

from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.train.checkpoints import Checkpoints
from stvl.train.state import Starter
from stvl.train.step import make_step, put_batch
from tests.fixtures import random_batch, same, tiny_experiment

SIZES = MeshConfig(data=1, fsdp=2)


def kinds(tree: Any) -> set[tuple[str | None, bool]]:
    """(memory, whether an array has axes)."""
    return {(leaf.sharding.memory_kind, bool(leaf.ndim)) for leaf in jax.tree.leaves(tree)}


@pytest.mark.slow
def test_moments_lie_on_the_host_and_nothing_else_changes(tmp_path):
    ends = {}
    for where in ("none", "optimizer"):
        experiment = tiny_experiment("no", tmp_path, offload=where, mesh=SIZES)
        starter = Starter(experiment, make_mesh(SIZES, jax.devices()[:2]))
        state, step = starter.start(), make_step(starter)
        for number in range(3):
            state, _ = step(state, put_batch(random_batch(number), starter.mesh))
        ends[where] = jax.device_get(state)
        if where == "optimizer":
            assert kinds(state.opt_state) == {("pinned_host", True), ("device", False)}
            assert {kind for kind, _ in kinds((state.params, state.ema))} == {"device"}
            checkpoints = Checkpoints(tmp_path, experiment)
            checkpoints.save(state, {"position": 3})
            checkpoints.wait()
            found = checkpoints.restore(starter.target()).state
            assert kinds(found.opt_state) == kinds(state.opt_state)
            same(found, ends[where])
    same(ends["none"], ends["optimizer"])
