"""Configs as data: to JSON and back, field by field, changed from the command line by the types of their fields."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvl.core import config as configs
from stvl.core.config import config, diff, flatten, from_dict, is_config, override, parse, registered, to_dict
from stvl.core.errors import ConfigError


@config
class SampleRope:
    """A part of a model."""

    base: float = 10_000.0
    axes: tuple[int, ...] = (1, 2)


@config
class SampleLearnt:
    """Another part that fits the same place."""

    scale: float = 0.02


@config
class SampleModel:
    """A config that holds configs."""

    width: int = 64
    rope: SampleRope | SampleLearnt | None = SampleRope()
    mode: Literal["joint", "divided"] = "joint"
    stages: tuple[SampleRope, ...] = ()
    window: tuple[int, float] = (2, 0.5)
    causal: bool = False
    note: str = ""
    limit: int | None = None


ROPES = st.builds(
    SampleRope,
    base=st.floats(allow_nan=False),
    axes=st.lists(st.integers(), max_size=4).map(tuple),
)
MODELS = st.builds(
    SampleModel,
    width=st.integers(),
    rope=st.none() | ROPES | st.builds(SampleLearnt, scale=st.floats(allow_nan=False)),
    mode=st.sampled_from(["joint", "divided"]),
    stages=st.lists(ROPES, max_size=3).map(tuple),
    causal=st.booleans(),
    note=st.text(max_size=20),
    limit=st.none() | st.integers(),
)


@given(MODELS)
def test_json_brings_back_an_equal_config(model):
    assert from_dict(json.loads(json.dumps(to_dict(model)))) == model


@given(MODELS, MODELS)
def test_diff_is_empty_exactly_for_equal_configs(left, right):
    assert diff(left, left) == []
    assert (diff(left, right) == []) == (left == right)


def test_json_holds_the_class_name_and_every_field():
    assert to_dict(SampleModel(stages=(SampleRope(axes=()),))) == {
        "type": "SampleModel",
        "width": 64,
        "rope": {"type": "SampleRope", "base": 10_000.0, "axes": [1, 2]},
        "mode": "joint",
        "stages": [{"type": "SampleRope", "base": 10_000.0, "axes": []}],
        "window": [2, 0.5],
        "causal": False,
        "note": "",
        "limit": None,
    }


def test_missing_fields_take_their_defaults():
    assert from_dict({"type": "SampleModel", "width": 8}) == SampleModel(width=8)


def test_configs_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError, match="width"):
        SampleModel().width = 3  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        SampleRope(3.0)  # type: ignore[misc]


def test_only_instances_of_registered_classes_are_configs():
    assert registered()["SampleRope"] is SampleRope
    assert is_config(SampleRope())
    assert not is_config(SampleRope)
    assert not is_config({"type": "SampleRope"})


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(ConfigError, match=r"two config classes are called 'SampleRope'"):
        config(type("SampleRope", (), {"__module__": "elsewhere", "__annotations__": {}}))
    assert registered()["SampleRope"] is SampleRope


def test_a_class_that_is_defined_again_replaces_itself(monkeypatch):
    monkeypatch.setattr(configs, "_REGISTRY", {})
    first, second = (
        config(type("Twice", (), {"__module__": "m", "__qualname__": "Twice", "__annotations__": {}}))
        for _ in range(2)
    )
    assert registered()["Twice"] is second is not first


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "SampleRoop"}, r"unknown config type 'SampleRoop' \(did you mean 'SampleRope'\?\)"),
        ({"width": 3}, r"unknown config type None"),
        ({"type": "SampleModel", "widht": 3}, r"SampleModel has no field 'widht' \(did you mean 'width'\?\)"),
        ({"type": "SampleModel", "rope": {"type": "os.system"}}, r"unknown config type 'os.system'"),
    ],
)
def test_bad_json_is_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(data)


@pytest.mark.parametrize("value", [{"a": 1}, {1, 2}, object(), b"x", math.sin])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(ConfigError, match=f"not {type(value).__name__}"):
        to_dict(SampleModel(stages=(value,)))  # type: ignore[arg-type]


def test_flatten_names_every_leaf():
    model = SampleModel(rope=SampleLearnt(), stages=(SampleRope(axes=(3,)),))
    assert list(flatten(model)) == [
        (":type", "SampleModel"),
        ("width", 64),
        ("rope:type", "SampleLearnt"),
        ("rope.scale", 0.02),
        ("mode", "joint"),
        ("stages[0]:type", "SampleRope"),
        ("stages[0].base", 10_000.0),
        ("stages[0].axes", (3,)),
        ("window", (2, 0.5)),
        ("causal", False),
        ("note", ""),
        ("limit", None),
    ]


def test_diff_lists_changed_and_missing_leaves():
    assert diff(SampleModel(), SampleModel(width=8, rope=SampleLearnt())) == [
        ("width", 64, 8),
        ("rope:type", "SampleRope", "SampleLearnt"),
        ("rope.base", 10_000.0, None),
        ("rope.axes", (1, 2), None),
        ("rope.scale", None, 0.02),
    ]


def test_override_changes_one_leaf_and_leaves_the_original():
    model = SampleModel()
    changed = override(model, {"rope.base": "100"})
    assert changed == SampleModel(rope=SampleRope(base=100.0))
    assert model == SampleModel()


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("width", "-3", -3),
        ("causal", "Yes", True),
        ("causal", "0", False),
        ("mode", "divided", "divided"),
        ("window", "(3, 1e-2)", (3, 0.01)),
        ("note", "none", "none"),
        ("limit", "none", None),
        ("limit", "7", 7),
        ("rope", "none", None),
    ],
)
def test_override_reads_by_the_type_of_the_field(path, text, value):
    found = getattr(override(SampleModel(limit=1), {path: text}), path)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("widht", "3", r"SampleModel has no field 'widht' \(did you mean 'width'\?\)"),
        ("rope.bas", "3", r"SampleRope has no field 'bas' \(did you mean 'base'\?\)"),
        ("width.x", "3", r"goes deeper than the config does: 64 has no fields"),
        ("width", "3.5", r"width is a whole number, found '3.5'"),
        ("rope.base", "fast", r"base is a number, found 'fast'"),
        ("causal", "maybe", r"causal is true or false, found 'maybe'"),
        ("mode", "joined", r"mode = 'joined' \(did you mean 'joint'\?\)"),
        ("window", "3", r"window takes 2 values, found 1: '3'"),
        ("limit", "many", r"limit is a whole number, found 'many'"),
        ("rope", "fancy", r"rope holds SampleRope, which one word cannot spell: set its fields"),
        ("rope.axes", "1,b", r"axes is a whole number, found 'b'"),
    ],
)
def test_bad_overrides_say_what_is_wrong(path, text, message):
    with pytest.raises(ConfigError, match=message):
        override(SampleModel(), {path: text})


@given(st.lists(st.integers(), max_size=6).map(tuple))
def test_tuples_of_any_length_read_back_from_their_print(values):
    assert parse(str(values), tuple[int, ...], "axes") == values


@given(st.floats(allow_nan=False))
def test_numbers_read_back_from_their_print(value):
    assert parse(repr(value), float, "base") == value
