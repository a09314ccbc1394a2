"""From uint8 frames to tokens: normalisation on the device and the tube patch embedding."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from stvl.core.errors import ConfigError
from stvl.nn.dense import named

#: Mean and standard deviation of CLIP's training images, for pixels in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

#: The mean that LaViLa and AVION train with: CLIP's but for red, where their scripts have 108.3272985 of 255.
AVION_MEAN = (108.3272985 / 255, 0.4578275, 0.40821073)


def normalise(
    video: Num[Array, "b t y x c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "b t y x c"]:
    """``(video / 255 - mean) / std`` for uint8 frames; float frames count as normalised already."""
    if jnp.issubdtype(video.dtype, jnp.floating):
        return video
    return (video.astype(jnp.float32) / 255.0 - jnp.asarray(mean)) / jnp.asarray(std)


class TubeEmbed(nn.Module):
    """Convolution whose kernel is its stride: ``(b t y x c) -> (b t/k y/p x/p d)``; with k = 1 a frame at a time.

    The kernel is stored as (k, p, p, c, d), so an image model's patch kernel is its k = 1 case (EVA02-AT, Section 3).

    Attributes:
        width: token width d.
        patch: patch side p in pixels.
        tube: frames in a tube, k.
        use_bias: whether to add a bias (EVA-02: yes; CLIP: no).
        dtype: compute dtype.
    """

    width: int
    patch: int
    tube: int = 1
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, video: Float[Array, "b t y x c"]) -> Float[Array, "b t2 y2 x2 d"]:
        b, t, y, x, c = video.shape
        k, p = self.tube, self.patch
        if t % k or y % p or x % p:
            raise ConfigError(f"a clip of {t} x {y} x {x} cannot be cut into tubes of {k} x {p} x {p}")
        # Variance-preserving over the fan-in, as the default of the published stems.
        init = nn.initializers.lecun_normal(in_axis=(0, 1, 2, 3), out_axis=4)
        kernel = self.param("kernel", named(init, ". . . . d"), (k, p, p, c, self.width))
        tubes = video.reshape(b, t // k, k, y // p, p, x // p, p, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
        tubes = tubes.reshape(b, t // k, y // p, x // p, k * p * p * c).astype(self.dtype)
        out = tubes @ kernel.reshape(-1, self.width).astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", named(nn.initializers.zeros, "d"), (self.width,))
            out = out + bias.astype(self.dtype)
        return out
