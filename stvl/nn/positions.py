"""The class token and the learned position tables of place and time."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stvl.core.errors import ConfigError
from stvl.nn.dense import named


def resample_matrix(length: int, table: int) -> Float[np.ndarray, "t s"]:
    """Matrix that resamples a table of `table` rows to `length` rows linearly, centres of equal segments aligned.

    The identity for ``length == table``; rows sum to one.
    """
    place = np.clip((np.arange(length) + 0.5) * table / length - 0.5, 0, table - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, table - 1)
    matrix = np.zeros((length, table))
    np.add.at(matrix, (np.arange(length), low), 1 - (place - low))
    np.add.at(matrix, (np.arange(length), high), place - low)
    return matrix


class PositionTables(nn.Module):
    """``x + P_xy + P_t`` on a grid of tokens (EVA02-AT, Section 3: ``z0 = x + P_xy + P_t``).

    P_xy (rows * columns, d) comes from the image model and repeats over the frames; P_t (frames, d) starts at zero and
    repeats over the places. A clip of another number of frames reads P_t through `resample_matrix`.

    Attributes:
        places: rows and columns of the table P_xy.
        frames: rows of the table P_t; 0 leaves it out.
        dtype: compute dtype.
    """

    places: tuple[int, int]
    frames: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t y x d"]) -> Float[Array, "b t y x d"]:
        _, t, rows, columns, width = x.shape
        if (rows, columns) != self.places:
            raise ConfigError(
                f"P_xy is a table of {self.places[0]} x {self.places[1]} places, the clip has {rows} x {columns}: "
                "set image_size to the size of the frames"
            )
        init = named(nn.initializers.truncated_normal(0.02), ". d")
        space = self.param("space", init, (rows * columns, width), jnp.float32)
        x = x + space.reshape(rows, columns, width).astype(self.dtype)
        if self.frames:
            zeros = named(nn.initializers.zeros, ". d")
            time = self.param("time", zeros, (self.frames, width), jnp.float32)
            if t != self.frames:
                time = jnp.asarray(resample_matrix(t, self.frames), jnp.float32) @ time
            x = x + time[:, None, None].astype(self.dtype)
        return x


def with_class_token(owner: nn.Module, x: Float[Array, "b t y x d"]) -> Float[Array, "b n d"]:
    """``[class_token + class_position, x_1 ... x_n]``: tokens in one line behind a learned one.

    Both vectors are parameters of `owner`, whose compact method calls this: the class token's own position is a row of
    its own in the published tables.
    """
    batch, width = x.shape[0], x.shape[-1]
    init = named(nn.initializers.truncated_normal(0.02), "d")
    token = owner.param("class_token", init, (width,), jnp.float32)
    place = owner.param("class_position", init, (width,), jnp.float32)
    first = jnp.broadcast_to((token + place).astype(x.dtype), (batch, 1, width))
    return jnp.concatenate([first, x.reshape(batch, -1, width)], axis=1)
