"""Files in the public namings against what their own code computes from them, frozen; no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stvl.core.errors import WeightsError
from stvl.pretrained.folder import param_targets
from stvl.pretrained.recognise import Recognised, recognise
from stvl.weights.load import plan_load
from stvl.weights.source import Entry, open_source
from stvl.weights.writer import write_safetensors

from .compare import Arrays, check, gap, load, part
from .layouts import load as apply
from .layouts import run, target_shapes, unload
from .public_weights import TINY

#: File -> activation that the caller has to say, if any.
FILES = {
    "eva02_open_clip": None,
    "eva02_eva_clip": None,
    "clip_open_clip": None,
    "clip_custom_text": "quick_gelu",
    "clip_hf": "quick_gelu",
    "avion_plain": None,
    "avion_released": None,
    "lavila": None,
}
HEADS = (TINY.heads, TINY.text_heads)


def found_in(name: str, file: Arrays) -> Recognised:
    return recognise(part(file, "weights"), activation=FILES[name], heads=HEADS)  # pyright: ignore[reportArgumentType]


def frames_of(found: Recognised, file: Arrays) -> np.ndarray:
    """The clip for a video model, its first frames for an image model."""
    return file["in/clip"][:, : found.frames]


def outputs(name: str, file: Arrays) -> Arrays:
    found = found_in(name, file)
    return run(found, part(file, "weights"), frames_of(found, file), file["in/ids"])


@pytest.mark.parametrize("name", FILES)
def test_every_block_of_both_towers(name: str):
    file = load(f"layout_{name}")
    wanted = part(file, "out")
    ours = outputs(name, file)
    compared = [key for key in ours if key in wanted]
    assert {"video/projection", "text/projection", "video/blocks/1", "text/blocks/2"} <= set(compared)
    assert set(wanted) <= set(ours)
    for key in compared:
        check(f"{name}, {key}", ours[key], wanted[key])


@pytest.mark.parametrize("name", FILES)
def test_layout_is_recognised_and_the_file_comes_back_bit_by_bit(name: str):
    file = load(f"layout_{name}")
    state, found = part(file, "weights"), found_in(name, file)
    assert found.layout.name == str(file["layout"])
    assert found.frames == (TINY.frames if "avion" in name or name == "lavila" else 1)
    params = apply(found.layout, state, target_shapes(found.model))
    back = unload(found.layout, params)
    assert set(state) - set(back) == {key for key in state if "position_ids" in key}
    for key, array in back.items():
        assert array.shape == state[key].shape, key
        np.testing.assert_array_equal(array, state[key], err_msg=key)


@pytest.mark.parametrize("name", FILES)
def test_the_streaming_engine_loads_the_same(name: str, tmp_path: Path):
    file = load(f"layout_{name}")
    state, found = part(file, "weights"), found_in(name, file)
    wanted = apply(found.layout, state, target_shapes(found.model))
    items = [(f"module.{key}", Entry(a.shape, a.dtype), lambda a=a: a) for key, a in state.items()]
    write_safetensors(tmp_path / "file.safetensors", items, {})
    source = open_source(tmp_path / "file.safetensors")
    plan = plan_load(found.layout, source, param_targets(found.model))
    ours = dict(plan.items())
    assert set(ours) | set(plan.new) == set(wanted) and plan.new.keys() <= {"video/positions/time"}
    for path, array in ours.items():
        np.testing.assert_array_equal(array, wanted[path], err_msg=path)
    source.close()


def test_file_of_transformers_asks_for_its_activation():
    with pytest.raises(WeightsError, match="quick_gelu, LAION's"):
        recognise(part(load("layout_clip_hf"), "weights"), heads=HEADS)


# The files bite: a wrong wire, activation or epsilon is found.


@pytest.mark.parametrize("name", ["clip_custom_text", "clip_hf"])
def test_wrong_activation_is_found(name: str):
    file = load(f"layout_{name}")
    found = recognise(part(file, "weights"), activation="gelu", heads=HEADS)
    ours = run(found, part(file, "weights"), frames_of(found, file), file["in/ids"])
    for tower in ("video", "text"):
        assert gap(ours[f"{tower}/projection"], file[f"out/{tower}/projection"])[0] > 1e-3


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        (
            "eva02_open_clip",
            "visual.trunk.blocks.1.mlp.fc1_g.weight",
            "visual.trunk.blocks.1.mlp.fc1_x.weight",
        ),
        ("eva02_eva_clip", "visual.blocks.0.attn.q_bias", "visual.blocks.0.attn.v_bias"),
        ("lavila", "visual.blocks.1.norm1.weight", "visual.blocks.1.norm3.weight"),
        ("lavila", "visual.blocks.0.timeattn.qkv.weight", "visual.blocks.0.attn.qkv.weight"),
        ("avion_released", "visual.ln_pre.bias", "visual.ln_post.bias"),
        ("clip_hf", "vision_model.pre_layrnorm.weight", "vision_model.post_layernorm.weight"),
    ],
)
def test_exchanged_tensors_are_found(name: str, one: str, other: str):
    file = load(f"layout_{name}")
    a, b = f"weights/{one}", f"weights/{other}"
    file[a], file[b] = file[b], file[a]
    ours = outputs(name, file)
    assert gap(ours["video/projection"], file["out/video/projection"])[0] > 0.01


def test_frames_in_another_order_are_found():
    file = load("layout_lavila")
    found = found_in("lavila", file)
    ours = run(found, part(file, "weights"), file["in/clip"][:, ::-1].copy(), file["in/ids"])
    assert gap(ours["video/projection"], file["out/video/projection"])[0] > 0.01
