"""Weights folders: what is written comes back, damage is named, and nothing is left of what failed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from stvl.core.errors import ConfigError, WeightsError
from stvl.data.augment import EvalTransform
from stvl.data.text import ClipTokenizer
from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.dist.params import param_shardings
from stvl.models.dual import DualEncoder
from stvl.pretrained.folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Contents,
    abstract_params,
    flat,
    items_of,
    nested,
    open_folder,
    param_targets,
    write_folder,
)
from stvl.weights.source import Entry
from tests.fixtures import CONTEXT, SIZE, same, shrunk_model

MODEL = shrunk_model()
CONTENTS = Contents(
    model=MODEL,
    tokenizer=ClipTokenizer(context_length=CONTEXT),
    transform=EvalTransform(size=SIZE, resize="squash", kernel="bilinear"),
    frames=2,
    facts={"family": "made up", "source": {"name": "x.safetensors", "sha256": "0" * 64}},
)


@pytest.fixture(scope="module")
def params() -> Any:
    rng = np.random.default_rng(0)
    shapes = param_targets(MODEL)
    return nested({path: rng.standard_normal(item.shape).astype(np.float32) for path, item in shapes.items()})


@pytest.fixture
def made(params: Any, tmp_path: Path) -> Path:
    return write_folder(tmp_path / "w", CONTENTS, items_of(params)).path


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG_FILE).read_text())


def change_config(folder: Path, **fields: Any) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps(config_of(folder) | fields))


def test_targets_are_the_parameters_of_a_real_initialisation():
    model = DualEncoder(MODEL)
    video, ids = jnp.zeros((1, 2, SIZE, SIZE, 3), jnp.uint8), jnp.zeros((1, CONTEXT), jnp.int32)
    real = flat(nn.unbox(jax.jit(model.init)(jax.random.key(0), video, ids))["params"])
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in real.items()} == {
        path: (item.shape, item.dtype) for path, item in param_targets(MODEL).items()
    }


def test_what_is_written_comes_back(made, params):
    folder = open_folder(made)
    same(folder.load(), params)
    assert (folder.model, folder.tokenizer, folder.transform, folder.frames) == (
        CONTENTS.model,
        CONTENTS.tokenizer,
        CONTENTS.transform,
        2,
    )
    assert folder.facts["family"] == "made up"
    assert folder.facts["source"] == CONTENTS.facts["source"]
    assert sorted(path.name for path in made.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert [path.name for path in made.parent.iterdir()] == ["w"]
    folder.verify()


def test_the_config_is_plain_json_that_a_person_can_read(made):
    data = config_of(made)
    assert data["format"] == "stvl-weights" and data["version"] == 1
    assert data["model"]["type"] == "DualEncoderConfig"
    assert data["model"]["video"]["width"] == 32
    assert data["transform"] == {
        "type": "EvalTransform",
        "size": 16,
        "resize": "squash",
        "kernel": "bilinear",
    }
    assert data["weights"]["parameters"] == sum(
        leaf.size for leaf in jax.tree.leaves(open_folder(made).load())
    )


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_stored_dtypes_come_back_exactly_and_load_as_asked(kind, params, tmp_path):
    folder = write_folder(tmp_path / "w", CONTENTS, items_of(params, kind))
    assert {str(entry.dtype) for entry in folder.entries.values()} == {str(np.dtype(kind))}
    rounded = jax.tree.map(lambda leaf: leaf.astype(kind), params)
    same(folder.load(dtype=kind), rounded)
    same(folder.load(), jax.tree.map(lambda leaf: leaf.astype(np.float32), rounded))


def test_parameters_are_placed_straight_into_a_sharding(made, params):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = param_shardings(abstract_params(MODEL, boxed=True), mesh)
    loaded = open_folder(made).load(dtype=jnp.bfloat16, shardings=shardings)
    kernel = loaded["video"]["stack"]["layers"]["mlp"]["out"]["kernel"]
    assert kernel.sharding == shardings["video"]["stack"]["layers"]["mlp"]["out"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert not kernel.is_fully_replicated
    same(loaded, jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), params))


def test_one_sharding_serves_all_and_a_missing_one_is_named(made):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    loaded = open_folder(made).load(shardings=one)
    assert {leaf.sharding for leaf in jax.tree.leaves(loaded)} == {one}
    with pytest.raises(WeightsError, match="no sharding for text/norm/bias"):
        open_folder(made).load(shardings={"video": {}})


def test_loaded_parameters_run(made):
    folder = open_folder(made)
    video, ids = jnp.zeros((1, 2, SIZE, SIZE, 3), jnp.uint8), jnp.asarray(folder.tokenizer(["a cup"]))
    features = DualEncoder(folder.model).apply({"params": folder.load()}, video, ids)
    assert features.video.shape == (1, 16)
    assert bool(jnp.isfinite(features.text).all())


def test_one_parameter_by_name(made, params):
    folder = open_folder(made)
    np.testing.assert_array_equal(folder.read("video/class_token"), params["video"]["class_token"])
    with pytest.raises(
        WeightsError, match=r"no parameter 'video/class_tokn' \(did you mean 'video/class_token'"
    ):
        folder.read("video/class_tokn")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"version": 2}, "format version 2, this stvl reads 1"),
        ({"format": "other"}, "its format is not 'stvl-weights'"),
        ({"model": {"type": "Nothing"}}, "unknown config type 'Nothing'"),
        ({"model": {"type": "EvalTransform"}}, "model is a EvalTransform, expected a DualEncoderConfig"),
        ({"frames": 0}, "frames is at least 1, found 0"),
        ({"frames": "two"}, "describes no model"),
        (
            {"transform": {"type": "EvalTransform", "size": 32}},
            "transform.size is 32, the model takes frames of 16",
        ),
        ({"tokenizer": {"type": "ClipTokenizer", "context_length": 99}}, "model.text.context is only 12"),
    ],
)
@pytest.mark.usefixtures("as_installed")
def test_a_config_that_cannot_be_used_is_refused(made, fields, said):
    change_config(made, **fields)
    with pytest.raises(WeightsError, match=said):
        open_folder(made)


def test_missing_and_damaged_files_are_named(made, tmp_path):
    with pytest.raises(WeightsError, match="nothing is no folder; `stvl convert SRC --out DIR`"):
        open_folder(tmp_path / "nothing")
    text = (made / CONFIG_FILE).read_text()
    (made / CONFIG_FILE).write_text(text[:-5])
    with pytest.raises(WeightsError, match=r"config\.json is no JSON"):
        open_folder(made)
    (made / CONFIG_FILE).unlink()
    with pytest.raises(WeightsError, match=r"no weights folder: it has no config\.json"):
        open_folder(made)
    (made / CONFIG_FILE).write_text(text)
    (made / WEIGHTS_FILE).write_bytes((made / WEIGHTS_FILE).read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        open_folder(made)
    (made / WEIGHTS_FILE).unlink()
    with pytest.raises(WeightsError, match=r"it has no model\.safetensors"):
        open_folder(made)


def test_parameters_of_another_model_are_listed_on_both_sides(made):
    model = config_of(made)["model"]
    video = model["video"] | {"temporal_positions": "rope", "projection_bias": True, "depth": 3}
    change_config(made, model=model | {"video": video})
    with pytest.raises(WeightsError, match=r"does not hold the model of config\.json") as caught:
        open_folder(made)
    text = str(caught.value)
    assert "only in the file:\n    video/positions/time\n" in text
    assert "missing in the file:\n    video/projection/bias\n" in text
    assert "video/stack/layers/attention/value/bias (2, 2, 16), the config says (3, 2, 16)" in text
    assert "... and " in text


def test_a_changed_byte_is_found_when_asked_and_nan_when_loaded(made, params, tmp_path):
    data = bytearray((made / WEIGHTS_FILE).read_bytes())
    data[-1] ^= 1
    (made / WEIGHTS_FILE).write_bytes(data)
    with pytest.raises(WeightsError, match="is not the expected file: its SHA-256 is"):
        open_folder(made).verify()
    changed = flat(params) | {"video/class_token": np.full(32, np.nan, np.float32)}
    folder = write_folder(tmp_path / "nan", CONTENTS, items_of(nested(changed)))
    with pytest.raises(WeightsError, match="video/class_token holds NaN"):
        folder.load()


def test_what_fails_while_writing_leaves_nothing_not_even_parents(params, tmp_path):
    def broken():
        raise WeightsError("the disk is gone")

    items = list(items_of(params))
    items[5] = (items[5][0], items[5][1], broken)
    with pytest.raises(WeightsError, match="the disk is gone"):
        write_folder(tmp_path / "a/b/w", CONTENTS, items)
    assert list(tmp_path.iterdir()) == []


def test_parameters_have_to_be_complete_before_anything_is_written(params, tmp_path):
    items = [item for item in items_of(params) if item[0] != "text/tokens"]
    with pytest.raises(WeightsError, match="missing in the file:\n    text/tokens"):
        write_folder(tmp_path / "w", CONTENTS, items)
    wrong = [
        *items,
        ("text/tokens", Entry((3, 16), np.dtype("float32")), lambda: np.zeros((3, 16), np.float32)),
    ]
    with pytest.raises(WeightsError, match=r"text/tokens \(3, 16\), the config says \(49408, 16\)"):
        write_folder(tmp_path / "w", CONTENTS, wrong)
    counts = [
        *items,
        ("text/tokens", Entry((49408, 16), np.dtype("int32")), lambda: np.zeros((49408, 16), np.int32)),
    ]
    with pytest.raises(WeightsError, match="of a dtype that no parameter has:\n    text/tokens int32"):
        write_folder(tmp_path / "w", CONTENTS, counts)
    assert list(tmp_path.iterdir()) == []


def test_only_weights_folders_are_replaced_and_only_when_asked(made, params, tmp_path):
    with pytest.raises(
        WeightsError, match="is a weights folder already: choose another --out, or add --overwrite"
    ):
        write_folder(made, CONTENTS, items_of(params))
    other = tmp_path / "photos"
    other.mkdir()
    write_folder(other, CONTENTS, items_of(params))  # an empty folder holds nothing to lose
    (other / WEIGHTS_FILE).unlink()
    with pytest.raises(WeightsError, match="exists and is no weights folder, so it is not replaced"):
        write_folder(other, CONTENTS, items_of(params), overwrite=True)
    (tmp_path / "file").write_text("text")
    with pytest.raises(WeightsError, match="exists and is no weights folder"):
        write_folder(tmp_path / "file", CONTENTS, items_of(params), overwrite=True)
    once = dataclasses.replace(CONTENTS, frames=7)
    assert write_folder(made, once, items_of(params), overwrite=True).frames == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos", "w"]


def test_a_failed_replacement_keeps_the_old_folder(made, params):
    def broken():
        raise WeightsError("the disk is gone")

    items = list(items_of(params))
    items[-1] = (*items[-1][:2], broken)
    with pytest.raises(WeightsError, match="the disk is gone"):
        write_folder(made, CONTENTS, items, overwrite=True)
    same(open_folder(made).load(), params)
    assert [path.name for path in made.parent.iterdir()] == ["w"]


@pytest.mark.usefixtures("as_installed")
def test_contents_have_to_fit_each_other():
    with pytest.raises(
        ConfigError, match=r"the tokenizer has 49408 ids, model\.text\.vocabulary is only 100"
    ):
        text = dataclasses.replace(MODEL.text, vocabulary=100)
        dataclasses.replace(CONTENTS, model=dataclasses.replace(MODEL, text=text))
