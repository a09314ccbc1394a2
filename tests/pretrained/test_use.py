"""Video models made from image weights: what a static clip gives, what order of frames matters, and a first step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.models.activations import activations
from stvl.models.dual import DualEncoder
from stvl.train.init import Pretrained
from stvl.train.state import Starter
from stvl.train.step import make_step, put_batch
from tests.fixtures import BATCH, SIZE, random_batch, tiny_experiment
from tests.pretrained.plain_towers import feature
from tests.pretrained.small import TOWERS, clips, model_of, random_tree, write

IMAGES = clips(1, batch=3)[:, 0]


@pytest.fixture(scope="module", params=TOWERS)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """(video config, parameters, weights folder) of a random image model; divided attention's own part is silent."""
    model = model_of(TOWERS[request.param])
    params = random_tree(model, scale=0.2)
    if "time" in params["video"]["stack"]["layers"]:
        out = params["video"]["stack"]["layers"]["time"]["out"]
        out |= {name: jnp.zeros_like(leaf) for name, leaf in out.items()}
    folder = tmp_path_factory.mktemp("image") / "weights"
    write(folder, model, params)
    return model.video, params, folder


def started(folder: Path, tower: Any, frames: int, positions: str | None = None, **changes: Any) -> Starter:
    """A run of `frames` frames that starts from image weights."""
    video = dataclasses.replace(tower, frames=frames)
    init = Pretrained(folder=str(folder))
    if positions is not None:
        video = dataclasses.replace(video, temporal_positions=positions)
        init = dataclasses.replace(init, changed=("video.temporal_positions",))
    made = tiny_experiment("no", "no", model=model_of(video), init=init, mesh=MeshConfig(data=1), **changes)
    made = dataclasses.replace(made, loader=dataclasses.replace(made.loader, frames=frames))
    return Starter(made, make_mesh(made.mesh, jax.devices()[:1]))


def features(starter: Starter, video: np.ndarray) -> np.ndarray:
    params, model = starter.pretrained().params, DualEncoder(starter.experiment.model)
    encode = jax.jit(lambda params, video: model.apply({"params": params}, video, method="encode_video"))
    return np.asarray(encode(params, video))


def test_one_frame_is_the_image(image):
    video, params, folder = image
    found = features(started(folder, video, 1), IMAGES[:, None])
    np.testing.assert_allclose(found, feature(video, params, IMAGES), atol=2e-5)


@pytest.mark.parametrize(
    ("image", "frames"),
    [("EVA02-AT", 4), ("EVA02-AT", 16), ("CLIP ViT", 16), ("TimeSformer", 4)],
    indirect=["image"],
)
def test_a_static_clip_is_the_image_whose_patches_count_t_times(image, frames):
    """Exactly what the design says; it is not the image itself, for the class token is there once and not T times."""
    video, params, folder = image
    starter = started(folder, video, frames)
    static = np.repeat(IMAGES[:, None], frames, axis=1)
    found = features(starter, static)
    np.testing.assert_allclose(found, feature(video, params, IMAGES, copies=frames), atol=2e-5)
    alone = feature(video, params, IMAGES)
    cosine = (found * alone).sum(-1).min()
    assert 0.9 < cosine < 0.99999
    kept = activations(
        DualEncoder(starter.experiment.model), starter.pretrained().params, jnp.asarray(static)
    )
    for block in range(video.depth):
        tokens = kept[f"video/blocks/{block}"][:, 1:].reshape(len(IMAGES), frames, -1, video.width)
        np.testing.assert_allclose(tokens, np.repeat(tokens[:, :1], frames, axis=1), atol=1e-5)


def test_without_time_the_order_of_frames_is_no_matter(image):
    video, _, folder = image
    starter = started(folder, video, 4)
    moving = clips(4, batch=3, seed=1)
    forward, backward = features(starter, moving), features(starter, moving[:, ::-1])
    np.testing.assert_allclose(forward, backward, atol=2e-5)
    # It does look at all frames.
    assert np.abs(forward - features(starter, moving[:, [0, 0, 0, 0]])).max() > 1e-2


@pytest.mark.parametrize("frames", [4, 16])
@pytest.mark.parametrize("image", ["EVA02-AT"], indirect=True)
def test_st_rope_sees_time_from_the_first_step(image, frames):
    video, params, folder = image
    starter = started(folder, video, frames, positions="both")
    static = features(starter, np.repeat(IMAGES[:, None], frames, axis=1))
    cosine = (static * feature(video, params, IMAGES)).sum(-1)
    assert cosine.min() > 0.8
    # With angles in time, the frames of a static clip stand apart, so it is not the design without them.
    assert np.abs(static - feature(video, params, IMAGES, copies=frames)).max() > 1e-4
    moving = clips(frames, batch=3, seed=1)
    # Ten times what rounding was allowed to make of it above.
    assert np.abs(features(starter, moving) - features(starter, moving[:, ::-1])).max() > 2e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "frames"),
    [("EVA02-AT", 4), ("EVA02-AT", 16), ("CLIP ViT", 4), ("TimeSformer", 4)],
    indirect=["image"],
)
def test_the_first_step_in_bfloat16_is_finite(image, frames):
    video, _, folder = image
    positions = "both" if hasattr(video, "rope") else None
    starter = started(folder, video, frames, positions=positions, dtype="bfloat16")
    batch = put_batch(random_batch(0, BATCH, frames, SIZE), starter.mesh)
    state = starter.start()
    before = np.asarray(state.params["video"]["projection"]["kernel"])
    state, metrics = make_step(starter)(state, batch)
    assert all(np.isfinite(float(value)) for value in metrics.values())
    assert float(metrics["grad_norm"]) > 0
    table = np.asarray(state.params["video"]["positions"]["time"])
    assert table.shape == (frames, 32) and np.isfinite(table).all()
    # The learning rate of the first step is that of the warm-up's start.
    assert np.abs(np.asarray(state.params["video"]["projection"]["kernel"]) - before).max() < 1e-3
