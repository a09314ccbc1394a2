"""Published sizes, held by shapes alone: nothing of a model is ever allocated."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from stvl.core.errors import ConfigError
from stvl.models.dual import DualEncoder, DualEncoderConfig
from stvl.models.eva02_at.module import EVA02ATConfig
from stvl.models.eva02_at.presets import PRESETS, preset
from stvl.models.eva02_at.schemes import EachFrame
from stvl.rope.schemes import STRope


def shapes(config: DualEncoderConfig) -> dict[str, Any]:
    """The parameter tree of a dual encoder, as shapes."""
    video = config.video
    frames = jax.ShapeDtypeStruct((1, video.frames, video.image_size, video.image_size, 3), jnp.uint8)
    ids = jax.ShapeDtypeStruct((1, config.text.context), jnp.int32)
    tree = jax.eval_shape(DualEncoder(config).init, jax.random.key(0), frames, ids)
    return nn.meta.unbox(tree)["params"]


def count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def video_by_hand(d: int, depth: int, patch: int, places: int, frames: int, out: int) -> int:
    """EVA-02 counted from its description: sub-LN blocks without a bias of k, SwiGLU of int(8 d / 3)."""
    f = int(d * 4 * 2 / 3)
    attention = 4 * d * d + 3 * d + 2 * d
    mlp = 3 * d * f + 2 * f + d + 2 * f
    stem = 3 * patch**2 * d + d + places * d + frames * d + 2 * d
    return stem + depth * (attention + mlp + 4 * d) + 2 * d + d * out


def text_by_hand(d: int, depth: int, out: int) -> int:
    """CLIP's text tower: 12 d^2 + 13 d a block, 49408 words, 77 places."""
    return 49408 * d + 77 * d + depth * (12 * d * d + 13 * d) + 2 * d + d * out


@pytest.mark.parametrize(
    ("name", "video", "text"), [("b16", 86e6, 63e6), ("l14", 304e6, 124e6), ("l14-336", 304e6, 124e6)]
)
def test_published_counts_within_one_percent(name: str, video: float, text: float):
    tree = shapes(preset(name))
    assert count(tree["video"]) == pytest.approx(video, rel=0.01)
    assert count(tree["text"]) == pytest.approx(text, rel=0.01)
    assert set(tree) == {"video", "text"}


@pytest.mark.parametrize(
    ("name", "video", "text"),
    [
        ("ti16", (192, 12, 16, 196, 4, 256), (256, 12, 256)),
        ("s16", (384, 12, 16, 196, 4, 256), (384, 12, 256)),
        ("b16", (768, 12, 16, 196, 4, 256), (512, 12, 256)),
        ("l14", (1024, 24, 14, 256, 4, 256), (768, 12, 256)),
        ("l14-336", (1024, 24, 14, 576, 4, 256), (768, 12, 256)),
    ],
)
def test_exact_counts_worked_by_hand(name: str, video: tuple[int, ...], text: tuple[int, ...]):
    tree = shapes(preset(name))
    assert count(tree["video"]) == video_by_hand(*video)
    assert count(tree["text"]) == text_by_hand(*text)


@pytest.mark.parametrize("name", ["ti16", "s16", "b16", "l14", "l14-336"])
def test_heads_are_64_wide(name: str):
    tree = shapes(preset(name))
    for tower in ("video", "text"):
        assert tree[tower]["stack"]["layers"]["attention"]["query"]["kernel"].shape[-1] == 64
    assert "bias" not in tree["video"]["stack"]["layers"]["attention"]["key"]
    assert "bias" in tree["text"]["stack"]["layers"]["attention"]["key"]


def test_mlp_widths_are_those_of_the_public_weights():
    assert preset("b16").video.mlp_hidden == 2048
    assert preset("l14").video.mlp_hidden == 2730


def test_larger_frames_change_the_table_of_places_only():
    small, large = (
        {
            jax.tree_util.keystr(path): leaf.shape
            for path, leaf in jax.tree.leaves_with_path(shapes(preset(name)))
        }
        for name in ("l14", "l14-336")
    )
    assert {name for name in small if small[name] != large[name]} == {"['video']['positions']['space']"}


def test_every_preset_evaluates_by_shape():
    for name, config in PRESETS.items():
        features = jax.eval_shape(
            lambda params, config=config: DualEncoder(config).apply(
                {"params": params},
                jnp.zeros((2, 2, config.video.image_size, config.video.image_size, 3), jnp.uint8),
                jnp.zeros((2, 7), jnp.int32),
            ),
            shapes(config),
        )
        assert features.video.shape == features.text.shape == (2, config.embedding), name


@pytest.mark.parametrize(
    ("mode", "scheme", "table"),
    [
        ("learned", EachFrame, True),
        ("rope", STRope, False),
        ("both", STRope, True),
        ("none", EachFrame, False),
    ],
)
def test_temporal_positions_choose_scheme_and_table(mode: Any, scheme: type, table: bool):
    tiny = preset("tiny")
    config = dataclasses.replace(tiny, video=dataclasses.replace(tiny.video, temporal_positions=mode))
    assert type(config.video.scheme) is scheme
    assert ("time" in shapes(config)["video"]["positions"]) is table


def test_unknown_preset_shows_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown EVA02-AT preset 'b61'.*b16"):
        preset("b61")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 100, "heads": 3}, "width 100 cannot be divided into 3 heads"),
        ({"image_size": 225}, "image_size 225 is no multiple of patch 16"),
        ({"width": 60, "heads": 6}, "head width must be divisible by 4, found 10"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields: dict[str, int], message: str):
    with pytest.raises(ConfigError, match=message):
        EVA02ATConfig(**fields)
