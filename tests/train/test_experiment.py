"""Experiments: read from config modules, changed on the command line, printed to JSON, and checked for sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stvl.core.config import from_dict, to_dict
from stvl.core.errors import ConfigError
from stvl.data.augment import EvalTransform, TrainTransform
from stvl.data.text import ClipTokenizer
from stvl.models.clip_text import ClipTextConfig
from stvl.models.dual import DualEncoderConfig
from stvl.models.eva02_at.module import EVA02ATConfig
from stvl.train.experiment import load_experiment
from tests.fixtures import ROOT, tiny_experiment

MODULE = '''
"""A config."""

from tests.fixtures import tiny_experiment


def experiment(world: str = "w", frames: int = 2, names: tuple[str, ...] = ()):
    import dataclasses

    made = tiny_experiment(world)
    return dataclasses.replace(made, name="-".join(("mine", *names)), loader=dataclasses.replace(made.loader, frames=frames))
'''


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MODULE)
    return path


def test_parameters_of_the_function_and_dotted_paths(config):
    overrides = [
        "frames=3",
        "model.video.drop_path=0.25",
        "--steps=9",
        "names=a,b",
        "model.video.temporal_positions=rope",
    ]
    made = load_experiment(config, overrides)
    assert (made.loader.frames, made.model.video.drop_path, made.steps) == (3, 0.25, 9)
    assert (made.name, made.model.video.temporal_positions) == ("mine-a-b", "rope")
    assert load_experiment(config.with_suffix("")) == load_experiment(config)


def test_fields_that_must_fit_each_other_are_changed_together(config):
    sizes = ["train_transform.size=32", "model.video.image_size=32", "eval_transform.size=32"]
    assert load_experiment(config, sizes).model.video.image_size == 32
    with pytest.raises(ConfigError, match=r"train_transform.size is 16, the model takes frames of .* = 32"):
        load_experiment(config, sizes[1:])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=3", r"mine.py knows no 'stepz' \(did you mean 'steps'\?\)"),
        ("frame=3", r"mine.py knows no 'frame' \(did you mean 'frames'\?\)"),
        ("model.video.widht=3", r"EVA02ATConfig has no field 'widht' \(did you mean 'width'\?\)"),
        ("model.video.width=wide", "width is a whole number, found 'wide'"),
        ("frames=some", "frames is a whole number, found 'some'"),
        ("model.video.temporal_positions=rop", r"temporal_positions = 'rop' \(did you mean 'rope'\?\)"),
        ("model.video.width=34", "divisible by 4, found 17"),
        ("steps", "overrides read name=value, found 'steps'"),
        ("model=tiny", "which one word cannot spell: set its fields"),
    ],
)
def test_overrides_that_cannot_be_used(config, override, message):
    with pytest.raises(ConfigError, match=message):
        load_experiment(config, [override])


def test_unknown_config_shows_the_nearest(monkeypatch, config):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"no config 'quikstart' \(did you mean 'quickstart'\?\)"):
        load_experiment("quikstart")
    with pytest.raises(ConfigError, match=r"no config '.*mime.py' \(did you mean 'mine'\?\)"):
        load_experiment(config.with_name("mime.py"))


def test_a_module_without_an_experiment(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="has no function `experiment"):
        load_experiment(tmp_path / "empty.py")


def test_json_brings_the_experiment_back():
    made = tiny_experiment("world", "folder", ema=0.9)
    assert from_dict(json.loads(json.dumps(to_dict(made)))) == made


def test_run_folder():
    assert tiny_experiment("w").folder == Path("runs/tiny")
    assert tiny_experiment("w", "a/b").folder == Path("a/b")


SMALL = ClipTextConfig(width=16, depth=1, heads=2, context=12, vocabulary=100)
WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"train_transform": TrainTransform(size=32)},
        "train_transform.size is 32, the model takes frames of .* = 16",
    ),
    ({"eval_transform": EvalTransform(size=8)}, "eval_transform.size is 8"),
    ({"tokenizer": ClipTokenizer(context_length=77)}, "context_length is 77, model.text.context is only 12"),
    (
        {
            "model": DualEncoderConfig(
                video=EVA02ATConfig(width=32, heads=2, patch=8, image_size=16), text=SMALL
            )
        },
        "the tokenizer has 49408 ids, model.text.vocabulary is only 100",
    ),
    ({"steps": 0}, "steps, log_every and save_every are at least 1, found 0, 1, 2"),
    ({"save_every": 0}, "are at least 1"),
    ({"ema": 1.0}, "ema is a decay between 0 and 1, found 1.0"),
    ({"steps": 2}, "a warm-up of 2 steps does not fit a run of 2 steps"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_parts_that_do_not_fit_each_other(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_experiment("w", **changes)


def test_auto_is_f32_on_a_cpu():
    assert str(tiny_experiment("w").compute_dtype) == "float32"
    assert str(tiny_experiment("w", dtype="bfloat16").compute_dtype) == "bfloat16"
