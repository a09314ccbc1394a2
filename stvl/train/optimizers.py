"""Optimizers and learning-rate schedules as configs."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from stvl.core.config import config
from stvl.core.errors import ConfigError

#: Only leaves of these names decay: matrices. Norms, biases, position tables and the class token do not.
DECAYED = ("kernel", "tokens")


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay acts on; by name, because scanned norms and biases are matrices too."""
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", None) in DECAYED, params)


@config
class Schedule:
    """Linear warm-up from `start` to `peak`, then cosine to `end` over the rest of the run, or constant.

    Attributes:
        peak: highest learning rate.
        start: learning rate of step 0, where there is a warm-up.
        end: learning rate of the last step (cosine).
        warmup: steps of the warm-up.
        shape: what follows the warm-up.
    """

    peak: float = 3e-5
    start: float = 0.0
    end: float = 0.0
    warmup: int = 0
    shape: Literal["cosine", "constant"] = "cosine"

    def make(self, steps: int) -> optax.Schedule:
        """Learning rate as a function of the step, for a run of `steps` steps.

        Raises:
            ConfigError: a warm-up that is longer than the run.
        """
        if self.warmup >= max(steps, 1) and self.warmup > 0:
            raise ConfigError(f"a warm-up of {self.warmup} steps does not fit a run of {steps} steps")
        if self.shape == "constant":
            rest = optax.constant_schedule(self.peak)
        else:
            rest = optax.cosine_decay_schedule(self.peak, max(steps - self.warmup, 1), self.end / self.peak)
        if not self.warmup:
            return rest
        return optax.join_schedules(
            [optax.linear_schedule(self.start, self.peak, self.warmup), rest], [self.warmup]
        )


@config
class AdamW:
    """AdamW (arXiv 1711.05101) with a decay mask and a bound on the global norm of the gradient.

    Attributes:
        schedule: learning rate.
        b1, b2, eps: moments; CLIP's b2 is 0.98.
        weight_decay: for the leaves of `decay_mask`.
        clip: largest global norm of the gradient, None for no bound.
    """

    schedule: Schedule = Schedule()
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float | None = 1.0

    def make(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation of a run of `steps` steps."""
        adam = optax.adamw(
            self.schedule.make(steps),
            self.b1,
            self.b2,
            self.eps,
            weight_decay=self.weight_decay,
            mask=decay_mask,
        )
        return adam if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), adam)


@config
class LAMB(AdamW):
    """AdamW whose step is rescaled in each layer to the norm of its weights, for large batches. Fields are those of AdamW.

    With ``u = m / (sqrt(v) + eps) + weight_decay * w`` of AdamW, each weight of each layer takes the step
    ``-lr * |w| / |u| * u``; the ratio is 1 where either norm is 0. It acts on the leaves of `decay_mask`; norms, biases and
    position tables take AdamW's step. Algorithm 2 of the paper has no such exception, but a bias that starts at zero would
    hardly move after its first step.

    Source: You et al., "Large Batch Optimization for Deep Learning", arXiv 1904.00962, Algorithm 2.
    """

    eps: float = 1e-6

    def make(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation of a run of `steps` steps."""
        lamb = optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay, decay_mask),
            optax.stateless(_by_trust),
            optax.scale_by_learning_rate(self.schedule.make(steps)),
        )
        return lamb if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), lamb)


def _by_trust(updates: Any, params: Any) -> Any:
    """``|w| / |u| * u`` for the leaves of `decay_mask`, a layer at a time."""

    def one(path: tuple[Any, ...], update: Any, weight: Any, adapts: bool) -> Any:
        if not adapts:
            return update
        # `nn.scan` stacks a tower's layers in one array under this name; a layer's step must not depend on the others.
        stacked = any(getattr(key, "key", None) == "layers" for key in path)
        axes = tuple(range(int(stacked), update.ndim))
        size, step = (jnp.sqrt(jnp.square(x).sum(axes, keepdims=True)) for x in (weight, update))
        some = (size > 0) & (step > 0)
        return update * jnp.where(some, size / jnp.where(some, step, 1.0), 1.0)

    return jax.tree_util.tree_map_with_path(one, updates, params, decay_mask(params))
