"""Pre-norm blocks and stacks of them, scanned over layers with a remat policy."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stvl.core.axes import AXES
from stvl.core.errors import ConfigError, nearest
from stvl.core.sharding import constrain
from stvl.nn.dense import LayerNorm
from stvl.ops.rotary import Rotary

#: Remat policies by name: what the backward pass may keep instead of computing it again.
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    # What the attention kernels give is kept, and the kernels do not run again; without kernels the same as "full".
    "attention": lambda prim, *_, **__: getattr(prim, "name", "") == "pallas_call",
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_without_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

#: Policies that keep the results of all products of activations with weights.
SAVES_PRODUCTS = frozenset({"none", "dots", "dots_without_batch"})


def drop_path(
    owner: nn.Module, branch: Float[Array, "b n d"], rate: Float[Array, ""], train: bool
) -> Float[Array, "b n d"]:
    """Stochastic depth (arXiv 1603.09382): `branch` is dropped for a sample with probability `rate`, else scaled up.

    Does nothing outside of training, nor where the caller of `owner` passed no ``drop_path`` stream of random numbers.
    """
    if not train or not owner.has_rng("drop_path"):
        return branch
    keep = jax.random.bernoulli(owner.make_rng("drop_path"), 1.0 - rate, (branch.shape[0], 1, 1))
    return jnp.where(keep, branch / (1.0 - rate).astype(branch.dtype), 0)


class Block(nn.Module):
    """``x + drop(attention(norm(x)))``, then ``x + drop(mlp(norm(x)))``.

    Attributes:
        attention: makes the attention module, given a name.
        mlp: makes the feed-forward module, given a name.
        eps: epsilon of both norms.
        dtype: compute dtype.
    """

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], drop_rate: Float[Array, ""], rotary: Rotary | None, train: bool
    ) -> tuple[Float[Array, "b n d"], None]:
        x = constrain(x, "b n")
        inner = LayerNorm(self.eps, dtype=self.dtype, name="attention_norm")(x)
        x = x + drop_path(self, self.attention(name="attention")(inner, rotary), drop_rate, train)
        inner = LayerNorm(self.eps, dtype=self.dtype, name="mlp_norm")(x)
        return x + drop_path(self, self.mlp(name="mlp")(inner), drop_rate, train), None


class Stack(nn.Module):
    """`depth` blocks with their parameters stacked on a leading layer axis, so that compile time does not grow.

    Attributes:
        block: a block class with its fields, e.g. ``functools.partial(Block, attention, mlp)``; scan lifts the class.
        depth: number of blocks.
        drop_path: stochastic depth rate of the last block; it rises linearly from 0 (arXiv 1603.09382). Random
            numbers are drawn only where the caller passes a ``drop_path`` stream.
        remat: name of a policy in `REMAT`.
        unroll: how many layers one trip of the scan holds; 1 compiles fastest.
    """

    block: functools.partial[nn.Module]
    depth: int
    drop_path: float = 0.0
    remat: str = "none"
    unroll: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], rotary: Rotary | None = None, train: bool = False
    ) -> Float[Array, "b n d"]:
        if self.remat not in REMAT:
            raise ConfigError(f"unknown remat policy {self.remat!r}{nearest(self.remat, REMAT)}")
        # Kept only where the caller asks for intermediates, as `stvl.models.activations` does.
        self.sow("intermediates", "embed", x)
        rates = jnp.linspace(0.0, self.drop_path, self.depth)
        if self.remat != "none":
            # Arguments are counted from self: 4 is `train`. Under scan, XLA cannot undo remat by common subexpressions.
            lifted = nn.remat(
                self.block.func, policy=REMAT[self.remat], prevent_cse=False, static_argnums=(4,)
            )
        else:
            lifted = self.block.func
        scanned = nn.scan(
            lifted,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "drop_path": True},
            in_axes=(0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType] - a tuple is documented
            length=self.depth,
            unroll=min(self.unroll, self.depth),
            metadata_params={nn.PARTITION_NAME: AXES["i"]},
        )
        x, _ = scanned(*self.block.args, **self.block.keywords, name="layers")(x, rates, rotary, train)
        return x
