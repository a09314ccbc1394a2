"""The way back: bit by bit what came in, and nothing that the naming has no place for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from stvl.core.errors import WeightsError
from stvl.pretrained.convert import ConvertOptions, convert
from stvl.pretrained.export import ExportOptions, export
from stvl.pretrained.folder import WeightsFolder, items_of, open_folder, write_folder
from stvl.weights.source import open_source
from tests.pretrained.twins import WIDTH, State, eva02_shapes, save, state, vit_shapes

SHAPES = {"eva02": eva02_shapes(), "vit": vit_shapes()}


def tensors(path: Path) -> State:
    source = open_source(path)
    found = {name: source.read(name) for name in source.entries}
    source.close()
    return found


def assert_same_bits(left: State, right: State) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert (array.dtype, array.shape) == (right[name].dtype, right[name].shape), name
        assert array.tobytes() == right[name].tobytes(), name


def kept(source: State) -> State:
    """What comes back: all but the rotary buffers."""
    return {name: array for name, array in source.items() if "rope" not in name}


def folder_of(src: Path, out: Path, **options: Any) -> WeightsFolder:
    folder = convert(src, out, ConvertOptions(**options)).folder
    assert folder is not None
    return folder


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["eva02", "vit"])
@pytest.mark.parametrize("stored", ["float32", "source"])
def test_round_trip_is_exact_bit_by_bit(name, kind, stored, tmp_path):
    source = state(SHAPES[name], kind)
    src = save(tmp_path / "in.safetensors", source)
    folder_of(src, tmp_path / "w", dtype=stored)
    done = export(tmp_path / "w", tmp_path / "out.safetensors")
    assert_same_bits(kept(source), tensors(done.path))
    assert done.count == len(kept(source)) and done.dropped == {}
    assert done.size == sum(array.nbytes for array in kept(source).values())


@pytest.mark.parametrize("wrapper", ["module.", "dual.net."])
def test_the_way_through_a_video_model_is_exact_while_p_t_is_zero(wrapper, tmp_path):
    source = state(SHAPES["eva02"])
    src = save(tmp_path / "in.safetensors", {f"{wrapper}{name}": value for name, value in source.items()})
    folder_of(src, tmp_path / "w", frames=4)
    folder_of(tmp_path / "w", tmp_path / "again", frames=8)
    done = export(tmp_path / "again", tmp_path / "new/out.safetensors")
    assert_same_bits({f"{wrapper}{name}": value for name, value in kept(source).items()}, tensors(done.path))


def test_what_was_exported_is_recognised_and_converted_again(tmp_path):
    src = save(tmp_path / "in.safetensors", state(SHAPES["vit"]))
    folder = folder_of(src, tmp_path / "w")
    export(tmp_path / "w", tmp_path / "out.safetensors")
    again = folder_of(tmp_path / "out.safetensors", tmp_path / "again")
    assert again.model == folder.model
    assert again.sha256 == folder.sha256


def test_another_naming_of_the_same_family(tmp_path):
    source = state(SHAPES["eva02"])
    folder_of(save(tmp_path / "in.safetensors", source), tmp_path / "w")
    done = export(tmp_path / "w", tmp_path / "out.safetensors", ExportOptions(naming="eva02-clip/eva-clip"))
    found = tensors(done.path)
    q = "visual.trunk.blocks.1.attn.q_proj"
    assert found["visual.blocks.1.attn.q_proj.weight"].tobytes() == source[f"{q}.weight"].tobytes()
    assert found["visual.blocks.1.attn.q_bias"].tobytes() == source[f"{q}.bias"].tobytes()
    assert found["visual.head.weight"].tobytes() == source["visual.trunk.head.weight"].tobytes()


def changed(folder: WeightsFolder, out: Path, **arrays: np.ndarray) -> WeightsFolder:
    params = {path: folder.read(path) for path in folder.entries} | {
        path.replace("__", "/"): array for path, array in arrays.items()
    }
    return write_folder(out, folder, items_of(params))


def test_a_trained_table_of_times_is_left_out_only_when_asked(tmp_path):
    source = state(SHAPES["eva02"])
    folder = folder_of(save(tmp_path / "in.safetensors", source), tmp_path / "w", frames=4)
    changed(folder, tmp_path / "t", video__positions__time=np.ones((4, WIDTH), np.float32))
    out = tmp_path / "out.safetensors"
    with pytest.raises(
        WeightsError, match="video/positions/time: an image model has no table P_t\nadd --drop"
    ):
        export(tmp_path / "t", out)
    assert not out.exists()
    done = export(tmp_path / "t", out, ExportOptions(drop=True))
    assert done.dropped == {"video/positions/time": "an image model has no table P_t"}
    assert_same_bits(kept(source), tensors(out))


def test_projections_of_another_width_and_a_missing_temperature_are_listed(tmp_path):
    src = save(tmp_path / "in.safetensors", state(SHAPES["eva02"]))
    folder_of(src, tmp_path / "w", preset="eva02-at/tiny", embedding=16)
    out = tmp_path / "out.safetensors"
    with pytest.raises(
        WeightsError, match="cannot go into the naming eva02-clip/open_clip as a whole"
    ) as caught:
        export(tmp_path / "w", out)
    wide = "the shared space is 16 wide, that of the naming 64"
    for row in (
        f"  video/projection/kernel: {wide}",
        f"  text/projection/kernel: {wide}",
        "  logit_scale: the model has no learnable temperature",
        "  visual.trunk.head.bias: the model has no bias in the video tower's projection",
    ):
        assert row in str(caught.value).splitlines()
    done = export(tmp_path / "w", out, ExportOptions(drop=True))
    lost = {"visual.trunk.head.weight", "visual.trunk.head.bias", "text.text_projection", "logit_scale"}
    assert kept(state(SHAPES["eva02"])).keys() - tensors(out).keys() == lost
    assert len(done.dropped) == 4


def test_a_tube_has_no_place_in_an_image_model(tmp_path):
    src = save(tmp_path / "in.safetensors", state(SHAPES["eva02"]))
    folder_of(src, tmp_path / "w", frames=4, tube=2)
    with pytest.raises(
        WeightsError, match="video/stem/kernel: its tokens are 2 frames deep, an image has one"
    ):
        export(tmp_path / "w", tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("naming", "said"),
    [
        ("vit-clip/open_clip", "is not of the family vit-clip, so it has no form in vit-clip/open_clip"),
        ("eva02-clip/open_clap", r"no naming 'eva02-clip/open_clap' \(did you mean 'eva02-clip/open_clip'"),
    ],
)
def test_namings_that_do_not_fit(naming, said, tmp_path):
    src = save(tmp_path / "in.safetensors", state(SHAPES["eva02"]))
    folder_of(src, tmp_path / "w")
    with pytest.raises(WeightsError, match=said):
        export(tmp_path / "w", tmp_path / "out.safetensors", ExportOptions(naming=naming))
    assert not (tmp_path / "out.safetensors").exists()


def test_places_and_sources_that_cannot_be_used(tmp_path):
    src = save(tmp_path / "in.safetensors", state(SHAPES["vit"]))
    folder_of(src, tmp_path / "w")
    with pytest.raises(WeightsError, match=r"an export is a \.safetensors file, found 'out\.npz'"):
        export(tmp_path / "w", tmp_path / "out.npz")
    with pytest.raises(WeightsError, match="exists already: choose another --export, or add --overwrite"):
        export(tmp_path / "w", src)
    with pytest.raises(WeightsError, match="is no weights folder and no run"):
        export(src, tmp_path / "out.safetensors")
    with pytest.raises(WeightsError, match="there is no folder"):
        export(tmp_path / "nothing", tmp_path / "out.safetensors")
    assert export(tmp_path / "w", tmp_path / "out.safetensors", dry_run=True).sha256 == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors", "w"]
    export(tmp_path / "w", src, ExportOptions(overwrite=True))
    assert_same_bits(state(SHAPES["vit"]), tensors(src))


def test_numbers_too_large_for_the_dtype_of_the_source_leave_no_file(tmp_path):
    src = save(tmp_path / "in.safetensors", state(SHAPES["eva02"], np.float16))
    folder = folder_of(src, tmp_path / "w")
    grown = changed(folder, tmp_path / "t", video__class_token=np.full(WIDTH, 1e6, np.float32))
    with pytest.raises(WeightsError, match=r"visual\.trunk\.cls_token"):
        export(grown.path, tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors", "t", "w"]


def test_a_folder_that_does_not_say_its_source_needs_a_naming(tmp_path):
    src = save(tmp_path / "in.safetensors", state(SHAPES["vit"]))
    folder_of(src, tmp_path / "w")
    config = json.loads((tmp_path / "w/config.json").read_text())
    del config["source"]
    (tmp_path / "w/config.json").write_text(json.dumps(config))
    assert "source" not in open_folder(tmp_path / "w").facts
    with pytest.raises(
        WeightsError, match="does not say from which checkpoint it was made, so name a --naming"
    ):
        export(tmp_path / "w", tmp_path / "out.safetensors")
    export(tmp_path / "w", tmp_path / "out.safetensors", ExportOptions(naming="vit-clip/open_clip"))
    assert_same_bits(state(SHAPES["vit"]), tensors(tmp_path / "out.safetensors"))
