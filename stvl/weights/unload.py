"""The way back: parameters to the tensors of a layout, for export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from stvl.core.errors import WeightsError, nearest
from stvl.weights.complaints import ranges
from stvl.weights.matching import LAYER, Matched, check_layout, match, source_shape
from stvl.weights.numbers import cast
from stvl.weights.rules import Layout, Rule, Shape
from stvl.weights.source import Entry

#: A parameter, or what reads it.
Param = np.ndarray | Callable[[], np.ndarray]


def entries_of(layout: Layout, targets: Mapping[str, Any], prefix: str = "") -> dict[str, Entry]:
    """The tensors of a layout that a model's parameters make, with the dtype of each rule's first parameter.

    Rules with a parameter that the model lacks are left out.

    Args:
        layout: the naming.
        targets: shape and dtype by path (`stvl.weights.load.Target`).
        prefix: put before every name.

    Raises:
        WeightsError: shapes that a rule's steps cannot join, or a layout that contradicts itself.
    """
    check_layout(layout)
    made = {}
    for rule in layout.rules:
        if any(path not in targets for path in rule.targets):
            continue
        shapes = tuple(tuple(targets[path].shape) for path in rule.targets)
        layered = LAYER in rule.source
        shape = source_shape(rule, tuple(shape[1:] for shape in shapes) if layered else shapes)
        if shape is None:
            raise WeightsError(f"layout {layout.name}: {rule.source} cannot be made of {shapes}")
        entry = Entry(shape, np.dtype(targets[rule.targets[0]].dtype))
        for layer in range(shapes[0][0]) if layered else (None,):
            made[prefix + _name(rule, layer)] = entry
    return made


def unplan(
    layout: Layout, params: Mapping[str, Param], entries: Mapping[str, Entry]
) -> Iterator[tuple[str, Entry, Callable[[], np.ndarray]]]:
    """The tensors of a layout, made of parameters, as `stvl.weights.writer.write_safetensors` takes them.

    Tensors of one rule follow each other, so that its parameters are read once for all layers; memory holds the parameters
    of one rule. Every check of names and shapes that needs no numbers is made before the first tensor.

    Args:
        layout: the naming.
        params: arrays by path, or functions that read them; more than the entries need is fine.
        entries: names, shapes and dtypes to make, those of the source or of `entries_of`. Names that the layout ignores
            are left out.

    Raises:
        WeightsError: a name that the layout does not know, a parameter that is not there, layers or shapes that differ.
    """
    matching = match(layout, entries)
    if matching.left:
        known = [rule.source for rule in layout.rules]
        raise WeightsError(
            f"layout {layout.name} cannot make {matching.left[0]}{nearest(matching.left[0], known)}"
            + (f" and {len(matching.left) - 1} others" if len(matching.left) > 1 else "")
        )
    groups: dict[str, list[Matched]] = {}
    for item in matching.matched:
        groups.setdefault(item.rule.source, []).append(item)
    for group in groups.values():
        for path in group[0].rule.targets:
            if path not in params:
                raise WeightsError(f"{group[0].name} needs the parameter {path!r}{nearest(path, params)}")
            param = params[path]
            if not callable(param):
                _check_layers(group, path, param)
    return _items(groups, params, entries)


def _check_layers(group: list[Matched], path: str, array: np.ndarray) -> None:
    """The names of a rule have exactly the layers of its parameters."""
    layers = sorted(item.layer for item in group if item.layer is not None)
    if not layers:
        return
    depth = array.shape[0] if array.ndim else 0
    if layers != list(range(depth)):
        raise WeightsError(
            f"{path} has {depth} layers, the names have {ranges(layers)} ({group[0].rule.source})"
        )


def _items(
    groups: Mapping[str, list[Matched]], params: Mapping[str, Param], entries: Mapping[str, Entry]
) -> Iterator[tuple[str, Entry, Callable[[], np.ndarray]]]:
    held = _Held(params)
    for group in groups.values():
        for item in group:
            entry = entries[item.name]
            yield (
                item.name,
                entry,
                lambda item=item, entry=entry, group=group: _tensor(item, entry, held, group),
            )


class _Held:
    """The parameters of the rule that was asked for last; layers of one rule come one after the other."""

    def __init__(self, params: Mapping[str, Param]) -> None:
        self.params = params
        self.rule: Rule | None = None
        self.arrays: tuple[np.ndarray, ...] = ()

    def of(self, rule: Rule, group: list[Matched]) -> tuple[np.ndarray, ...]:
        if rule is not self.rule:
            self.rule, self.arrays = None, ()
            self.arrays = tuple(self._read(path) for path in rule.targets)
            for path, array in zip(rule.targets, self.arrays, strict=True):
                _check_layers(group, path, array)
            self.rule = rule
        return self.arrays

    def _read(self, path: str) -> np.ndarray:
        param = self.params[path]
        return np.asarray(param() if callable(param) else param)


def _tensor(item: Matched, entry: Entry, held: _Held, group: list[Matched]) -> np.ndarray:
    parts = held.of(item.rule, group)
    if item.layer is not None:
        parts = tuple(part[item.layer] for part in parts)
    made = _back(item.rule, parts)
    if made is None or made.shape != entry.shape:
        found = "cannot be joined" if made is None else f"make {made.shape}"
        shapes = ", ".join(str(part.shape) for part in parts)
        raise WeightsError(f"{item.name} is {entry.shape}, its parameters {shapes} {found}")
    return np.ascontiguousarray(cast(made, entry.dtype, item.name)).reshape(entry.shape)


def _back(rule: Rule, parts: tuple[np.ndarray, ...]) -> np.ndarray | None:
    shapes: tuple[Shape, ...] = tuple(part.shape for part in parts)
    return None if source_shape(rule, shapes) is None else rule.backward(parts)


def _name(rule: Rule, layer: int | None) -> str:
    return rule.source if layer is None else rule.source.replace(LAYER, str(layer))
