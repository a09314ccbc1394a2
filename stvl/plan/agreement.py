"""Whether a step computes what it should before it is timed: its towers against the f32 reference, values and gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from stvl.core.sharding import activation_sharding
from stvl.dist.mesh import RULES
from stvl.models.dual import DualEncoder, DualEncoderConfig
from stvl.ops.attention.api import choose
from stvl.ops.attention.backends import Case
from stvl.ops.attention.record import recorded
from stvl.plan.resident import CompiledStep, random_batch

#: Largest differences that are timed, of features (over the largest feature) and of the gradient (length of the
#: difference over length of the gradient). A missing rotation, scale or tile leaves more. Found in bf16 on a CPU: 1.5e-2
#: and 1.7e-2 (b16-4f), 1.4e-2 and 2.0e-2 (l14-4f); in f32 1e-6 (tiny-2f).
FEATURES = {"float32": 2e-3, "bfloat16": 3e-2}
GRADIENT = {"float32": 1e-2, "bfloat16": 1e-1}


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far the towers of a step are from the f32 reference on a few clips.

    Attributes:
        clips: how many.
        features: largest difference of a feature over the largest feature, of both towers.
        gradient: ``|g - r| / |r|`` over all parameters, of one random linear function of the features.
        backends: what the attentions of the comparison took, as the rules choose for so few clips.
        reason: why the step is not timed, empty where it is.
    """

    clips: int
    features: float
    gradient: float
    backends: tuple[str, ...]
    reason: str


def agreement(step: CompiledStep, params: Any, clips: int = 2) -> Agreement:
    """Compare `clips` random clips in the step's compute dtype and backends with reference attention in f32."""
    experiment, mesh = step.starter.experiment, step.starter.mesh
    dtype = experiment.compute_dtype
    # On the step's first device alone: two clips cannot be split.
    first = mesh.devices.flat[0]
    batch = {name: jax.device_put(rows[:clips], first) for name, rows in random_batch(step, 1).items()}
    keys = jax.random.split(jax.random.key(2))
    weights = [jax.random.normal(key, (clips, experiment.model.embedding)) for key in keys]

    def both(model: DualEncoder) -> tuple[Any, Any]:
        # Clips and weights are arguments: as constants they would be folded, which takes longer than the rest.
        def objective(params: Any, batch: Any, weights: Any) -> tuple[Any, Any]:
            found: Any = model.apply({"params": params}, batch["video"], batch["text"], train=True)
            pair = (found.video, found.text)
            return sum((x * w).sum() for x, w in zip(pair, weights, strict=True)), pair

        with activation_sharding(mesh, RULES):
            gradient, pair = jax.jit(jax.grad(objective, has_aux=True))(params, batch, weights)
        return pair, gradient

    with recorded() as cases:
        ours = both(DualEncoder(experiment.model, dtype))
    # What the reference keeps for the backward pass, all scores in f32, would not fit for every layer at once.
    with jax.default_matmul_precision("highest"):
        theirs = both(DualEncoder(_forgetful(experiment.model), jnp.dtype("float32"), "reference"))
    features, gradient = (float(x) for x in jax.jit(_gaps)(ours, theirs))
    return Agreement(clips, features, gradient, backends(cases), _reason(features, gradient, dtype))


def backends(cases: Any) -> tuple[str, ...]:
    """The backend of every kind of attention in `cases`, with its shape, each kind once."""
    return tuple(dict.fromkeys(f"{_words(case)}: {choose(case)[0]}" for case in cases))


def _words(case: Case) -> str:
    queries, heads = case.q.shape[1:3]
    return f"{queries} x {case.k.shape[1]} tokens, {heads} heads, {type(case.mask).__name__.lower()}"


def _forgetful(model: DualEncoderConfig) -> DualEncoderConfig:
    towers = {name: dataclasses.replace(getattr(model, name), remat="full") for name in ("video", "text")}
    return dataclasses.replace(model, **towers)


def _gaps(ours: Any, theirs: Any) -> tuple[jax.Array, jax.Array]:
    """The two figures of `Agreement`."""
    (pair, gradient), (pair_r, gradient_r) = ours, theirs
    features = jnp.max(
        jnp.stack([jnp.abs(x - r).max() / jnp.abs(r).max() for x, r in zip(pair, pair_r, strict=True)])
    )
    far = sum(jnp.square(x).sum() for x in jax.tree.leaves(jax.tree.map(jnp.subtract, gradient, gradient_r)))
    length = sum(jnp.square(r).sum() for r in jax.tree.leaves(gradient_r))
    return features, jnp.sqrt(jnp.asarray(far) / jnp.asarray(length))


def _reason(features: float, gradient: float, dtype: jnp.dtype) -> str:
    name = str(dtype)
    for what, found, limit in (
        ("features", features, FEATURES[name]),
        ("gradient", gradient, GRADIENT[name]),
    ):
        # A NaN is not at most anything.
        if not found <= limit:
            return f"wrong: {what} differ by {found:.2g} from the f32 reference, at most {limit:.2g} is timed"
    return ""
