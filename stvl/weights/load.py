"""Strict loading: a plan that accounts for every source tensor and every parameter, then parameters one at a time."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stvl.core.errors import WeightsError, nearest
from stvl.weights.complaints import SHOWN, Complaints
from stvl.weights.matching import LAYER, match, part_shapes, source_shape
from stvl.weights.numbers import cast, check_finite, is_float
from stvl.weights.resize import Resize
from stvl.weights.rules import Ignored, Layout, New, Rule, Shape
from stvl.weights.source import Source
from stvl.weights.unload import entries_of, unplan

__all__ = ["Fill", "LoadPlan", "Target", "entries_of", "load_params", "plan_load", "unplan"]


@dataclasses.dataclass(frozen=True)
class Target:
    """A parameter of the model: its shape, with the layer axis in front where it has one, and its dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Fill:
    """Where a parameter comes from.

    Attributes:
        rule: what takes its source tensors.
        part: which of the rule's targets it is.
        names: source tensors, one a layer.
        stacked: whether the parameter has a layer axis.
        resize: how each layer's shape is changed.
    """

    rule: Rule
    part: int
    names: tuple[str, ...]
    stacked: bool
    resize: Resize | None = None


@dataclasses.dataclass(frozen=True)
class LoadPlan:
    """How a source fills a model: checked, and nothing read yet.

    Attributes:
        layout: the naming.
        source: the open checkpoint.
        targets: all parameters of the model.
        fills: parameter -> where it comes from.
        taken: source tensor -> the rule that takes it.
        ignored: source tensor -> why it goes nowhere.
        new: parameter -> why it does not come from the source.
        resized: parameter -> what changes its shape.
        prefix: what stands before every source name.
    """

    layout: Layout
    source: Source
    targets: Mapping[str, Target]
    fills: Mapping[str, Fill]
    taken: Mapping[str, Rule]
    ignored: Mapping[str, str]
    new: Mapping[str, str]
    resized: Mapping[str, str]
    prefix: str = ""

    def read(self, path: str, dtype: Any = None) -> np.ndarray:
        """One parameter with all its layers; memory holds it and one source tensor.

        Args:
            path: the parameter.
            dtype: of the result; None for the target's. `source_dtype` gives the one that changes no number.

        Raises:
            WeightsError: a source tensor holds NaN or infinities or a number that `dtype` cannot hold (the tensor is
                named), cannot be read, or the parameter is new.
        """
        fill = self._fill(path)
        target = self.targets[path]
        kind = np.dtype(target.dtype if dtype is None else dtype)
        if not fill.stacked:
            part = self._part(fill, fill.names[0], target.shape, kind)
            return np.ascontiguousarray(part).reshape(target.shape)
        made = np.empty(target.shape, kind)
        for layer, name in enumerate(fill.names):
            made[layer] = self._part(fill, name, target.shape[1:], kind)
        return made

    def source_dtype(self, path: str) -> np.dtype:
        """The dtype that holds a parameter's source numbers exactly: theirs, or float32 (float64) where layers differ."""
        kinds = {np.dtype(self.source.entries[name].dtype) for name in self._fill(path).names}
        if len(kinds) == 1:
            return kinds.pop()
        return np.dtype(np.float64 if np.dtype(np.float64) in kinds else np.float32)

    def items(self, dtype: Any = None) -> Iterator[tuple[str, np.ndarray]]:
        """All parameters that the source fills, one after the other."""
        for path in self.fills:
            yield path, self.read(path, dtype)

    def _fill(self, path: str) -> Fill:
        if path in self.new:
            raise WeightsError(f"{path} does not come from {self.source.path}: {self.new[path]}")
        if path not in self.fills:
            raise WeightsError(f"the model has no parameter {path!r}{nearest(path, self.targets)}")
        return self.fills[path]

    def _part(self, fill: Fill, name: str, shape: Shape, kind: np.dtype) -> np.ndarray:
        array = self.source.read(name)
        check_finite(array, f"{self.source.path}: {name}")
        shapes = _layer_shapes(fill.rule, self.targets)
        part = fill.rule.forward(array, shapes)[fill.part]
        if fill.resize is not None:
            part = fill.resize(part, shape)
        return cast(part, kind, f"{self.source.path}: {name}")


def plan_load(
    layout: Layout,
    source: Source,
    targets: Mapping[str, Target],
    *,
    resize: Mapping[str, Resize] | None = None,
    extra_new: tuple[New, ...] = (),
    extra_ignored: tuple[Ignored, ...] = (),
) -> LoadPlan:
    """Say where every source tensor goes and where every parameter comes from; nothing is read.

    Args:
        layout: the source's naming.
        source: the open checkpoint.
        targets: the parameters of the model by path.
        resize: rules for parameters whose shape may differ, by path; a parameter without one has the source's shape.
        extra_new: parameters that may come from nowhere, besides the layout's.
        extra_ignored: tensors that go nowhere, besides the layout's; they go before its rules.

    Raises:
        WeightsError: tensors are left over, parameters are not filled, or shapes differ without a rule; all are listed,
            with the nearest names. Or the layout contradicts itself.
    """
    rules = dict(resize or {})
    unknown = [path for path in rules if path not in targets]
    if unknown:
        raise WeightsError(f"no parameter {unknown[0]!r} to resize{nearest(unknown[0], targets)}")
    matching = match(layout, source.entries, extra_ignored)
    wrong = Complaints(source.path, layout.name)
    for name in matching.left:
        wrong.left_over(name, source.entries[name].shape)
    fills: dict[str, Fill] = {}
    new = (*layout.new, *extra_new)
    for rule in layout.rules:
        fills.update(_fill_rule(rule, matching.of(rule), source, targets, rules, wrong))
    fresh = _unfilled(layout, targets, fills, new, wrong, matching.prefix)
    wrong.throw()
    return LoadPlan(
        layout=layout,
        source=source,
        targets=dict(targets),
        fills=fills,
        taken={item.name: item.rule for item in matching.matched},
        ignored=matching.ignored,
        new=fresh,
        resized={path: fill.resize.says for path, fill in fills.items() if fill.resize is not None},
        prefix=matching.prefix,
    )


def _layer_shapes(rule: Rule, targets: Mapping[str, Target]) -> tuple[Shape, ...]:
    """Shapes of a rule's parameters without the layer axis."""
    skip = 1 if LAYER in rule.source else 0
    return tuple(tuple(targets[path].shape[skip:]) for path in rule.targets)


def _fill_rule(
    rule: Rule,
    found: Mapping[int | None, str],
    source: Source,
    targets: Mapping[str, Target],
    resize: Mapping[str, Resize],
    wrong: Complaints,
) -> dict[str, Fill]:
    """Where the parameters of one rule come from; nothing for a rule whose tensors are not in the file."""
    if not found:
        return {}
    absent = [path for path in rule.targets if path not in targets]
    if absent:
        for name in found.values():
            why = f"its parameter {absent[0]} is not in the model"
            wrong.left_over(name, source.entries[name].shape, why)
        wrong.mentioned.update(rule.targets)
        return {}
    names = _layer_names(rule, found, source, targets, wrong)
    used: set[str] = set()
    for name in names:
        used |= _check_shapes(rule, name, source, targets, resize, wrong)
    if not names or wrong.mentioned & set(rule.targets):
        return {}
    stacked = LAYER in rule.source
    return {
        path: Fill(rule, part, tuple(names), stacked, resize[path] if path in used else None)
        for part, path in enumerate(rule.targets)
    }


def _layer_names(
    rule: Rule,
    found: Mapping[int | None, str],
    source: Source,
    targets: Mapping[str, Target],
    wrong: Complaints,
) -> list[str]:
    """A rule's tensors in the order of layers, which are 0 to depth - 1 without gap; complains about others."""
    if LAYER not in rule.source:
        return list(found.values())
    depths = {targets[path].shape[:1] for path in rule.targets}
    if len(depths) > 1 or () in depths:
        raise WeightsError(
            f"the parameters of {rule.source} are not stacked over the same layers: {rule.targets}"
        )
    ((depth,),) = depths
    numbers = {layer: name for layer, name in found.items() if layer is not None}
    if set(numbers) != set(range(depth)):
        wrong.layer_count(rule.source, numbers, depth)
    some = next(iter(numbers.items()))
    prefix = some[1].removesuffix(rule.source.replace(LAYER, str(some[0])))
    for layer in range(depth):
        if layer not in numbers:
            wrong.lacks(prefix + rule.source.replace(LAYER, str(layer)), rule.targets)
    for layer in sorted(numbers):
        if layer >= depth:
            name = numbers[layer]
            wrong.left_over(name, source.entries[name].shape, f"the model has layers 0-{depth - 1}")
            wrong.mentioned.update(rule.targets)
    return [numbers[layer] for layer in range(depth) if layer in numbers]


def _check_shapes(
    rule: Rule,
    name: str,
    source: Source,
    targets: Mapping[str, Target],
    resize: Mapping[str, Resize],
    wrong: Complaints,
) -> set[str]:
    """Complain where a tensor has not the parameters' shapes; gives those that a resize brings to theirs."""
    entry = source.entries[name]
    shapes = _layer_shapes(rule, targets)
    made = part_shapes(rule, entry.shape, shapes)
    for path in rule.targets:
        pair = (np.dtype(entry.dtype), np.dtype(targets[path].dtype))
        if pair[0] != pair[1] and not (is_float(pair[0]) and is_float(pair[1])):
            wrong.wrong_dtype(path, name, str(pair[0]), str(pair[1]))
    if made is None or len(made) != len(shapes):
        want = source_shape(rule, shapes)
        says = "its steps cannot read it" if want is None else f"the model needs {want}"
        wrong.differs(", ".join(rule.targets), name, entry.shape, says)
        wrong.mentioned.update(rule.targets)
        return set()
    resized = set()
    for path, found, shape in zip(rule.targets, made, shapes, strict=True):
        if found == shape:
            continue
        if path not in resize:
            wrong.differs(
                path, name, entry.shape, f"there it is {found}, the model has {shape}, and no rule resizes it"
            )
            continue
        try:
            resize[path].check(found, shape)
            resized.add(path)
        except WeightsError as problem:
            wrong.differs(path, name, entry.shape, str(problem))
    return resized


def _unfilled(
    layout: Layout,
    targets: Mapping[str, Target],
    fills: Mapping[str, Fill],
    new: tuple[New, ...],
    wrong: Complaints,
    prefix: str,
) -> dict[str, str]:
    """Parameters that are new by name, and why; complains about others that nothing fills."""
    rules = {path: rule for rule in layout.rules for path in rule.targets}
    fresh = {}
    for path, target in targets.items():
        if path in fills or path in wrong.mentioned:
            continue
        why = next((item.why for item in new if re.fullmatch(item.pattern, path)), None)
        if why is not None:
            fresh[path] = why
        elif path in rules:
            rule = rules[path]
            depth = target.shape[0] if LAYER in rule.source and target.shape else 1
            for layer in range(depth):
                wrong.lacks(prefix + rule.source.replace(LAYER, str(layer)), rule.targets)
        else:
            wrong.unfilled(path, target.shape)
    return fresh


def load_params(
    plan: LoadPlan, targets_tree: Any, shardings: Any = None, dtype: Any = None
) -> dict[str, Any]:
    """A plan's parameters as nested dicts of jax arrays, each read, cast and placed before the next one is read.

    The host holds one parameter at a time. Parameters that the source does not fill (``plan.new``) are taken from
    `targets_tree`, where they have to be arrays.

    Args:
        plan: what to read.
        targets_tree: nested dicts with a leaf a parameter: `jax.ShapeDtypeStruct`, or an array.
        shardings: nested dicts with a sharding a leaf, or one sharding for all; None for those of the leaves that have
            one, and the first device otherwise.
        dtype: of the result; None for each leaf's.

    Raises:
        WeightsError: the tree has not the plan's parameters, a new one has no array, or a tensor cannot be used.
    """
    import jax

    leaves = dict(_flat(targets_tree))
    lost, extra = sorted(plan.targets.keys() - leaves.keys()), sorted(leaves.keys() - plan.targets.keys())
    if lost or extra:
        raise WeightsError(
            f"the tree is not the plan's: without {lost[:SHOWN]}, with {extra[:SHOWN]} besides"
        )
    places = dict(_flat(shardings)) if isinstance(shardings, Mapping) else dict.fromkeys(leaves, shardings)
    unplaced = sorted(leaves.keys() - places.keys())
    if unplaced:
        raise WeightsError(f"no sharding for {', '.join(unplaced[:SHOWN])}")
    made: dict[str, Any] = {}
    for path, leaf in leaves.items():
        if tuple(leaf.shape) != plan.targets[path].shape:
            raise WeightsError(f"{path} is {leaf.shape} in the tree, the plan has {plan.targets[path].shape}")
        kind = np.dtype(leaf.dtype if dtype is None else dtype)
        place = places[path] if shardings is not None else getattr(leaf, "sharding", None)
        if path in plan.new:
            if isinstance(leaf, jax.ShapeDtypeStruct):
                raise WeightsError(
                    f"{path} does not come from the file ({plan.new[path]}): give it as an array"
                )
            array = cast(np.asarray(leaf), kind, path)
        else:
            array = plan.read(path, kind)
        _put(made, path, _place(jax, array, place))
    return made


def _place(jax: Any, array: np.ndarray, sharding: Any) -> Any:
    if sharding is None or isinstance(sharding, jax.sharding.SingleDeviceSharding):
        return jax.device_put(array, sharding)
    # Each device is given its own part only; every host reads the file and keeps the parts of its devices.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", value


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *folders, name = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[name] = value
