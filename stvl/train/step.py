"""One update: a pure function of state and batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from stvl.core.errors import ConfigError
from stvl.core.sharding import activation_sharding, mesh_in_force
from stvl.dist.mesh import RULES, batch_sharding, replicated
from stvl.losses.gradcache import Encode, cached_value_and_grad
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
    """``params - update(gradient of loss(model(video), model(text)))`` and the metrics of the batch.

    Where the loss or the gradient's norm is not finite, only ``step`` changes: the batch is passed over.
    """
    key = jax.random.fold_in(jax.random.key(experiment.seed), state.step)

    inputs = {name: batch[name] for name in ("video", "text")}
    labels = {name: batch[name] for name in LABELS if name in batch}

    def encode(params: dict[str, Any], part: dict[str, Array], key: Array) -> Features:
        rngs = {"drop_path": key}
        found: Any = model.apply({"params": params}, part["video"], part["text"], train=True, rngs=rngs)
        return found

    towers: Encode = encode
    if experiment.mesh.gather == "step":
        _refuse_drop_path(experiment)
        towers = gathered_once(encode, model.dtype)

    def criterion(found: Features) -> tuple[Array, Metrics]:
        return experiment.loss(found.video, found.text, found.temperature, bias=found.bias, labels=labels)

    def objective(params: dict[str, Any]) -> tuple[Array, Metrics]:
        return criterion(towers(params, inputs, key))

    if experiment.grad_cache > 1:
        cached = cached_value_and_grad(towers, criterion, experiment.grad_cache)
        (loss, metrics), gradient = cached(state.params, inputs, key)
    else:
        (loss, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    norm = global_norm(gradient)
    after = _updated(state, gradient, optimizer, experiment.ema)
    # One bad batch must not spoil the state, and the host hears of it when the next step is under way already.
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
    metrics = {**metrics, "loss": loss, "grad_norm": norm}
    return dataclasses.replace(after, step=state.step + 1), metrics


def _updated(
    state: TrainState, gradient: Any, optimizer: optax.GradientTransformation, decay: float | None
) -> TrainState:
    """The state after a gradient, its step not yet counted."""
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None and decay is not None:
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
    return TrainState(step=state.step, params=params, opt_state=opt_state, ema=ema)


def gathered_once(encode: Encode, dtype: jnp.dtype) -> Encode:
    """`encode` with all parameters put together before it, and all gradients summed after it, on the mesh in force.

    Each device runs the towers on its rows by itself (`jax.shard_map`), so that neither the loop over layers nor its
    backward pass exchanges anything. Kernels of the blocks, which compute in `dtype`, travel in it.
    Source: ZeRO-2 (arXiv 1910.02054, Section 5) with parameters that are also sliced between steps.
    """
    found = mesh_in_force()
    if found is None or found[0].size == 1:
        return encode
    mesh, rules = found
    rows = PartitionSpec(rules["batch"])

    def local(params: dict[str, Any], part: dict[str, Array], key: Array) -> Features:
        # The mesh still says which platform the program is for; nothing is left to split.
        with activation_sharding(mesh, {}):
            return encode(params, part, key)

    def narrow(path: tuple[Any, ...], leaf: Array) -> Array:
        names = [getattr(entry, "key", None) for entry in path]
        return leaf.astype(dtype) if "layers" in names and names[-1] == "kernel" else leaf

    def run(params: dict[str, Any], part: dict[str, Array], key: Array) -> Features:
        params = jax.tree_util.tree_map_with_path(narrow, params)
        # Temperature and bias, where the model has them, are the same everywhere.
        whole = PartitionSpec()
        out: Any = Features._make((rows, rows, whole, whole))
        # Every sum over devices is the one of the gradients, so nothing need be tracked.
        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=(whole, rows, whole), out_specs=out, check_vma=False
        )
        return mapped(params, part, key)

    return run


def _refuse_drop_path(experiment: Experiment) -> None:
    rate = getattr(experiment.model.video, "drop_path", 0.0)
    if rate:
        # Each device would draw for its rows by itself, and the numbers would depend on the mesh.
        raise ConfigError(
            f"mesh.gather = 'step' takes no drop path, found model.video.drop_path = {rate}: set gather=layer"
        )


def global_norm(tree: Any) -> Float[Array, ""]:
    """``sqrt(sum of squares of all leaves)``, in f32."""
    return jnp.sqrt(sum(jnp.square(leaf.astype(jnp.float32)).sum() for leaf in jax.tree.leaves(tree)))


def make_step(starter: Starter) -> Step:
    """Compile `train_step` for the starter's mesh; the old state's memory is reused."""
    mesh: Mesh = starter.mesh

    def step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, Metrics]:
        if starter.experiment.offload == "optimizer":
            moved = jax.device_put(state.opt_state, starter.opt_on_device)
            state = dataclasses.replace(state, opt_state=moved)
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
