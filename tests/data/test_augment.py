"""Crops are the same over a clip, and the pixels are where they should be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvl.core.config import from_dict, to_dict
from stvl.core.errors import ConfigError
from stvl.data.augment import EvalTransform, TrainTransform


def ramp(height: int, width: int, frames: int = 2) -> np.ndarray:
    """Red rises with the column, green with the row, blue with the frame."""
    out = np.zeros((frames, height, width, 3), np.uint8)
    out[..., 0] = np.arange(width)
    out[..., 1] = np.arange(height)[:, None]
    out[..., 2] = 10 * np.arange(frames)[:, None, None]
    return out


def test_short_side_keeps_the_centre_square():
    out = EvalTransform(size=40)(ramp(40, 100))
    assert np.array_equal(out, ramp(40, 100)[:, :, 30:70])
    tall = EvalTransform(size=40)(ramp(100, 40))
    assert np.array_equal(tall, ramp(100, 40)[:, 30:70])


def test_short_side_shrinks_to_size():
    out = EvalTransform(size=20, kernel="bilinear")(ramp(40, 100))
    assert out.shape == (2, 20, 20, 3) and out.dtype == np.uint8
    # Output column i is the mean around source column 30 + 2 i + 0.5.
    assert np.abs(out[0, 10, 1:-1, 0].astype(float) - (30.5 + 2 * np.arange(1, 19))).max() <= 0.51


def test_squash_keeps_the_whole_frame():
    out = EvalTransform(size=20, resize="squash", kernel="bilinear")(ramp(40, 100))
    assert out[0, 0, 0, 0] <= 5 and out[0, 0, -1, 0] >= 94


def test_a_frame_of_the_right_size_is_left_alone():
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    assert np.array_equal(EvalTransform(size=32)(frames), frames)


def test_one_crop_for_the_whole_clip():
    frame = np.random.default_rng(1).integers(0, 256, (1, 50, 70, 3), dtype=np.uint8)
    out = TrainTransform(size=24, flip=True)(np.repeat(frame, 5, axis=0), np.random.default_rng(2))
    assert all(np.array_equal(out[0], other) for other in out[1:])


def test_the_same_key_gives_the_same_crop_and_another_key_another():
    frames, transform = ramp(50, 70), TrainTransform(size=24)
    first, again, other = (transform(frames, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32))
def test_a_box_lies_in_the_frame_with_the_area_and_ratio_asked_for(height, width, seed):
    transform = TrainTransform(scale=(0.3, 0.8), ratio=(0.75, 1.25))
    left, top, right, bottom = transform.box(height, width, np.random.default_rng(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert 0.75 - 1e-6 <= (right - left) / (bottom - top) <= 1.25 + 1e-6
    if 0.8 <= width / height <= 1.2:
        assert 0.3 - 1e-6 <= (right - left) * (bottom - top) / (height * width) <= 0.8 + 1e-6


def test_a_frame_too_narrow_for_any_ratio_gives_the_largest_centre_crop():
    box = TrainTransform(scale=(1.0, 1.0)).box(100, 10, np.random.default_rng(0))
    assert box == pytest.approx((0.0, 50 - 10 / 0.75 / 2, 10.0, 50 + 10 / 0.75 / 2))


def test_flip_mirrors_about_half_and_is_off_by_default():
    frames = ramp(16, 16)
    whole = {"size": 16, "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    mirrored = 0
    for seed in range(100):
        plain = TrainTransform(**whole)(frames, np.random.default_rng(seed))
        assert np.array_equal(plain, frames)
        flipped = TrainTransform(**whole, flip=True)(frames, np.random.default_rng(seed))
        assert np.array_equal(flipped, frames) or np.array_equal(flipped, frames[:, :, ::-1])
        mirrored += not np.array_equal(flipped, frames)
    assert 30 < mirrored < 70


def test_descriptions_name_what_decides_the_pixels():
    assert EvalTransform(size=96).describe() == "short side to 96, centre 96x96 (bicubic)"
    assert EvalTransform(size=96, resize="squash").describe() == "whole frame squashed to 96x96 (bicubic)"
    text = TrainTransform(size=48, flip=True, kernel="bilinear").describe()
    assert text == "random crop of 0.5 to 1 of the area to 48x48, mirrored half of the time (bilinear)"


@pytest.mark.parametrize(
    "transform", [TrainTransform(size=8, scale=(0.2, 0.9)), EvalTransform(resize="squash")]
)
def test_transforms_are_configs(transform):
    assert from_dict(to_dict(transform)) == transform


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrainTransform(scale=(0.9, 0.5)), "scale is a rising range"),
        (lambda: TrainTransform(scale=(0.0, 0.5)), "scale is a rising range"),
        (lambda: TrainTransform(ratio=(2.0, 1.0)), "ratio is a rising range"),
        (lambda: EvalTransform(size=0), "size is a number of pixels"),
    ],
)
def test_impossible_settings(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
