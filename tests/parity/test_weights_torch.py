"""The frozen files of the weight layouts are what open_clip, timm, transformers and the twins give today."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stvl.models.activations import activations
from stvl.models.dual import DualEncoder
from stvl.pretrained.folder import param_targets
from stvl.pretrained.recognise import recognise
from stvl.weights.load import plan_load
from stvl.weights.source import open_source

from . import public_twin
from .compare import Arrays, check, load
from .layouts import run, tree
from .make_layouts import MAKERS, build, inputs, published_names
from .public_models import open_clip_activations, randomise, tiny_clip, tiny_eva02
from .public_weights import TINY, Tiny, avion, lavila
from .twin import tensors as twin_tensors

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("torch_installed")]


@pytest.fixture
def packages():
    """The public implementations themselves."""
    for name in ("timm", "transformers", "open_clip"):
        pytest.importorskip(name)


@pytest.mark.slow
@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", MAKERS)
def test_frozen_file_is_what_its_source_gives(name: str):
    frozen, made = load(f"layout_{name}"), build(name)
    assert sorted(frozen) == sorted(made)
    for key, array in made.items():
        if key.startswith("out/"):
            check(f"{name}, {key}", array, frozen[key], 5e-6)
        elif key != "versions":
            np.testing.assert_array_equal(array, frozen[key], err_msg=key)


@pytest.mark.slow
@pytest.mark.usefixtures("packages")
def test_published_names_and_shapes_are_those_of_open_clip():
    frozen = load("layout_names")
    made = published_names()
    assert {name: sorted(lines) for name, lines in made.items()} == {
        name: sorted(lines) for name, lines in frozen.items()
    }


@pytest.mark.parametrize(
    ("state", "twin", "layout"),
    [
        (lavila(61), public_twin.lavila, "timesformer/lavila"),
        (
            avion(62, True, True),
            functools.partial(public_twin.avion, flash=True),
            "avion/fast-conv1-flash-attn",
        ),
        (avion(63, True, False), functools.partial(public_twin.avion, flash=False), "avion/fast-conv1"),
        (avion(64, False, True), functools.partial(public_twin.avion, flash=True), "avion/flash-attn"),
    ],
    ids=["lavila", "avion, released", "avion, fast conv1", "avion, flash"],
)
def test_checkpoint_as_the_training_programs_write_it(state: Arrays, twin: Any, layout: str, tmp_path: Path):
    import torch

    path = tmp_path / "checkpoint_best.pt"
    tensors = {f"module.{name}": torch.from_numpy(array) for name, array in state.items()}
    rest = {
        "epoch": 5,
        "best_acc1": 0.5,
        "optimizer": {"state": {}},
        "args": argparse.Namespace(model="CLIP"),
    }
    torch.save({"state_dict": tensors, **rest}, path)
    clip, ids = inputs()
    wanted = {name: value.detach().numpy() for name, value in twin(twin_tensors(state), clip, ids).items()}
    source = open_source(path)
    found = recognise(source.entries, expect=layout, heads=(TINY.heads, TINY.text_heads))
    plan = plan_load(found.layout, source, param_targets(found.model))
    assert plan.new == {} and plan.ignored == {}
    model, params = DualEncoder(found.model), tree(dict(plan.items()))
    ours = activations(model, params, video=clip) | activations(model, params, ids=ids)
    assert set(wanted) == set(ours) - {"video/stem"}
    for key, array in wanted.items():
        check(f"{layout}, {key}", ours[key], array)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("kind", ["eva02", "clip", "quick"])
def test_another_size_in_f32(kind: str):
    sizes = Tiny(
        width=48,
        depth=3,
        heads=4,
        patch=5,
        image=20,
        embedding=10,
        text_width=20,
        text_depth=2,
        text_heads=2,
        context=8,
        vocabulary=30,
    )
    model = tiny_eva02(sizes) if kind == "eva02" else tiny_clip(kind == "quick", s=sizes)
    state = randomise(model, seed=7)
    rng = np.random.default_rng(8)
    images = rng.integers(0, 256, (2, sizes.image, sizes.image, 3), np.uint8)
    ids = inputs()[1]
    wanted = open_clip_activations(model, images, ids)
    found = recognise(
        state, activation="quick_gelu" if kind == "quick" else None, heads=(sizes.heads, sizes.text_heads)
    )
    assert found.family == ("eva02-clip" if kind == "eva02" else "vit-clip")
    ours = run(found, state, images[:, None], ids)
    assert set(wanted) == set(ours) - {"video/stem"}
    for key, array in wanted.items():
        check(f"{kind}, {key}", ours[key], array, 1e-5)
