"""From checkpoints to weights folders: what is taken, resized, dropped, drawn anew, and refused."""

from __future__ import annotations

import dataclasses
import hashlib
import tracemalloc
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from stvl.core.errors import ConfigError, WeightsError
from stvl.models.dual import DualEncoder
from stvl.models.presets import preset
from stvl.nn.positions import resample_matrix
from stvl.pretrained.convert import ConvertOptions, Report, convert, init_leaves
from stvl.pretrained.folder import WeightsFolder, flat, items_of, write_folder
from tests.pretrained import twins
from tests.pretrained.twins import (
    DEPTH,
    EMBEDDING,
    SIDE,
    SIZE,
    TEXT_WIDTH,
    WIDTH,
    State,
    eva02_shapes,
    save,
    state,
    vit_shapes,
)

TRUNK = "visual.trunk."


@pytest.fixture(scope="module")
def eva() -> State:
    return state(eva02_shapes())


@pytest.fixture(scope="module")
def eva_file(eva: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return save(tmp_path_factory.mktemp("eva") / "eva02.safetensors", eva)


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return save(tmp_path_factory.mktemp("vit") / "vit.safetensors", state(vit_shapes()))


def done(src: Path, out: Path, **options: Any) -> tuple[WeightsFolder, dict[str, np.ndarray], Report]:
    """The folder, its parameters as stored, and the report."""
    report = convert(src, out, ConvertOptions(**options))
    assert report.folder is not None
    arrays = {path: report.folder.read(path) for path in report.folder.entries}
    return report.folder, arrays, report


def test_an_image_checkpoint_becomes_a_folder_of_the_same_numbers(eva, eva_file, tmp_path):
    folder, arrays, report = done(eva_file, tmp_path / "w")
    assert folder.frames == 1 and folder.transform.size == SIZE
    assert (folder.model.video.width, folder.model.video.depth, folder.model.embedding) == (
        WIDTH,
        DEPTH,
        EMBEDDING,
    )
    assert report.new == {} and report.resized == {}
    assert list(report.ignored) == [f"{TRUNK}rope.bands"]
    kernel = eva[f"{TRUNK}patch_embed.proj.weight"]
    np.testing.assert_array_equal(
        arrays["video/stem/kernel"][0], np.moveaxis(kernel, (2, 3, 1, 0), (0, 1, 2, 3))
    )
    table = eva[f"{TRUNK}pos_embed"][0]
    np.testing.assert_array_equal(arrays["video/class_position"], table[0])
    np.testing.assert_array_equal(arrays["video/positions/space"], table[1:])
    gates = np.stack([eva[f"{TRUNK}blocks.{i}.mlp.fc1_g.weight"].T for i in range(DEPTH)])
    np.testing.assert_array_equal(arrays["video/stack/layers/mlp/gate/kernel"], gates)
    fused = eva["text.transformer.resblocks.1.attn.in_proj_weight"]
    values = arrays["text/stack/layers/attention/value/kernel"][1].reshape(TEXT_WIDTH, TEXT_WIDTH)
    np.testing.assert_array_equal(values, fused[2 * TEXT_WIDTH :].T)


def test_the_config_says_where_it_came_from(eva_file, tmp_path):
    folder, _, report = done(eva_file, tmp_path / "w")
    source = folder.facts["source"]
    assert source["sha256"] == hashlib.sha256(eva_file.read_bytes()).hexdigest() == report.sha256
    assert (source["name"], source["layout"]) == ("eva02.safetensors", "eva02-clip/open_clip")
    assert source["tensors"] == len(eva02_shapes())
    assert folder.facts["notes"]["ignored"] == dict(report.ignored)
    assert str(eva_file.parent) not in (tmp_path / "w/config.json").read_text()


def test_frames_make_a_video_model_that_starts_as_the_image_model(eva_file, tmp_path):
    image, _, _ = done(eva_file, tmp_path / "image")
    video, arrays, report = done(eva_file, tmp_path / "video", frames=4)
    assert video.frames == video.model.video.frames == 4
    assert video.model.video.temporal_positions == "both"
    assert set(report.new) == {"video/positions/time"}
    np.testing.assert_array_equal(arrays["video/positions/time"], np.zeros((4, WIDTH)))
    frame = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 1, SIZE, SIZE, 3), np.uint8))
    one, other = (
        DualEncoder(item.model).apply({"params": item.load()}, frame, method="encode_video")
        for item in (image, video)
    )
    np.testing.assert_allclose(one, other, atol=2e-7)


@pytest.mark.parametrize(
    ("positions", "table"), [("learned", True), ("rope", False), ("none", False), ("both", True)]
)
def test_positions_are_chosen(positions, table, eva_file):
    report = convert(eva_file, None, ConvertOptions(frames=4, positions=positions), dry_run=True)
    assert report.contents.model.video.temporal_positions == positions
    assert ("video/positions/time" in report.new) is table


def test_a_plain_vit_learns_its_temporal_positions(vit_file):
    report = convert(vit_file, None, ConvertOptions(frames=8), dry_run=True)
    assert report.contents.model.video.temporal_positions == "learned"
    assert set(report.new) == {"video/positions/time"}
    with pytest.raises(ConfigError, match="ViTConfig has no rotary positions"):
        convert(vit_file, None, ConvertOptions(frames=8, positions="rope"), dry_run=True)
    with pytest.raises(ConfigError, match="ViTConfig has no tube"):
        convert(vit_file, None, ConvertOptions(frames=8, tube=2), dry_run=True)


def test_another_size_resamples_places_and_nothing_else(eva_file, tmp_path):
    _, small, _ = done(eva_file, tmp_path / "small")
    folder, large, report = done(eva_file, tmp_path / "large", size=2 * SIZE)
    assert folder.transform.size == folder.model.video.image_size == 2 * SIZE
    assert set(report.resized) == {"video/positions/space"}
    assert large["video/positions/space"].shape == (4 * SIDE**2, WIDTH)
    assert [path for path in small if path not in report.resized and (small[path] != large[path]).any()] == []
    assert report.notes[-1] == (
        "rotary angles are computed for 8 x 8 places, rescaled to the reference grid of 16: there is nothing to resize"
    )


def test_st_rope_covers_the_same_span_at_every_size():
    rope = preset("eva02-at/b16").video.rope
    for side in (7, 14, 24):
        coords = rope.coords(2, side, side, prefix=1)[1:].reshape(2, side, side, 3)
        # Whatever the number of places is, a step of one whole image side is 16 in y and x, and a frame is 1 in t.
        np.testing.assert_allclose(np.diff(coords[..., 1], axis=1) * side, 16)
        np.testing.assert_allclose(np.diff(coords[..., 2], axis=2) * side, 16)
        np.testing.assert_allclose(np.diff(coords[..., 0], axis=0), 1)


def test_a_constant_survives_every_resize(eva, tmp_path):
    flat_eva = dict(eva)
    table, kernel = f"{TRUNK}pos_embed", f"{TRUNK}patch_embed.proj.weight"
    flat_eva[table] = np.broadcast_to(np.float32(0.5), eva[table].shape)
    flat_eva[kernel] = np.broadcast_to(np.float32(0.25), eva[kernel].shape)
    src = save(tmp_path / "flat.safetensors", flat_eva)
    _, arrays, report = done(src, tmp_path / "w", size=80, patch=16, tube=2, frames=4, context=20)
    np.testing.assert_allclose(arrays["video/positions/space"], np.full((25, WIDTH), 0.5), rtol=1e-6)
    # The answer of a constant kernel to a constant image stays what it was: its sum is kept.
    assert arrays["video/stem/kernel"].shape == (2, 16, 16, 3, WIDTH)
    np.testing.assert_allclose(arrays["video/stem/kernel"].sum((0, 1, 2)), np.full((3, WIDTH), 36), rtol=1e-3)
    np.testing.assert_array_equal(arrays["text/positions"], eva["text.positional_embedding"][:20])
    assert arrays["video/positions/time"].shape == (2, WIDTH)
    assert set(report.resized) == {"video/positions/space", "video/stem/kernel", "text/positions"}
    assert report.contents.tokenizer.context_length == 20


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"size": 50}, ConfigError, "image_size 50 is no multiple of patch 12"),
        ({"frames": 0}, ConfigError, "frames is at least 1, found 0"),
        ({"frames": 3, "tube": 2}, ConfigError, "3 frames cannot be cut into tubes of 2"),
        ({"context": 33}, WeightsError, "33"),
        (
            {"preset": "eva02-at/tini"},
            ConfigError,
            r"unknown preset 'eva02-at/tini' \(did you mean 'eva02-at/tiny'",
        ),
        ({"sha256": "abc"}, WeightsError, "a SHA-256 is 64 hexadecimal digits, found 'abc'"),
        ({"sha256": "0" * 64}, WeightsError, "is not the expected file: its SHA-256 is"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error, said, eva_file, tmp_path):
    with pytest.raises(error, match=said):
        convert(eva_file, tmp_path / "w", ConvertOptions(**options))
    assert list(tmp_path.iterdir()) == []


def test_the_hash_that_fits_is_accepted(eva_file):
    digest = hashlib.sha256(eva_file.read_bytes()).hexdigest()
    assert convert(eva_file, None, ConvertOptions(sha256=digest.upper()), dry_run=True).sha256 == digest


def test_dtypes(eva, eva_file, tmp_path):
    narrow, arrays, _ = done(eva_file, tmp_path / "bf16", dtype="bfloat16")
    assert {str(entry.dtype) for entry in narrow.entries.values()} == {"bfloat16"}
    tokens = eva["text.token_embedding.weight"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(arrays["text/tokens"], tokens)
    half = save(tmp_path / "half.safetensors", state(eva02_shapes(), np.float16))
    kept, _, _ = done(half, tmp_path / "kept", dtype="source")
    assert {path for path, entry in kept.entries.items() if entry.dtype == np.float32} == {"log_scale"}
    widened, arrays, _ = done(half, tmp_path / "wide")
    assert {str(entry.dtype) for entry in widened.entries.values()} == {"float32"}
    np.testing.assert_array_equal(arrays["text/tokens"], kept.read("text/tokens").astype(np.float32))


def test_another_shared_space_drops_the_projections_and_draws_them_from_the_seed(eva_file, tmp_path):
    folder, arrays, report = done(eva_file, tmp_path / "w", embedding=16, seed=3)
    names = {"video/projection/kernel", "video/projection/bias", "text/projection/kernel"}
    assert set(report.new) == names
    assert set(folder.facts["notes"]["dropped"]) == names
    assert all("the shared space is 16 wide, the source's 64" in why for why in report.new.values())
    whole = whole_init(folder.model, 3)
    for name in names:
        np.testing.assert_array_equal(arrays[name], whole[name])
    assert arrays["video/projection/kernel"].std() > 0
    _, other, _ = done(eva_file, tmp_path / "other", embedding=16, seed=4)
    assert (other["video/projection/kernel"] != arrays["video/projection/kernel"]).any()


def whole_init(model: Any, seed: int) -> dict[str, np.ndarray]:
    video = jnp.zeros((1, 1, model.video.image_size, model.video.image_size, 3), jnp.uint8)
    ids = jnp.zeros((1, model.text.context), jnp.int32)
    made = jax.jit(DualEncoder(model).init)(jax.random.key(seed), video, ids)["params"]
    return {path: np.asarray(leaf) for path, leaf in flat(nn.unbox(made)).items()}


def test_no_leaf_is_drawn_where_none_is_new():
    assert init_leaves(preset("eva02-at/tiny"), (), 0) == {}


def test_a_preset_gives_the_sizes_that_no_file_tells(eva_file):
    report = convert(eva_file, None, ConvertOptions(preset="eva02-at/tiny"), dry_run=True)
    model = report.contents.model
    assert dataclasses.replace(
        model, video=dataclasses.replace(model.video, projection_bias=False)
    ) == preset("eva02-at/tiny")
    # Heads leave no trace in shapes: the preset has two, width / 64 would be one.
    assert model.text.heads == 2
    assert report.contents.frames == 4
    assert report.ignored["logit_scale"] == "dropped: the model has no learnable temperature"
    same = convert(eva_file, None, ConvertOptions(heads=(2, 2)), dry_run=True)
    assert same.contents.model.text.heads == 2


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("eva02-at/b16", ["video.width is 128, the preset's 768", "text.depth is 2, the preset's 12"]),
        ("vit-clip/tiny", ["the video tower is EVA02ATConfig, the preset's ViTConfig"]),
    ],
)
def test_a_preset_of_another_model_is_refused_with_both_names(name, rows, eva_file, tmp_path):
    with pytest.raises(
        WeightsError, match=rf"this is EVA02 of width 128.*eva02-clip/open_clip.*, not {name}:"
    ) as caught:
        convert(eva_file, tmp_path / "w", ConvertOptions(preset=name))
    assert all(row in str(caught.value) for row in rows)
    assert "presets that fit: eva02-at/tiny, eva02-clip/tiny" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def trained(folder: WeightsFolder, out: Path) -> WeightsFolder:
    """A folder whose P_t is no longer zero."""
    params = {path: folder.read(path) for path in folder.entries}
    rows = len(params["video/positions/time"])
    params["video/positions/time"] = np.arange(rows, dtype=np.float32)[:, None] * np.ones(WIDTH, np.float32)
    return write_folder(out, folder, items_of(params))


def test_a_weights_folder_is_converted_again(eva_file, tmp_path):
    first, _, _ = done(eva_file, tmp_path / "first", frames=4)
    second = trained(first, tmp_path / "second")
    third, arrays, report = done(second.path, tmp_path / "third", frames=8)
    np.testing.assert_allclose(
        arrays["video/positions/time"][:, 0], resample_matrix(8, 4) @ np.arange(4), atol=1e-6
    )
    assert set(report.resized) == {"video/positions/time"}
    assert (third.frames, third.model.video.frames) == (8, 8)
    assert third.facts["source"]["origin"]["layout"] == "eva02-clip/open_clip"
    _, arrays, report = done(second.path, tmp_path / "fourth", frames=8, times="zeros")
    np.testing.assert_array_equal(arrays["video/positions/time"], np.zeros((8, WIDTH)))
    assert set(report.new) == {"video/positions/time"}
    _, arrays, report = done(second.path, tmp_path / "fifth", positions="rope")
    assert report.ignored == {"video/positions/time": "dropped: the model has no table P_t"}


def test_dry_run_tells_all_and_writes_nothing(eva_file, tmp_path):
    report = convert(eva_file, tmp_path / "w", ConvertOptions(frames=4), dry_run=True)
    assert report.folder is None and list(tmp_path.iterdir()) == []
    assert sum(row.count for row in report.rows) == len(eva02_shapes()) - 1
    row = next(row for row in report.rows if row.source == f"{TRUNK}blocks.{{i}}.mlp.fc1_g.weight")
    assert (row.count, row.shape, row.targets) == (
        DEPTH,
        (341, WIDTH),
        ("video/stack/layers/mlp/gate/kernel",),
    )
    assert row.size == DEPTH * 341 * WIDTH * 4
    _, arrays, _ = done(eva_file, tmp_path / "w", frames=4)
    assert report.size == sum(array.nbytes for array in arrays.values())


def test_an_image_tower_alone_needs_to_be_told_that_its_text_tower_is_new(eva, tmp_path):
    image = {name.removeprefix(TRUNK): value for name, value in eva.items() if name.startswith(TRUNK)}
    src = save(tmp_path / "image.safetensors", image)
    with pytest.raises(WeightsError, match="text/"):
        convert(src, tmp_path / "w", ConvertOptions(dtype="bfloat16"))
    assert [path.name for path in tmp_path.iterdir()] == ["image.safetensors"]
    report = convert(src, None, ConvertOptions(new_text=True), dry_run=True)
    assert {path.split("/")[0] for path in report.new} == {"text"}


def with_name(eva: State, old: str, new: str) -> State:
    return {new if name == old else name: value for name, value in eva.items()}


def test_left_over_and_missing_tensors_are_listed_on_both_sides(eva, tmp_path):
    src = save(tmp_path / "x.safetensors", with_name(eva, "text.ln_final.weight", "text.ln_finale.weight"))
    with pytest.raises(WeightsError) as caught:
        convert(src, tmp_path / "w")
    assert "text.ln_finale.weight" in str(caught.value) and "text/norm/scale" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_name(value, eva, tmp_path):
    bad = eva["text.ln_final.bias"].copy()
    bad[3] = value
    src = save(tmp_path / "x.safetensors", {**eva, "text.ln_final.bias": bad})
    with pytest.raises(WeightsError, match=r"text\.ln_final\.bias"):
        convert(src, tmp_path / "deep/w")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_place_that_is_taken_is_refused_before_the_source_is_read(eva_file, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w/photo.jpg").write_text("x")
    with pytest.raises(WeightsError, match="exists and is no weights folder"):
        convert(tmp_path / "nothing.safetensors", tmp_path / "w", ConvertOptions(overwrite=True))
    with pytest.raises(WeightsError, match="a conversion needs a folder to write"):
        convert(eva_file, None)


def test_memory_holds_a_parameter_and_never_the_model(tmp_path, monkeypatch):
    # 24 layers, so that no parameter is a large part of the whole but the table of tokens (12.6 of 31 MB).
    monkeypatch.setattr(twins, "DEPTH", 24)
    src = save(tmp_path / "deep.safetensors", state(eva02_shapes()))
    convert(src, tmp_path / "first", ConvertOptions(frames=4, size=96))  # compiles, imports
    tracemalloc.start()
    report = convert(src, tmp_path / "w", ConvertOptions(frames=4, size=96))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.size > 30e6
    assert peak < 20e6
