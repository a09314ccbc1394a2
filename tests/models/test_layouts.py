"""The layouts themselves: every parameter has one place, every file is read and written back bit by bit."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stvl.models.dual import DualEncoderConfig
from stvl.models.eva02_at.weights import HalfSplit
from stvl.models.presets import preset
from stvl.models.text_weights import NEW_TEXT
from stvl.models.vit.weights import PatchMatrix
from stvl.pretrained.recognise import LAYOUTS, recognise
from tests.parity.compare import load as golden
from tests.parity.layouts import load, target_shapes, unload

#: open_clip's model -> preset and layout.
PUBLISHED = {
    "EVA02-B-16": ("eva02-clip/b16", "eva02-clip/open_clip"),
    "EVA02-L-14": ("eva02-clip/l14", "eva02-clip/open_clip"),
    "EVA02-L-14-336": ("eva02-clip/l14-336", "eva02-clip/open_clip"),
    "ViT-B-16": ("vit-clip/b16", "vit-clip/open_clip"),
    "ViT-L-14": ("vit-clip/l14", "vit-clip/open_clip"),
    "ViT-L-14-336": ("vit-clip/l14-336", "vit-clip/open_clip"),
}
HALF = [(0, 0, 1, 2), (1, 1, 3, 4)]


def image_model(model: DualEncoderConfig) -> DualEncoderConfig:
    """Without P_t, as an image checkpoint has it."""
    mode = "rope" if hasattr(model.video, "rope") else "none"
    return dataclasses.replace(
        model, video=dataclasses.replace(model.video, frames=1, temporal_positions=mode)
    )


def hollow(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays of these shapes that take no memory."""
    return {path: np.broadcast_to(np.zeros((), np.float32), shape) for path, shape in shapes.items()}


def small(layout: str, sizes: dict[str, int]) -> DualEncoderConfig:
    """A model that the layout serves, with the sizes changed."""
    item = LAYOUTS[layout]
    family = {"eva02-at": "eva02-clip"}.get(item.family, item.family)
    model = preset(f"{family}/b16")
    width, frames = sizes["heads"] * sizes["head"], sizes["frames"]
    video: dict[str, Any] = {
        "width": width,
        "heads": sizes["heads"],
        "depth": sizes["depth"],
        "patch": sizes["patch"],
        "image_size": sizes["patch"] * sizes["side"],
        "frames": frames,
    }
    text = dataclasses.replace(
        model.text,
        width=sizes["text_heads"] * sizes["head"],
        heads=sizes["text_heads"],
        depth=sizes["depth"] + 1,
        context=sizes["context"],
        vocabulary=sizes["context"] + 20,
    )
    model = dataclasses.replace(
        model, video=dataclasses.replace(model.video, **video), text=text, embedding=sizes["embedding"]
    )
    return model if "video/positions/time" in held(layout) else image_model(model)


def held(layout: str) -> set[str]:
    """Parameters that a layout has a place for."""
    return {path for rule in LAYOUTS[layout].layout.rules for path in rule.targets}


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_are_used_once_and_patterns_do_not_overlap(name: str):
    layout = LAYOUTS[name].layout
    sources = [rule.source for rule in layout.rules]
    targets = [path for rule in layout.rules for path in rule.targets]
    assert len(sources) == len(set(sources)) and len(targets) == len(set(targets))
    for rule in layout.rules:
        assert ("{i}" in rule.source) == all("/stack/layers/" in path for path in rule.targets), rule
        example = rule.source.replace("{i}", "3")
        assert not any(re.fullmatch(item.pattern, example) for item in layout.ignored), example
        assert not any(re.fullmatch(item.pattern, path) for item in layout.new for path in rule.targets), rule


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_parameter_of_the_family_has_a_place_or_is_new_by_name(name: str):
    item = LAYOUTS[name]
    family = {"eva02-at": "eva02-clip"}.get(item.family, item.family)
    for size in ("b16", "l14", "l14-336"):
        wanted = set(target_shapes(preset(f"{family}/{size}")))
        assert held(name) <= wanted
        new = item.layout.new + ((NEW_TEXT,) if name.endswith("/timm") else ())
        rest = [path for path in wanted - held(name) if not any(re.fullmatch(n.pattern, path) for n in new)]
        assert rest == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_names_and_shapes_of_open_clip(name: str):
    model, layout = PUBLISHED[name]
    state = unload(LAYOUTS[layout].layout, hollow(target_shapes(image_model(preset(model)))))
    ours = {" ".join([key, *map(str, array.shape)]) for key, array in state.items()}
    assert ours == set(golden("layout_names")[name].tolist())


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=2)
@given(data=st.data())
def test_any_size_is_recognised_and_comes_back_bit_by_bit(name: str, data: st.DataObject):
    keys = ("depth", "patch", "side", "frames", "heads", "text_heads", "embedding")
    sizes = {key: data.draw(st.integers(1, 3), label=key) for key in keys}
    sizes |= {"head": data.draw(st.sampled_from((4, 8))), "context": data.draw(st.integers(2, 7))}
    model = small(name, sizes)
    shapes = dict(target_shapes(model))
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    state = unload(LAYOUTS[name].layout, params)
    wrapped = {f"module.{key}": array for key, array in state.items()}
    found = recognise(wrapped, activation=model.text.activation, heads=(sizes["heads"], sizes["text_heads"]))
    assert found.layout.name == name
    held_here = {path: array for path, array in params.items() if path in held(name)}
    if name.endswith("/timm"):
        # An image tower alone: the rest is not in the file.
        assert found.model.video == model.video and found.optional_new == (NEW_TEXT,)
        shapes = {path: shape for path, shape in shapes.items() if path in held(name)}
    else:
        assert found.model == model and found.optional_new == ()
    back = load(found.layout, state, shapes)
    for path, array in held_here.items():
        np.testing.assert_array_equal(back[path], array, err_msg=path)
    again = unload(found.layout, back)
    assert {key: array.tobytes() for key, array in again.items()} == {
        key: array.tobytes() for key, array in state.items()
    }


def test_half_split_by_hand():
    (found,) = HalfSplit().forward((np.array([[10, 11, 20, 21, 30, 31]]),), ())
    assert found.tolist() == [[10, 20, 30, 11, 21, 31]]
    (back,) = HalfSplit().backward((found,))
    assert back.tolist() == [[10, 11, 20, 21, 30, 31]]


def test_patch_matrix_by_hand():
    # One output channel, 3 colours, 2 x 2 pixels: colour slowest, then row, then column.
    matrix = np.arange(12).reshape(1, 12)
    (kernel,) = PatchMatrix().forward((matrix,), ())
    assert kernel.shape == (1, 3, 2, 2)
    assert kernel[0, 2, 0, 1] == 9 and kernel[0, 0, 1, 0] == 2
    assert PatchMatrix().backward((kernel,))[0].tolist() == matrix.tolist()
