"""All presets under one name each: their sizes by shape alone, and what a run does with each family."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from stvl.core.config import diff, from_dict, override, to_dict
from stvl.core.errors import ConfigError
from stvl.models.dual import DualEncoder
from stvl.models.eva02_at.presets import preset as eva02_at
from stvl.models.presets import FAMILIES, names, preset

PAGE = Path(__file__).resolve().parents[2] / "docs/models.md"


@functools.cache
def tree(name: str) -> dict[str, Any]:
    """The parameters of a preset, as shapes."""
    config = preset(name)
    size = config.video.image_size
    frames = jax.ShapeDtypeStruct((1, config.video.frames, size, size, 3), jnp.uint8)
    ids = jax.ShapeDtypeStruct((1, config.text.context), jnp.int32)
    shapes = jax.eval_shape(DualEncoder(config).init, jax.random.key(0), frames, ids)
    return nn.unbox(shapes)["params"]


def count(shapes: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def vit_by_hand(d: int, depth: int, patch: int, places: int, out: int, frames: int = 4) -> int:
    """CLIP's ViT: 12 d^2 + 13 d a block, norms before and after, no bias in patches and projection."""
    tables = 3 * patch**2 * d + d + (places + 1) * d + frames * d
    return tables + depth * (12 * d * d + 13 * d) + 4 * d + d * out


def time_by_hand(d: int, depth: int) -> int:
    """What an attention over time adds: four projections with biases and a norm in each block."""
    return depth * (4 * d * d + 4 * d + 2 * d)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ("b16", (768, 12, 16, 196, 512)),
        ("l14", (1024, 24, 14, 256, 768)),
        ("l14-336", (1024, 24, 14, 576, 768)),
    ],
)
def test_counts_worked_by_hand(size: str, sizes: tuple[int, ...]):
    *body, out = sizes
    d, depth = body[:2]
    vit = vit_by_hand(*body, out)
    assert count(tree(f"vit-clip/{size}")["video"]) == vit
    assert count(tree(f"vit-clip/{size}-quickgelu")["video"]) == vit
    in_256 = vit + d * (256 - out)
    assert count(tree(f"avion/{size}")["video"]) == in_256
    assert count(tree(f"timesformer/{size}")["video"]) == in_256 + time_by_hand(d, depth)
    extra = d * (out - 256) + out
    clip, plain = tree(f"eva02-clip/{size}")["video"], tree(f"eva02-at/{size}")["video"]
    assert count(clip) == count(plain) + extra


@pytest.mark.parametrize(
    ("name", "video", "text"),
    [
        # Parameters of open_clip 3.3's ViT-B-16, ViT-L-14, EVA02-B-16 and EVA02-L-14, counted on its meta device.
        ("vit-clip/b16", 86_192_640, 63_428_096),
        ("vit-clip/l14", 303_966_208, 123_650_304),
        ("eva02-clip/b16", 86_263_040, 63_428_096),
        ("eva02-clip/l14", 304_105_152, 123_650_304),
    ],
)
def test_all_that_open_clip_has_and_p_t(name: str, video: int, text: int):
    parts = tree(name)
    assert count(parts["video"]) - count(parts["video"]["positions"]["time"]) == video
    assert count(parts["text"]) == text
    assert set(parts) == {"video", "text", "log_scale"}


@pytest.mark.parametrize("name", names())
def test_every_preset_evaluates_by_shape_and_comes_back_from_json(name: str):
    config = preset(name)
    size, frames = config.video.image_size, config.video.frames
    features = jax.eval_shape(
        lambda params: DualEncoder(config).apply(
            {"params": params},
            jnp.zeros((2, frames, size, size, 3), jnp.uint8),
            jnp.zeros((2, 7), jnp.int32),
        ),
        tree(name),
    )
    assert features.video.shape == features.text.shape == (2, config.embedding)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert re.fullmatch(r"(EVA02-AT|CLIP ViT|TimeSformer) \d+x\d+, patch \d+", config.video.title)


def test_quick_gelu_is_where_openais_weights_are_used_as_they_were_trained():
    quick = {name for name in names() if preset(name).video.__dict__.get("activation") == "quick_gelu"}
    assert quick == {name for name in names() if "quickgelu" in name or name.startswith("timesformer/")}
    for name in quick:
        assert preset(name).text.activation == "quick_gelu"


def test_a_family_keeps_its_own_lookup():
    assert preset("eva02-at/b16") is eva02_at("b16")
    assert set(names()) == {f"{family}/{size}" for family in FAMILIES for size in FAMILIES[family]}


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("eva02-at/b61", "eva02-at/b16"),
        ("eva2-clip/l14", "eva02-clip/l14"),
        ("timesformer", "timesformer/"),
        ("l14-336", "eva02-at/l14-336"),
        ("vit-clip/", "vit-clip/"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str):
    with pytest.raises(ConfigError, match=rf"unknown preset '{name}' \(did you mean '{near}"):
        preset(name)


@pytest.mark.parametrize("name", ["eva02-clip/tiny", "vit-clip/tiny", "timesformer/tiny"])
def test_dotted_paths_reach_into_each_family(name: str):
    config = preset(name)
    changed = override(config, {"video.depth": "2", "video.frames": "8", "text.activation": "quick_gelu"})
    assert (changed.video.depth, changed.video.frames) == (2, 8)
    assert type(changed.video) is type(config.video)
    with pytest.raises(ConfigError, match=r"has no field 'dept' \(did you mean 'depth'\?\)"):
        override(config, {"video.dept": "2"})
    with pytest.raises(ConfigError, match=r"activation = 'relu'.*gelu"):
        override(config, {"text.activation": "relu"})
    with pytest.raises(ConfigError, match=r"video holds .*, which one word cannot spell"):
        override(config, {"video": "tiny"})


def test_two_families_differ_by_their_type():
    one, two = preset("vit-clip/tiny"), preset("timesformer/tiny")
    assert ("video:type", "ViTConfig", "TimeSformerConfig") in diff(one, two)


def test_the_page_lists_every_preset_with_its_sizes():
    rows = re.findall(
        r"^\| `([^`]+)` \| ([\d.]+) M \| ([\d.]+) M \| (\d+) \|", PAGE.read_text(), re.MULTILINE
    )
    listed = {name: (float(video), float(text), int(width)) for name, video, text, width in rows}
    # Quick GELU changes no size.
    plain = [name for name in names() if "quickgelu" not in name]
    assert list(listed) == plain
    for name in plain:
        parts = tree(name)
        millions = [round(count(parts[tower]) / 1e6, 1) for tower in ("video", "text")]
        assert (*millions, preset(name).embedding) == listed[name], name


def test_a_tower_of_any_family_is_frozen_data():
    for name in ("eva02-at/b16", "vit-clip/b16", "timesformer/b16"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            preset(name).video.width = 1  # pyright: ignore[reportAttributeAccessIssue]
