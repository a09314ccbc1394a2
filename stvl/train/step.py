"""One update: a pure function of state and batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from stvl.core.sharding import activation_sharding
from stvl.dist.mesh import RULES, batch_sharding, replicated
from stvl.losses.gradcache import cached_value_and_grad
from stvl.losses.relevancy import LABELS
from stvl.models.dual import DualEncoder, Features
from stvl.train.experiment import Experiment
from stvl.train.state import Starter, TrainState

Metrics = dict[str, Float[Array, ""]]
#: Arrays of a batch that go to the devices, where the batch has them.
ARRAYS = ("video", "text", *LABELS)
Step = Callable[[TrainState, dict[str, Any]], tuple[TrainState, Metrics]]


def train_step(
    state: TrainState,
    batch: dict[str, Any],
    *,
    model: DualEncoder,
    optimizer: optax.GradientTransformation,
    experiment: Experiment,
) -> tuple[TrainState, Metrics]:
    """``params - update(gradient of loss(model(video), model(text)))`` and the metrics of the batch."""
    key = jax.random.fold_in(jax.random.key(experiment.seed), state.step)

    inputs = {name: batch[name] for name in ("video", "text")}
    labels = {name: batch[name] for name in LABELS if name in batch}

    def encode(params: dict[str, Any], part: dict[str, Array], key: Array) -> Features:
        rngs = {"drop_path": key}
        found: Any = model.apply({"params": params}, part["video"], part["text"], train=True, rngs=rngs)
        return found

    def criterion(found: Features) -> tuple[Array, Metrics]:
        return experiment.loss(found.video, found.text, found.temperature, bias=found.bias, labels=labels)

    def objective(params: dict[str, Any]) -> tuple[Array, Metrics]:
        return criterion(encode(params, inputs, key))

    if experiment.grad_cache > 1:
        cached = cached_value_and_grad(encode, criterion, experiment.grad_cache)
        (loss, metrics), gradient = cached(state.params, inputs, key)
    else:
        (loss, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    ema, decay = state.ema, experiment.ema
    if ema is not None and decay is not None:
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
    metrics = {**metrics, "loss": loss, "grad_norm": global_norm(gradient)}
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state, ema=ema), metrics


def global_norm(tree: Any) -> Float[Array, ""]:
    """``sqrt(sum of squares of all leaves)``, in f32."""
    return jnp.sqrt(sum(jnp.square(leaf.astype(jnp.float32)).sum() for leaf in jax.tree.leaves(tree)))


def make_step(starter: Starter) -> Step:
    """Compile `train_step` for the starter's mesh; the old state's memory is reused."""
    mesh: Mesh = starter.mesh

    def step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, Metrics]:
        with activation_sharding(mesh, RULES):
            return train_step(
                state, batch, model=starter.model, optimizer=starter.optimizer, experiment=starter.experiment
            )

    return jax.jit(
        step,
        in_shardings=(starter.shardings, batch_sharding(mesh)),
        out_shardings=(starter.shardings, replicated(mesh)),
        donate_argnums=0,
    )


def put_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Send the arrays that the step reads to the mesh; every host brings its own rows."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, batch[name])
        for name in ARRAYS
        if name in batch
    }
