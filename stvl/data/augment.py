"""Frames of any size to frames of the model's size; one crop for the whole clip, so that motion stays motion."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from stvl.core.config import config
from stvl.core.errors import ConfigError

Box = tuple[float, float, float, float]
Kernel = Literal["bilinear", "bicubic"]
_KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@config
class TrainTransform:
    """Random resized crop, and a flip on demand, the same for every frame of a clip.

    Attributes:
        size: side of the output, pixels.
        scale: range of the crop's share of the frame's area.
        ratio: range of the crop's width over its height, drawn on a log scale.
        flip: mirror half of the clips. Off, for left and right carry meaning in actions and narrations.
        kernel: filter, widened when shrinking (antialias).

    Source: Szegedy et al., Going Deeper with Convolutions (2014), section 6.
    """

    size: int = 224
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    flip: bool = False
    kernel: Kernel = "bicubic"

    def __post_init__(self) -> None:
        _check(self.size, self.kernel)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"scale is a rising range within (0, 1], found {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"ratio is a rising range above 0, found {self.ratio}")

    def __call__(
        self, frames: UInt8[np.ndarray, "t y x c"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "t size size c"]:
        """Crop, resize and perhaps mirror; `rng` decides, and always draws the same number of values."""
        box = self.box(frames.shape[1], frames.shape[2], rng)
        mirror = bool(rng.random() < 0.5) and self.flip
        return _resize(frames, box, self.size, self.kernel, mirror)

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        """A crop (left, top, right, bottom) in pixels; the largest that fits the range of ratios if ten draws do not."""
        draws = rng.random((10, 4))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area_at, ratio_at, left_at, top_at in draws:
            area = height * width * (self.scale[0] + area_at * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + ratio_at * (high - low))
            wide, tall = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if wide <= width and tall <= height:
                left, top = left_at * (width - wide), top_at * (height - tall)
                return left, top, min(left + wide, width), min(top + tall, height)
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        wide, tall = min(width, height * ratio), min(height, width / ratio)
        left, top = (width - wide) / 2, (height - tall) / 2
        return left, top, left + wide, top + tall

    def describe(self) -> str:
        """The rule in words, for protocol cards."""
        flip = ", mirrored half of the time" if self.flip else ""
        share = f"{self.scale[0]:g} to {self.scale[1]:g} of the area"
        return f"random crop of {share} to {self.size}x{self.size}{flip} ({self.kernel})"


@config
class EvalTransform:
    """The same view every time.

    Attributes:
        size: side of the output, pixels.
        resize: ``short_side``: the short side becomes `size` and the centre square is kept; ``squash``: the whole
            frame becomes a square.
        kernel: filter, widened when shrinking (antialias).
    """

    size: int = 224
    resize: Literal["short_side", "squash"] = "short_side"
    kernel: Kernel = "bicubic"

    def __post_init__(self) -> None:
        _check(self.size, self.kernel)
        if self.resize not in ("short_side", "squash"):
            raise ConfigError(f"resize is 'short_side' or 'squash', found {self.resize!r}")

    def __call__(
        self, frames: UInt8[np.ndarray, "t y x c"], rng: np.random.Generator | None = None
    ) -> UInt8[np.ndarray, "t size size c"]:
        """Crop and resize; `rng` is not used."""
        return _resize(frames, self.box(frames.shape[1], frames.shape[2]), self.size, self.kernel, False)

    def box(self, height: int, width: int) -> Box:
        """The part of the frame that is kept (left, top, right, bottom), pixels."""
        if self.resize == "squash":
            return 0.0, 0.0, float(width), float(height)
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    def describe(self) -> str:
        """The rule in words, for protocol cards."""
        if self.resize == "squash":
            return f"whole frame squashed to {self.size}x{self.size} ({self.kernel})"
        return f"short side to {self.size}, centre {self.size}x{self.size} ({self.kernel})"


def _check(size: int, kernel: str) -> None:
    if size < 1:
        raise ConfigError(f"size is a number of pixels >= 1, found {size}")
    if kernel not in _KERNELS:
        raise ConfigError(f"kernel is one of {', '.join(_KERNELS)}, found {kernel!r}")


def _resize(frames: np.ndarray, box: Box, size: int, kernel: str, mirror: bool) -> np.ndarray:
    out = np.empty((len(frames), size, size, frames.shape[3]), np.uint8)
    if box == (0, 0, size, size) and frames.shape[1:3] == (size, size):
        out[:] = frames
    else:
        for row, frame in zip(out, frames, strict=True):
            image = Image.fromarray(np.ascontiguousarray(frame))
            row[:] = np.asarray(image.resize((size, size), _KERNELS[kernel], box=box))
    return out[:, :, ::-1].copy() if mirror else out
