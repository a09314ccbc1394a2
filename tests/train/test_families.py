"""One step of training and the card of each family of video towers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from stvl.core.config import from_dict, to_dict
from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.models.dual import VideoConfig
from stvl.models.eva02_at.module import EVA02ATConfig
from stvl.models.flops import train_flops
from stvl.models.timesformer.module import TimeSformerConfig
from stvl.models.vit.module import ViTConfig
from stvl.rope.schemes import Split3DRope
from stvl.train.encoders import ModelEncoders
from stvl.train.state import Starter
from stvl.train.step import make_step, put_batch
from tests.fixtures import FRAMES, PATCH, SIZE, leaves, random_batch, shrunk_model, tiny_experiment

SIZES: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "patch": PATCH, "image_size": SIZE}
FAMILIES: dict[str, VideoConfig] = {
    "eva02-clip": EVA02ATConfig(**SIZES, frames=FRAMES, projection_bias=True, rope=Split3DRope()),
    "vit": ViTConfig(**SIZES, frames=FRAMES, activation="quick_gelu", drop_path=0.1),
    "timesformer": TimeSformerConfig(**SIZES, frames=FRAMES, remat="full", drop_path=0.1),
}


def experiment(name: str, **changes: Any) -> Any:
    model = dataclasses.replace(shrunk_model(), video=FAMILIES[name], temperature=0.07)
    return tiny_experiment("no", model=model, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_moves_every_parameter(name: str):
    made = experiment(name, ema=None)
    starter = Starter(made, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    state, step = starter.start(), make_step(starter)
    start = {path: leaf.copy() for path, leaf in leaves(state.params).items()}
    # What stands before a silent layer has a gradient as soon as that layer has moved.
    for seed in range(4):
        state, metrics = step(state, put_batch(random_batch(seed), starter.mesh))
        assert np.isfinite(float(metrics["loss"]))
    still = [path for path, leaf in leaves(state.params).items() if np.array_equal(leaf, start[path])]
    assert still == []
    card = ModelEncoders(made, state.params).describe()
    assert card["model"] == f"{made.model.video.title}"
    assert card["positions"] == made.model.video.temporal_positions
    assert train_flops(made.model, FRAMES, 12, 8) > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_the_experiment_comes_back_from_json(name: str):
    made = experiment(name)
    assert from_dict(to_dict(made)) == made


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_of_every_family_split_over_a_mesh(name: str):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    starter = Starter(experiment(name), mesh)
    whole = [
        path
        for path, sharding in jax.tree.leaves_with_path(starter.shardings.params["video"]["stack"])
        if "kernel" in jax.tree_util.keystr(path) and sharding.is_fully_replicated
    ]
    assert whole == []
