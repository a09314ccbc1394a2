"""Which model a file holds, from names and shapes; and what is said where it holds another one, or none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from stvl.core.errors import WeightsError
from stvl.data.augment import EvalTransform
from stvl.data.text import ClipTokenizer
from stvl.models.presets import preset
from stvl.models.text_weights import NEW_TEXT
from stvl.nn.pixels import AVION_MEAN, CLIP_MEAN
from stvl.pretrained.recognise import LAYOUTS, Recognised, bare, recognise
from tests.models.test_layouts import hollow, image_model
from tests.parity.compare import load as golden
from tests.parity.layouts import target_shapes, unload

State = dict[str, np.ndarray]


def published(name: str) -> State:
    """The tensors of one of open_clip's models, without memory."""
    rows = [line.split() for line in golden("layout_names")[name].tolist()]
    return hollow({key: tuple(map(int, shape)) for key, *shape in rows})


def written(model: str, layout: str, image: bool = False) -> State:
    """A preset's tensors in a naming, without memory."""
    config = preset(model)
    return unload(LAYOUTS[layout].layout, hollow(target_shapes(image_model(config) if image else config)))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("EVA02-B-16", "eva02-clip/b16"),
        ("EVA02-L-14", "eva02-clip/l14"),
        ("EVA02-L-14-336", "eva02-clip/l14-336"),
        ("ViT-B-16", "vit-clip/b16"),
        ("ViT-L-14", "vit-clip/l14"),
        ("ViT-L-14-336", "vit-clip/l14-336"),
    ],
)
def test_published_image_models(name: str, model: str):
    found = recognise(published(name))
    assert (found.size, found.family, found.frames) == (name, model.split("/")[0], 1)
    assert found.layout.name == f"{found.family}/open_clip"
    assert found.model == image_model(preset(model))
    assert found.tokenizer == ClipTokenizer(context_length=77)
    assert found.transform == EvalTransform(size=336 if name.endswith("336") else 224)
    assert found.model.video.mean == CLIP_MEAN and found.optional_new == ()
    assert any("heads are width / 64" in note for note in found.notes)


@pytest.mark.parametrize("size", ["b16", "l14", "l14-336"])
@pytest.mark.parametrize(
    ("family", "layout", "kind"),
    [
        ("avion", "avion/plain", "AVION-ViT"),
        ("avion", "avion/fast-conv1", "AVION-ViT"),
        ("avion", "avion/flash-attn", "AVION-ViT"),
        ("avion", "avion/fast-conv1-flash-attn", "AVION-ViT"),
        ("timesformer", "timesformer/lavila", "TimeSformer"),
    ],
)
def test_published_video_models(family: str, layout: str, kind: str, size: str):
    state = {f"module.{name}": array for name, array in written(f"{family}/{size}", layout).items()}
    found = recognise(state)
    assert found.model == preset(f"{family}/{size}")
    assert (found.layout.name, found.frames) == (layout, 4)
    assert found.size == f"{kind}-{size.replace('b16', 'B-16').replace('l14', 'L-14')}"
    assert found.model.video.mean == AVION_MEAN and found.transform.kernel == "bilinear"


def test_eva_clip_release_and_timm_and_eva02_at():
    found = recognise(written("eva02-clip/l14", "eva02-clip/eva-clip", image=True))
    assert (found.layout.name, found.size) == ("eva02-clip/eva-clip", "EVA02-L-14")
    found = recognise(written("eva02-clip/b16", "eva02-clip/timm", image=True))
    assert (found.layout.name, found.size, found.optional_new) == (
        "eva02-clip/timm",
        "EVA02-B-16",
        (NEW_TEXT,),
    )
    assert found.model.temperature is None and found.model.text == preset("eva02-clip/b16").text
    assert any("an image tower only" in note for note in found.notes)
    found = recognise(written("eva02-clip/b16", "eva02-at/release"))
    assert (found.family, found.size, found.frames) == ("eva02-at", "EVA02-AT-B-16", 4)
    assert found.model == preset("eva02-clip/b16") and "not confirmed" in " ".join(found.notes)


def test_rotary_tables_and_masks_do_not_disturb():
    state = written("eva02-clip/b16", "eva02-clip/eva-clip", image=True)
    table = np.zeros((196, 64), np.float32)
    state |= {
        "visual.rope.freqs_cos": table,
        "visual.blocks.0.attn.rope.freqs_sin": table,
        "text.attn_mask": table,
    }
    assert recognise(state).size == "EVA02-B-16"


def test_openai_files_use_quick_gelu_and_others_say_that_names_cannot_tell():
    state = published("ViT-B-16")
    found = recognise(state)
    assert found.model.video == image_model(preset("vit-clip/b16")).video
    assert any(note.startswith("gelu: names cannot tell") for note in found.notes)
    found = recognise(state | {"input_resolution": np.array(224)})
    assert found.model == image_model(preset("vit-clip/b16-quickgelu"))
    assert any("'input_resolution' marks a file of OpenAI's" in note for note in found.notes)
    found = recognise(state, activation="quick_gelu")
    assert found.model == image_model(preset("vit-clip/b16-quickgelu"))
    found = recognise(state | {"vocab_size": np.array(49408)}, activation="gelu")
    assert found.model.text.activation == "gelu" and any("although 'vocab_size'" in n for n in found.notes)


def test_avion_of_one_frame_has_no_temporal_table():
    state = written("avion/b16", "avion/plain")
    del state["visual.temporal_embedding"]
    found = recognise(state)
    assert found.frames == 1 and found.model.video == image_model(preset("avion/b16")).video
    assert all("time" not in path for rule in found.layout.rules for path in rule.targets)
    assert [item.pattern for item in found.layout.new] == ["video/positions/time"]


def test_custom_sizes_are_told_and_heads_can_be_said():
    model = preset("vit-clip/tiny")
    config = dataclasses.replace(
        image_model(model), video=dataclasses.replace(image_model(model).video, heads=4)
    )
    state = unload(LAYOUTS["vit-clip/open_clip"].layout, hollow(target_shapes(config)))
    assert recognise(state).size == "ViT of width 128, depth 4, patch 12 at 48 px"
    # unroll is speed and leaves no trace in a file.
    found = recognise(state, heads=(4, 2)).model
    assert (found.video.heads, found.text.heads, found.text.context) == (4, 2, 32)
    narrow = {
        key: array[..., :60] if key == "visual.class_embedding" else array for key, array in state.items()
    }
    with pytest.raises(WeightsError, match="width 60 is no multiple of 64: say how many heads"):
        recognise(narrow)
    with pytest.raises(WeightsError, match="cannot be divided into 5 heads"):
        recognise(state, heads=(5, 2))
    with pytest.raises(
        WeightsError, match="make no model of vit-clip/open_clip: width 64 cannot be divided into 3"
    ):
        recognise(state, heads=(4, 3))
    few = state | {"token_embedding.weight": np.zeros((50, 64), np.float32)}
    assert "the tokenizer is CLIP's of 49408 ids, the file has 50" in recognise(few).notes


@pytest.mark.parametrize(
    ("name", "expect", "why"),
    [
        (
            "EVA02-L-14",
            "ViT-L-14",
            r"not ViT-L-14: 'visual.trunk.blocks.{i}.mlp.fc1_g.weight' is there, 'visual.conv1",
        ),
        (
            "EVA02-L-14",
            "EVA02-B-16",
            r"this is EVA02-L-14 \(eva02-clip/open_clip\), not EVA02-B-16: its sizes differ",
        ),
        ("ViT-B-16", "eva02-clip", r"this is ViT-B-16 .*, not eva02-clip: 'visual.conv1.weight' is there"),
        ("ViT-B-16", "vit-clip/hf", r"not vit-clip/hf: .*'vision_model.embeddings.class_embedding' is not"),
        ("ViT-B-16", "vit-clp", r"there is no 'vit-clp' \(did you mean 'vit-clip'"),
    ],
)
def test_another_model_than_expected_is_refused(name: str, expect: str, why: str):
    with pytest.raises(WeightsError, match=why.replace("{i}", r"\{i\}")):
        recognise(published(name), expect=expect)


@pytest.mark.parametrize("expect", ["ViT-B-16", "vit-clip", "vit-clip/open_clip"])
def test_the_expected_model_is_accepted(expect: str):
    found: Recognised = recognise(published("ViT-B-16"), expect=expect)
    assert found.size == "ViT-B-16"


def test_no_known_layout_names_the_nearest_and_what_speaks_against_it():
    state = published("EVA02-B-16")
    renamed = {key.replace("visual.trunk.", "visual.tower."): array for key, array in state.items()}
    with pytest.raises(WeightsError, match=r"nearest is eva02-clip/open_clip \(\d+ of \d+ names\)") as error:
        recognise(renamed)
    assert "not in the file: visual.trunk.blocks.{i}.attn.k_proj.weight" in str(error.value)
    assert "not in the layout: visual.tower.blocks.{i}.attn.k_proj.weight" in str(error.value)
    state = published("ViT-B-16")
    del state["visual.proj"]
    with pytest.raises(
        WeightsError, match=r"nearest is vit-clip/open_clip .*; not in the file: visual\.proj;"
    ):
        recognise(state)
    state = written("avion/b16", "avion/fast-conv1")
    state["visual.conv1.weight"] = np.zeros((768, 16, 48), np.float32)
    with pytest.raises(WeightsError, match=r"'visual.conv1.weight' has 3 axes, expected"):
        recognise(state)
    with pytest.raises(WeightsError, match="no tensor"):
        recognise({})


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["visual.layer1.0.conv1.weight", "text_projection"], "CLIP's ResNet"),
        (["module.textual.transformer.layer.0.attention.q_lin.weight"], "DistilBERT"),
        (["text_model.transformer.layer.0.attention.q_lin.weight"], "DistilBERT"),
        (["vision_model.head.probe", "logit_scale"], "SigLIP"),
        (["visual.cls_token", "fc_cls.0.weight"], "a classifier on a video tower"),
        (["visual.blocks.0.attn.qkv.weight", "visual.blocks.0.attn.v_bias"], "EVA-01"),
        (["video/class_token", "text/tokens"], "stvl's own names"),
    ],
)
def test_files_that_look_alike_are_named(names: list[str], what: str):
    with pytest.raises(WeightsError, match=what):
        recognise({name: np.zeros(1) for name in names})


@pytest.mark.parametrize(
    ("key", "shape", "why"),
    [
        (
            "visual.positional_embedding",
            (198, 768),
            "'visual.positional_embedding' has 197 places, which are no square",
        ),
        ("visual.positional_embedding", (1, 768), "has 0 places, which are no square"),
        ("visual.proj", (768,), r"'visual.proj' has the shape \(768,\), 2 axes or more are expected"),
    ],
)
def test_shapes_that_make_no_model(key: str, shape: tuple[int, ...], why: str):
    with pytest.raises(WeightsError, match=why):
        recognise(published("ViT-B-16") | {key: np.zeros(shape, np.float32)})


def test_a_file_without_its_position_table_or_layers_says_so():
    state = published("ViT-B-16")
    del state["positional_embedding"]
    with pytest.raises(WeightsError, match="'positional_embedding' is not in the file"):
        recognise(state)
    state = {
        key: a for key, a in published("ViT-B-16").items() if ".ln_2." not in key or key.startswith("transf")
    }
    with pytest.raises(WeightsError, match=r"no 'visual.transformer.resblocks.{i}.ln_2.weight' in the file"):
        recognise(state)


@pytest.mark.parametrize("wrapper", ["model.", "module.clip.model."])
def test_an_unknown_wrapper_is_noted_and_taken_off(wrapper: str):
    state = {f"{wrapper}{name}": array for name, array in published("ViT-B-16").items()}
    found = recognise(state)
    assert found.size == "ViT-B-16" and "every name stands behind 'model.'" in found.notes
    assert found.layout.prefixes[-1] == "model." and found.layout.prefixes[:2] == ("module.", "_orig_mod.")
    plain = recognise(published("ViT-B-16"))
    assert plain.layout is LAYOUTS["vit-clip/open_clip"].layout and plain.model == found.model


def test_wrappers_are_taken_off_only_where_every_name_has_them():
    state = {"module._orig_mod.a": np.zeros(1), "module._orig_mod.b": np.zeros(2)}
    assert sorted(bare(state, ("module.", "_orig_mod."))) == ["a", "b"]
    assert sorted(bare({"module.a": np.zeros(1), "b": np.zeros(2)}, ("module.",))) == ["b", "module.a"]
