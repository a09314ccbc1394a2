"""One update: what it depends on, and what it leaves in the state."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.train.state import Starter, TrainState
from stvl.train.step import make_step, put_batch
from tests.fixtures import leaves, random_batch, same, shrunk_model, tiny_experiment

BATCH = random_batch(0)


def experiment(**changes: Any) -> Any:
    model = shrunk_model(drop_path=0.5, depth=3)
    return tiny_experiment("no", model=model, **changes)


@functools.cache
def parts() -> tuple[Starter, Any, TrainState]:
    """The starter, the compiled step, and the first state on the host (the step eats the one that it is given)."""
    starter = Starter(experiment(), make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    return starter, make_step(starter), jax.device_get(starter.start())


def step(state: TrainState, batch: dict[str, np.ndarray] = BATCH) -> tuple[TrainState, dict[str, float]]:
    starter, run, _ = parts()
    state, metrics = run(jax.device_put(state, starter.shardings), put_batch(batch, starter.mesh))
    return jax.device_get(state), {name: float(value) for name, value in metrics.items()}


def first() -> TrainState:
    return parts()[2]


@pytest.mark.slow
def test_the_start_depends_on_the_seed_and_on_nothing_else():
    starter, _, state = parts()
    same(state.params, state.ema)
    same(state, starter.start())
    other = leaves(Starter(experiment(seed=1), starter.mesh).start().params)
    alike = [name for name, leaf in leaves(state.params).items() if np.array_equal(leaf, other[name])]
    assert not [name for name in alike if "kernel" in name or "tokens" in name]


def test_a_step_is_a_pure_function():
    one, metrics = step(first())
    two, again = step(first())
    same(one, two)
    assert metrics == again
    assert set(metrics) == {"loss", "accuracy", "grad_norm"}
    assert one.step == 1


def test_every_parameter_learns():
    state, _ = step(step(first())[0])
    before, after = leaves(first().params), leaves(state.params)
    # The frozen ones would be a bug: each has a gradient, if only in some of its rows.
    assert [name for name in before if np.array_equal(before[name], after[name])] == []


def test_drop_path_is_keyed_by_seed_and_step():
    # Parameters and batch are equal; only the step's number, and so the key, differs.
    losses = [step(dataclasses.replace(first(), step=np.int32(number)))[1]["loss"] for number in (0, 0, 1, 2)]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_average_follows_the_parameters():
    state, _ = step(step(first())[0])
    again, _ = step(state)
    for old, new, found in zip(*map(jax.tree.leaves, (state.ema, again.params, again.ema)), strict=True):
        np.testing.assert_allclose(found, 0.9 * old + 0.1 * new, rtol=1e-5, atol=1e-7)
    assert again.best_params is again.ema


def test_without_an_average_the_parameters_are_used():
    state = TrainState(step=0, params={"w": 1}, opt_state=())
    assert state.best_params is state.params


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_parameters_moments_and_loss_are_f32_in_any_compute_dtype(dtype):
    starter = Starter(experiment(dtype=dtype), make_mesh(MeshConfig()))
    assert starter.model.dtype == jnp.dtype(dtype)
    inputs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in BATCH.items()}
    state, metrics = jax.eval_shape(make_step(starter), starter.target(), inputs)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((state, metrics)) if leaf.ndim}
    assert dtypes == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == jnp.float32


def test_target_has_the_shapes_and_shardings_of_the_start():
    starter, _, state = parts()
    target = starter.target()
    assert jax.tree.structure(target) == jax.tree.structure(state)
    for found, leaf, sharding in zip(*map(jax.tree.leaves, (target, state, starter.shardings)), strict=True):
        assert (found.shape, found.dtype, found.sharding) == (leaf.shape, leaf.dtype, sharding)


def unchanged(after: TrainState, before: TrainState) -> None:
    """Everything but the number of the step is as it was."""
    assert after.step == before.step + 1
    same(dataclasses.replace(after, step=before.step), before)


def test_a_step_whose_loss_is_not_finite_changes_nothing_but_its_number():
    state = step(first())[0]
    scale = state.params["video"]["norm"]["scale"]
    state.params["video"]["norm"]["scale"] = np.full_like(scale, np.nan)
    after, metrics = step(state)
    assert np.isnan(metrics["loss"])
    unchanged(after, state)


def test_a_step_whose_gradient_is_not_finite_changes_nothing_but_its_number(monkeypatch):
    # Where it comes from does not matter; a loss can be finite where its slope is not.
    monkeypatch.setattr("stvl.train.step.global_norm", lambda tree: jnp.float32(np.inf))
    starter, _, state = parts()
    after, metrics = make_step(starter)(
        jax.device_put(state, starter.shardings), put_batch(BATCH, starter.mesh)
    )
    assert np.isfinite(metrics["loss"]) and np.isinf(metrics["grad_norm"])
    unchanged(jax.device_get(after), state)
