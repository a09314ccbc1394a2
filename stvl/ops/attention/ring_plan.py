"""Which tokens a device of the ring holds, which of them travel where, and the zig-zag order that evens out the work."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int

from stvl.ops.attention.core import Core, Visible, limits
from stvl.ops.attention.masks import Band
from stvl.ops.attention.options import AttentionOptions


class Plan(NamedTuple):
    """What is known of a ring at trace time.

    Attributes:
        core: the attention of one pair of shards.
        mesh: the devices.
        batch: mesh axes that split the samples.
        heads: mesh axes that split the heads.
        bands: who may see whom, by position.
        options: tile sizes for the core, and the ring's axis.
        zigzag: whether a device holds an early and a late chunk instead of one run of tokens.
        sources: number of true sources; what stands behind them is padding.
    """

    core: Core
    mesh: Mesh
    batch: tuple[str, ...]
    heads: tuple[str, ...]
    bands: tuple[Band, ...]
    options: AttentionOptions
    zigzag: bool
    sources: int

    @property
    def axis(self) -> str:
        """Mesh axis of the ring."""
        return self.options.ring_axis

    @property
    def devices(self) -> int:
        """Devices in the ring."""
        return self.mesh.shape[self.axis]

    @property
    def chunks(self) -> int:
        """Runs of tokens that a device holds."""
        return 2 if self.zigzag else 1

    @property
    def block(self) -> int:
        """Lengths are padded to a multiple of this: two halves of each chunk travel."""
        return 2 * self.chunks * self.devices

    @property
    def specs(self) -> tuple[PartitionSpec, PartitionSpec, PartitionSpec]:
        """Shardings of heads (b, n, h, e), of ids (b, n) and of log-sum-exps (b, h, n)."""
        batch, heads = self.batch or None, self.heads or None
        axis = self.axis
        return (
            PartitionSpec(batch, axis, heads),
            PartitionSpec(batch, axis),
            PartitionSpec(batch, heads, axis),
        )

    def mapped(self, local: Any, in_specs: Any, out_specs: Any) -> Any:
        """`local` on every device."""
        # The gradients are written out, so shard_map need not track what varies over which axis.
        return jax.shard_map(local, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def positions(self, device: Array, tokens: int, way: Array | None = None) -> Int[Array, "n"]:
        """Where the tokens of a device stand in the sequence; with `way` those of its first or second half only.

        A half is made of the halves of the chunks: its positions ascend, and it is as even as the whole.
        """
        length = tokens // self.chunks
        inside = jnp.arange(length, dtype=jnp.int32)
        if way is not None:
            inside = inside[: length // 2] + way * (length // 2)
        places = [device, 2 * self.devices - 1 - device][: self.chunks]
        return jnp.concatenate([place * length + inside for place in places])

    def halves(self, x: Array) -> Array:
        """The tokens (axis 1) that travel to the next device, and those that travel to the one before."""
        cut = jnp.moveaxis(x.reshape(x.shape[0], self.chunks, 2, -1, *x.shape[2:]), 2, 0)
        return cut.reshape(2, x.shape[0], -1, *x.shape[2:])

    def whole(self, x: Array) -> Array:
        """What `halves` cut."""
        apart = x.reshape(2, x.shape[1], self.chunks, -1, *x.shape[3:])
        return jnp.moveaxis(apart, 0, 2).reshape(x.shape[1], -1, *x.shape[3:])

    def visible(self, step: Array, way: Array, ids: tuple[Any, Any], sizes: tuple[int, int]) -> Visible:
        """Who may see whom between a device's queries and one half of the sources that it holds at a step.

        `ids` are those of the queries and of the half, `sizes` the queries and sources of a device.
        """
        padded = ids[1] is None and self.devices * sizes[1] > self.sources
        if not self.bands and not padded:
            return Visible(q_ids=ids[0], s_ids=ids[1])
        here = jax.lax.axis_index(self.axis)
        first, last = limits(self.bands, self.positions(here, sizes[0]))
        if padded:
            last = jnp.minimum(last, self.sources - 1)
        # After a step the first half has come from the device before, the second from the next one.
        home = (here + (2 * way - 1) * step) % self.devices
        at = self.positions(home, sizes[1], way)
        return Visible(first=first, last=last, at=at, q_ids=ids[0], s_ids=ids[1])

    def send(self, halves: Any) -> Any:
        """One hop: the first half of every array to the next device, the second to the one before."""
        size = self.devices
        ahead = [(place, (place + 1) % size) for place in range(size)]
        back = [(place, (place - 1) % size) for place in range(size)]
        return jax.tree.map(
            lambda x: jnp.stack(
                [jax.lax.ppermute(x[0], self.axis, ahead), jax.lax.ppermute(x[1], self.axis, back)]
            ),
            halves,
        )


def zigzag_order(tokens: int, devices: int) -> Int[np.ndarray, "n"]:
    """Index of the token at each place of the zig-zag order: ``x[:, order]`` is what ``ring_ordered`` expects.

    Raises:
        ValueError: a length that is no multiple of ``4 * devices`` (two chunks a device, cut in halves).
    """
    check_ordered(tokens, devices)
    chunks = np.arange(tokens, dtype=np.int32).reshape(2 * devices, -1)
    return np.stack([chunks[:devices], chunks[devices:][::-1]], axis=1).reshape(-1)


@functools.lru_cache(maxsize=256)
def busiest(bands: tuple[Band, ...], queries: int, sources: int, devices: int) -> tuple[int, int]:
    """Visible pairs on the device that has most of them: tokens in plain order, and in zig-zag order."""
    first, last = limits(bands, np.arange(queries, dtype=np.int64))
    pairs = np.maximum(np.minimum(last, sources - 1) - np.maximum(first, 0) + 1, 0)
    chunks = np.pad(pairs, (0, -queries % (2 * devices))).reshape(2 * devices, -1).sum(axis=1)
    return int((chunks[::2] + chunks[1::2]).max()), int((chunks + chunks[::-1])[:devices].max())


def check_ordered(tokens: int, devices: int) -> None:
    """Refuse a length that the zig-zag order cannot lay out without padding.

    Raises:
        ValueError: says what would fit.
    """
    if tokens % (4 * devices):
        fitting = -(-tokens // (4 * devices)) * 4 * devices
        raise ValueError(
            f"the zig-zag order over {devices} devices needs a multiple of {4 * devices} tokens, found {tokens}: "
            f"pad to {fitting} and hide the padding by a mask"
        )
