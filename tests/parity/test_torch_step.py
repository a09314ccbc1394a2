"""The fast torch step is stvl's train step: the same losses from the same weights, over several updates, in f32."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.models.dual import DualEncoderConfig
from stvl.plan.steps import StepPlan, step_experiment
from stvl.train.experiment import Experiment
from stvl.train.optimizers import AdamW, Schedule
from stvl.train.state import Starter
from stvl.train.step import make_step, put_batch

from .compare import Arrays, TextSizes, VideoSizes, text_weights, token_ids, video_weights
from .mapping import text_tree, video_tree
from .models import text_config, video_config
from .torch_step import Setting, Step, dual_loss, rope_table

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("torch_installed")]

VIDEO = VideoSizes(width=48, depth=2, heads=3, patch=4, image=20, frames=3, embedding=10)
TEXT = TextSizes(width=32, depth=2, heads=4, context=9, vocabulary=49408, embedding=10)
MODEL = DualEncoderConfig(video=video_config(VIDEO), text=text_config(TEXT), embedding=10)
ROWS, UPDATES = 4, 4


@pytest.fixture(params=["own", "timm"])
def blocks(request: pytest.FixtureRequest) -> str:
    """Whose blocks; timm is an optional package."""
    if request.param == "timm":
        pytest.importorskip("timm")
    return request.param


def batches() -> list[Arrays]:
    rng = np.random.default_rng(7)
    shape = (ROWS, VIDEO.frames, VIDEO.image, VIDEO.image, 3)
    return [
        {"video": rng.integers(0, 256, shape, np.uint8), "text": token_ids(TEXT, ROWS, seed)}
        for seed in range(UPDATES)
    ]


def our_losses(weights: tuple[Arrays, Arrays], rate: float) -> list[float]:
    """Losses of the real train step, from the weights of the twin."""
    base = step_experiment("tiny-2f", StepPlan(batch=ROWS))
    loader = dataclasses.replace(base.loader, batch=ROWS, frames=VIDEO.frames)
    size = {
        name: dataclasses.replace(getattr(base, name), size=VIDEO.image)
        for name in ("train_transform", "eval_transform")
    }
    experiment: Experiment = dataclasses.replace(
        base,
        model=MODEL,
        loader=loader,
        tokenizer=dataclasses.replace(base.tokenizer, context_length=TEXT.context),
        optimizer=AdamW(schedule=Schedule(peak=rate, shape="constant")),
        **size,
    )
    starter = Starter(experiment, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    video, text = weights
    params = {"video": video_tree(video, VIDEO.heads, video["time"]), "text": text_tree(text, TEXT.heads)}
    state = starter.start_from(jax.tree.map(jnp.asarray, params))
    step, losses = make_step(starter), []
    for batch in batches():
        state, metrics = step(state, put_batch(batch, starter.mesh))
        losses.append(float(metrics["loss"]))
    return losses


def their_losses(weights: tuple[Arrays, Arrays], setting: Setting) -> list[float]:
    """Losses of the torch step."""
    import torch

    model = dual_loss()(MODEL, VIDEO.frames, setting)
    for tower, arrays in zip((model.video, model.text), weights, strict=True):
        tower.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()}, strict=True)
    step = Step(model, setting)
    return [
        float(step(torch.from_numpy(batch["video"]), torch.from_numpy(batch["text"]).long()))
        for batch in batches()
    ]


@pytest.mark.slow
def test_losses_agree_over_updates(blocks):
    weights = video_weights(VIDEO, seed=21), text_weights(TEXT, seed=22)
    # A rate at which four updates change the loss by much more than the tolerance.
    rate = 3e-3
    ours = our_losses(weights, rate)
    theirs = their_losses(weights, Setting(blocks=blocks, rate=rate))
    still = their_losses(weights, Setting(blocks=blocks, rate=0.0))
    print(ours, theirs, still)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4)
    assert theirs[0] == still[0] and max(abs(a - b) for a, b in zip(theirs[1:], still[1:], strict=True)) > 0.1


@pytest.mark.slow
def test_bfloat16_is_near(blocks):
    weights = video_weights(VIDEO, seed=21), text_weights(TEXT, seed=22)
    exact, near = (their_losses(weights, Setting(d, blocks, rate=0.0)) for d in ("float32", "bfloat16"))
    np.testing.assert_allclose(near, exact, rtol=0.1)
    assert near != exact


@pytest.mark.parametrize("name", ["tiny-2f", "b16-16f", "l14-4f"])
def test_as_many_parameters(name, blocks):
    import torch

    experiment = step_experiment(name, StepPlan())
    starter = Starter(experiment, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    ours = sum(leaf.size for leaf in jax.tree.leaves(starter.abstract.params))
    with torch.device("meta"):
        towers = dual_loss()(experiment.model, experiment.loader.frames, Setting(blocks=blocks))
    assert sum(p.numel() for p in towers.parameters()) == ours


def test_rope_table_is_interleaved():
    scheme = MODEL.video.scheme
    table = rope_table(scheme, 2, VIDEO.side, VIDEO.head)
    angles = scheme.coords(2, VIDEO.side, VIDEO.side) @ scheme.frequencies(VIDEO.head)
    assert table.shape == (2 * VIDEO.side**2, 2 * VIDEO.head)
    np.testing.assert_allclose(table[:, 0 : VIDEO.head : 2], np.sin(angles)[-len(table) :], atol=1e-6)
    np.testing.assert_array_equal(table[:, 0 : VIDEO.head : 2], table[:, 1 : VIDEO.head : 2])
