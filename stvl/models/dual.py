"""A video tower and a text tower that meet in one space."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from stvl.core.config import config
from stvl.models.clip_text import ClipTextConfig, TextEncoder
from stvl.models.eva02_at.module import EVA02ATConfig
from stvl.models.timesformer.module import TimeSformerConfig
from stvl.models.vit.module import ViTConfig

#: Any video tower. Each config answers `tower`, `flops` and `title`, and has `width`, `image_size`, `frames`,
#: `temporal_positions`, `mean` and `std`.
VideoConfig = EVA02ATConfig | ViTConfig | TimeSformerConfig


@config
class DualEncoderConfig:
    """Two towers and the width of the space they share.

    Attributes:
        video: the video tower.
        text: the text tower.
        embedding: width of the shared space; 256 in EVA02-AT and LaViLa, 512 / 768 in CLIP and EVA02-CLIP B / L.
        temperature: start of a learnable temperature; None leaves temperature to the loss.
        bias: start of a learnable bias of the logits (SigLIP: -10); None leaves it to the loss.
    """

    video: VideoConfig = EVA02ATConfig()
    text: ClipTextConfig = ClipTextConfig()
    embedding: int = 256
    temperature: float | None = None
    bias: float | None = None


class Features(NamedTuple):
    """What the towers give a loss: unit vectors in f32, and the learnable temperature and bias where there are any."""

    video: Float[Array, "b o"]
    text: Float[Array, "b o"]
    temperature: Float[Array, ""] | None = None
    bias: Float[Array, ""] | None = None


def unit(x: Float[Array, "b o"]) -> Float[Array, "b o"]:
    """``x / |x|`` in f32, finite (and with a finite gradient) also for a zero vector."""
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-12))


class DualEncoder(nn.Module):
    """``video (b t y x 3), ids (b l) -> unit features (b o), (b o)``.

    Attributes:
        config: sizes of both towers.
        dtype: compute dtype; parameters, last norms, projections and features are f32.
        impl: attention backend, None for the best one.
    """

    config: DualEncoderConfig
    dtype: jnp.dtype = jnp.float32
    impl: str | None = None

    def setup(self) -> None:
        """Make both towers."""
        cfg = self.config
        self.video = cfg.video.tower(cfg.embedding, self.dtype, self.impl)
        self.text = TextEncoder(cfg.text, cfg.embedding, self.dtype, self.impl)
        if cfg.temperature is not None:
            start = jnp.log(1.0 / cfg.temperature)
            self.log_scale = self.param("log_scale", lambda _: jnp.asarray(start, jnp.float32))
        if cfg.bias is not None:
            self.logit_bias = self.param("logit_bias", lambda _: jnp.asarray(cfg.bias, jnp.float32))

    def __call__(
        self, video: Num[Array, "b t y x c"], ids: Int[Array, "b l"], train: bool = False
    ) -> Features:
        """Features of paired clips and texts."""
        bias = None if self.config.bias is None else jnp.asarray(self.logit_bias)
        return Features(
            self.encode_video(video, train), self.encode_text(ids, train), self._temperature(), bias
        )

    def encode_video(self, video: Num[Array, "b t y x c"], train: bool = False) -> Float[Array, "b o"]:
        """Unit features of clips; uint8 frames are normalised here."""
        return unit(self.video(video, train))

    def encode_text(self, ids: Int[Array, "b l"], train: bool = False) -> Float[Array, "b o"]:
        """Unit features of token ids."""
        return unit(self.text(ids, train))

    def _temperature(self) -> Float[Array, ""] | None:
        if self.config.temperature is None:
            return None
        # CLIP clamps the scale at 100 so that training stays stable (arXiv 2103.00020, Section 2.5).
        return jnp.exp(-jnp.clip(self.log_scale, max=jnp.log(100.0)))
