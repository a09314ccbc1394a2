"""Encoders of a weights folder: every family, every card, and the same numbers as the model itself."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.errors import ConfigError, WeightsError
from stvl.eval.encoders import Encoders, described
from stvl.models.dual import DualEncoder
from stvl.pretrained.encoders import DualEncoders, load_weights, weights_sha256
from stvl.pretrained.folder import Contents
from tests.fixtures import CONTEXT, SIZE, leaves, same
from tests.pretrained.small import TOWERS, clips, model_of, random_tree, write


@pytest.fixture(scope="module", params=TOWERS)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict]:
    model = model_of(TOWERS[request.param])
    params = random_tree(model)
    folder = tmp_path_factory.mktemp("weights") / "image"
    write(folder, model, params)
    return request.param, folder, params


def test_a_folder_answers_the_protocol(family):
    name, folder, params = family
    encoders = load_weights(folder)
    assert isinstance(encoders, Encoders)
    same(encoders.params, params)
    card = described(encoders)
    assert card["model"] == f"{name} 32x2, patch 8"
    assert (card["positions"], card["dtype"], card["video"]["depth"]) == ("learned", "float32", 2)
    assert card["weights_sha256"] == weights_sha256(params)
    assert card["source"] == {"name": "a.safetensors", "sha256": "ab" * 32, "layout": "small/own"}
    assert len(card["weights_file_sha256"]) == 64
    assert "P_t" not in card
    assert json.loads(json.dumps(card)) == card
    assert (encoders.frames, encoders.size, encoders.width) == (1, SIZE, 16)


def test_features_are_those_of_the_model(family):
    _, folder, params = family
    encoders = load_weights(folder)
    model = DualEncoder(encoders.contents.model)
    ids = encoders.tokenizer(["a red ball", "a blue square"])
    assert ids.shape == (2, CONTEXT)
    for found, method, inputs in (
        (encoders.video(clips(1)), "encode_video", clips(1)),
        (encoders.text(ids), "encode_text", ids),
    ):
        wanted = model.apply({"params": params}, jnp.asarray(inputs), method=method)
        np.testing.assert_allclose(found, np.asarray(wanted), atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_the_sources_own_preprocessing_is_used(family):
    _, folder, _ = family
    frame = np.zeros((1, SIZE, 4 * SIZE, 3), np.uint8)
    frame[:, :, : SIZE // 2] = 255  # A centre crop would not see it, squashing does.
    assert load_weights(folder).transform(frame).max() == 255


def test_another_number_of_frames_says_how_positions_came(family):
    _, folder, _ = family
    encoders = load_weights(folder, frames=3)
    assert encoders.frames == 3
    assert encoders.describe()["P_t"] == "table of 1 rows, resampled linearly to 3 frames"
    assert encoders.video(clips(3)).shape == (2, 16)
    with pytest.raises(ConfigError, match="frames is at least 1, found 0"):
        load_weights(folder, frames=0)


def test_rotary_positions_have_no_table():
    model = model_of(TOWERS["EVA02-AT"], temporal_positions="rope")
    made = load(model, frames=5)
    assert made.describe()["positions"] == "rope"
    assert made.describe()["video"]["rope"]["type"] == "STRope"
    assert "P_t" not in made.describe()


def load(model, frames: int) -> DualEncoders:
    from stvl.data.augment import EvalTransform
    from stvl.data.text import ClipTokenizer

    contents = Contents(model, ClipTokenizer(context_length=CONTEXT), EvalTransform(size=SIZE), frames)
    return DualEncoders(contents, random_tree(model))


def test_the_hash_follows_the_parameters():
    model = model_of(TOWERS["CLIP ViT"])
    encoders = load(model, 1)
    first = encoders.weights_sha256
    assert first == encoders.weights_sha256 == encoders.describe()["weights_sha256"]
    encoders.params = random_tree(model, seed=1)
    assert encoders.weights_sha256 == weights_sha256(encoders.params) != first


def test_compute_in_bfloat16(family):
    _, folder, _ = family
    encoders = load_weights(folder, dtype="bfloat16")
    assert encoders.describe()["dtype"] == "bfloat16"
    assert {leaf.dtype for leaf in leaves(encoders.params).values()} == {np.dtype(np.float32)}
    exact, rough = load_weights(folder).video(clips(1)), encoders.video(clips(1))
    assert 0 < np.abs(exact - rough).max() < 0.2


def test_a_folder_of_nothing(tmp_path):
    with pytest.raises(WeightsError, match=r"it has no config\.json; `stvl convert SRC --out DIR` makes one"):
        load_weights(tmp_path)
