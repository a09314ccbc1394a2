"""Layouts applied in the plainest way: every tensor through its rule, nothing streamed; and the stvl side of a file."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from stvl.models.activations import activations
from stvl.models.dual import DualEncoder, DualEncoderConfig
from stvl.pretrained.recognise import Recognised
from stvl.weights.rules import Layout, Rule

from .compare import Arrays

Flat = dict[str, np.ndarray]


@functools.cache
def target_shapes(model: DualEncoderConfig) -> dict[str, tuple[int, ...]]:
    """Parameter paths of a model and their shapes."""
    video = model.video
    frames = jax.ShapeDtypeStruct((1, video.frames, video.image_size, video.image_size, 3), jnp.uint8)
    ids = jax.ShapeDtypeStruct((1, model.text.context), jnp.int32)
    tree = nn.meta.unbox(jax.eval_shape(DualEncoder(model).init, jax.random.key(0), frames, ids))["params"]
    return {"/".join(k.key for k in path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}


def layers(rule: Rule, names: Mapping[str, Any]) -> list[str]:
    """The names in a file that a rule reads, by layer."""
    if "{i}" not in rule.source:
        return [rule.source]
    pattern = re.escape(rule.source).replace(re.escape("{i}"), r"(\d+)")
    count = sum(re.fullmatch(pattern, name) is not None for name in names)
    return [rule.source.replace("{i}", str(i)) for i in range(count)]


def load(layout: Layout, state: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> Flat:
    """All parameters; every tensor and every parameter is accounted for, or an assertion fails."""
    out: Flat = {}
    left = set(state)
    for rule in layout.rules:
        stacked = "{i}" in rule.source
        wanted = tuple(shapes[path][1:] if stacked else shapes[path] for path in rule.targets)
        names = layers(rule, state)
        left -= set(names)
        parts = [rule.forward(state[name], wanted) for name in names]
        for path, values in zip(rule.targets, zip(*parts, strict=True), strict=True):
            assert path not in out, path
            out[path] = np.stack(values) if stacked else values[0]
    over = [name for name in left if not any(re.fullmatch(item.pattern, name) for item in layout.ignored)]
    assert over == [], f"no rule: {over}"
    new = [path for path in shapes if path not in out]
    assert [path for path in new if not any(re.fullmatch(item.pattern, path) for item in layout.new)] == []
    found = {path: out.get(path, np.zeros(shapes[path], np.float32)) for path in shapes}
    assert {path: array.shape for path, array in found.items()} == dict(shapes)
    return found


def unload(layout: Layout, params: Mapping[str, np.ndarray]) -> Flat:
    """The file again, without what the layout ignores."""
    state: Flat = {}
    for rule in layout.rules:
        parts = tuple(params[path] for path in rule.targets)
        if "{i}" not in rule.source:
            state[rule.source] = rule.backward(parts)
            continue
        for i in range(len(parts[0])):
            state[rule.source.replace("{i}", str(i))] = rule.backward(tuple(part[i] for part in parts))
    return state


def tree(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Nested parameters."""
    out: dict[str, Any] = {}
    for path, array in flat.items():
        *folders, name = path.split("/")
        place = out
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = array
    return out


def run(found: Recognised, state: Mapping[str, np.ndarray], video: np.ndarray, ids: np.ndarray) -> Arrays:
    """Activations of both towers from a file's tensors."""
    model, params = DualEncoder(found.model), tree(load(found.layout, state, target_shapes(found.model)))
    return activations(model, params, video=video) | activations(model, params, ids=ids)
