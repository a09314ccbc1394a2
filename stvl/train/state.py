"""What a run remembers between steps, and how it starts, laid out on a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from stvl.core.errors import ConfigError
from stvl.dist.mesh import replicated
from stvl.dist.params import like_params, param_shardings
from stvl.models.dual import DualEncoder
from stvl.pretrained.folder import flat
from stvl.train.experiment import Experiment
from stvl.train.init import Start, load_start

Params = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """Parameters, optimizer state and their average after `step` updates.

    `step` is an int32 scalar, `params` and `ema` are nested dicts; the same tree also holds shapes, shardings or jax's own
    marks in place of arrays and dicts, so nothing narrower than Any is true.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any = None

    @property
    def best_params(self) -> Params:
        """The parameters to evaluate with: the average where there is one."""
        return self.params if self.ema is None else self.ema


def build(experiment: Experiment) -> tuple[DualEncoder, optax.GradientTransformation]:
    """The model and the optimizer of an experiment."""
    return DualEncoder(experiment.model, experiment.compute_dtype), experiment.optimizer.make(
        experiment.steps
    )


def abstract_inputs(experiment: Experiment, batch: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of the frames and ids of a batch."""
    size, frames = experiment.model.video.image_size, experiment.loader.frames
    video = jax.ShapeDtypeStruct((batch, frames, size, size, 3), jnp.uint8)
    return video, jax.ShapeDtypeStruct((batch, experiment.tokenizer.context_length), jnp.int32)


def abstract_batch(experiment: Experiment, batch: int, nouns: int = 4) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of everything that the step reads of a batch: frames, ids, and codes with `nouns` places a clip."""
    video, ids = abstract_inputs(experiment, batch)
    verb, sets = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((batch,), (batch, nouns)))
    return {"video": video, "text": ids, "verb": verb, "nouns": sets}


class Starter:
    """Makes the initial state of an experiment and tells the shapes and shardings of every state of it.

    Raises:
        ConfigError: a batch that the mesh cannot split evenly.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh) -> None:
        _refuse_uneven(experiment, mesh.shape["data"] * mesh.shape["fsdp"])
        self.experiment, self.mesh = experiment, mesh
        self.model, self.optimizer = build(experiment)
        boxed = jax.eval_shape(self._boxed, jax.random.key(0))
        params = nn.unbox(boxed)
        self.abstract = jax.eval_shape(self._make, jax.random.key(0))
        laid_out = param_shardings(boxed, mesh)
        #: Where a step has the optimizer's state while it uses it.
        self.opt_on_device = like_params(self.abstract.opt_state, params, laid_out, mesh)
        self.shardings = TrainState(
            step=replicated(mesh),
            params=laid_out,
            opt_state=self.opt_on_device
            if experiment.offload == "none"
            else _on_host(self.abstract.opt_state, self.opt_on_device),
            ema=None if experiment.ema is None else laid_out,
        )

    def start(self) -> TrainState:
        """The state before the first step; the same values on every mesh.

        Raises:
            WeightsError, ConfigError, TrainingError: see `stvl.train.init.load_start`.
        """
        if self.experiment.init is not None:
            return self.start_from(self.pretrained().params)
        return jax.jit(self._make, out_shardings=self.shardings)(jax.random.key(self.experiment.seed))

    def pretrained(self) -> Start:
        """The parameters that ``experiment.init`` names, laid out on the mesh.

        Raises:
            ConfigError: the experiment names none; and as `stvl.train.init.load_start`.
        """
        init = self.experiment.init
        if init is None:
            raise ConfigError("this experiment starts from random parameters: it has no `init`")
        places: Params = self.shardings.params
        return load_start(init, self.experiment.model, self.abstract.params, places, self._fresh)

    def start_from(self, params: Params) -> TrainState:
        """The state before the first step with these parameters, whose memory is reused; the optimizer starts anew."""
        return jax.jit(self._around, out_shardings=self.shardings, donate_argnums=0)(params)

    def target(self) -> TrainState:
        """Shapes, dtypes and shardings, for a restore onto this mesh."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self.abstract,
            self.shardings,
        )

    def _boxed(self, key: Array) -> Params:
        video, ids = (jnp.zeros(x.shape, x.dtype) for x in abstract_inputs(self.experiment, 1))
        return dict(self.model.init(key, video, ids)["params"])

    def _fresh(self, paths: Sequence[str]) -> dict[str, Any]:
        """Some parameters, by path, with the values that `start` would give them."""
        places = flat(self.shardings.params)

        def some(key: Array) -> dict[str, Any]:
            made = flat(nn.unbox(self._boxed(key)))
            return {path: made[path] for path in paths}

        key = jax.random.key(self.experiment.seed)
        return jax.jit(some, out_shardings={path: places[path] for path in paths})(key)

    def _make(self, key: Array) -> TrainState:
        return self._around(nn.unbox(self._boxed(key)))

    def _around(self, params: Params) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer.init(params),
            ema=None if self.experiment.ema is None else jax.tree.map(jnp.copy, params),
        )


def _on_host(tree: Any, shardings: Any) -> Any:
    """The shardings with every array in the host's memory; single numbers stay, for there is nothing to gain."""

    def one(leaf: Any, sharding: NamedSharding) -> NamedSharding:
        return sharding.with_memory_kind("pinned_host") if leaf.ndim else sharding

    return jax.tree.map(one, tree, shardings)


def _refuse_uneven(experiment: Experiment, slices: int) -> None:
    batch, parts = experiment.loader.batch, experiment.grad_cache
    if batch % slices == 0 and batch // parts % slices:
        raise ConfigError(
            f"grad_cache = {parts} leaves {batch // parts} clips a part, which the mesh (data x fsdp) cannot cut into "
            f"{slices} slices: take fewer parts or a larger loader.batch"
        )
    if batch % slices:
        near = [size for size in (batch // slices * slices, (batch // slices + 1) * slices) if size]
        raise ConfigError(
            f"loader.batch is {batch}, the mesh (data x fsdp) cuts a batch into {slices} slices: "
            f"set loader.batch to {' or '.join(map(str, near))}, or another mesh"
        )
