"""Trained towers as an evaluation sees them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.errors import ConfigError, TrainingError
from stvl.eval.encoders import Encoders, described
from stvl.train.encoders import ModelEncoders, load_run, weights_sha256
from tests.fixtures import CONTEXT, SIZE, TrainedRun, leaves, random_batch


@pytest.fixture(scope="module")
def encoders(tiny_run: TrainedRun) -> ModelEncoders:
    return load_run(tiny_run.folder)


def test_a_run_answers_the_protocol(encoders):
    assert isinstance(encoders, Encoders)
    card = described(encoders)
    assert (card["positions"], card["dtype"], card["model"]) == ("both", "float32", "EVA02-AT 32x2, patch 8")
    assert (encoders.frames, encoders.size, encoders.width) == (2, SIZE, 16)


def test_features_are_unit_vectors(encoders):
    clips = np.random.default_rng(0).integers(0, 256, (3, 2, SIZE, SIZE, 3), np.uint8)
    texts = encoders.tokenizer(["a red ball", "a blue square"])
    assert texts.shape == (2, CONTEXT)
    for found in (encoders.video(clips), encoders.text(texts)):
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.abs(encoders.video(clips)[0] - encoders.video(clips[:, ::-1])[0]).max() > 1e-4


def test_the_average_is_used_where_there_is_one(tiny_run, encoders, monkeypatch):
    from stvl.train.state import TrainState

    averaged = leaves(encoders.params)
    monkeypatch.setattr(TrainState, "best_params", property(lambda self: self.params))
    last = leaves(load_run(tiny_run.folder).params)
    assert any(not np.array_equal(averaged[name], last[name]) for name in averaged)


def test_an_older_checkpoint_and_another_length_can_be_asked_for(tiny_run, encoders):
    older = load_run(tiny_run.folder, step=4, frames=5)
    assert older.frames == 5
    assert weights_sha256(older.params) != weights_sha256(encoders.params)
    with pytest.raises(TrainingError, match=r"holds no checkpoint of step 5 \(there are: 4, 6\)"):
        load_run(tiny_run.folder, step=5)
    with pytest.raises(ConfigError, match="frames is at least 1, found 0"):
        load_run(tiny_run.folder, frames=0)


def test_the_hash_sees_names_shapes_and_values_and_no_order():
    one = {"a": jnp.arange(4.0), "b": {"c": jnp.ones(2)}}
    assert weights_sha256(one) == weights_sha256({"b": {"c": jnp.ones(2)}, "a": jnp.arange(4.0)})
    others = [{**one, "a": jnp.arange(4.0).reshape(2, 2)}, {**one, "a": jnp.arange(4.0) + 1e-6}]
    others.append({"x": jnp.arange(4.0), "b": one["b"]})
    assert len({weights_sha256(tree) for tree in [one, *others]}) == 4


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(TrainingError, match="holds no finished checkpoint"):
        load_run(tmp_path)


def test_eight_devices_embed_as_one(tiny_run: TrainedRun):
    one = load_run(tiny_run.folder)
    all_ = ModelEncoders(one.experiment, one.params, devices=jax.local_devices())
    clips = random_batch(3, batch=11)["video"]
    assert one.mesh.size == 1 and all_.mesh.size == 8
    # Eleven clips are no multiple of eight devices.
    np.testing.assert_allclose(all_.video(clips), one.video(clips), atol=2e-6)
    ids = random_batch(4)["text"]
    np.testing.assert_allclose(all_.text(ids), one.text(ids), atol=2e-6)
    assert all_.weights_sha256 == one.weights_sha256
