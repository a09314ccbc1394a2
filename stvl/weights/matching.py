"""Which source tensor belongs to which rule and layer; shapes run through the rules without their numbers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

from stvl.core.errors import WeightsError
from stvl.weights.rules import Ignored, Layout, Parts, Rule, Shape

LAYER = "{i}"


@dataclasses.dataclass(frozen=True)
class Matched:
    """A source tensor, the rule that takes it, and its layer (None where the rule has no layers)."""

    name: str
    rule: Rule
    layer: int | None


@dataclasses.dataclass(frozen=True)
class Matching:
    """Source names sorted by what a layout says of them.

    Attributes:
        prefix: what was taken away from the front of every name.
        matched: tensors with a rule.
        ignored: name -> why.
        left: names that the layout does not know.
    """

    prefix: str
    matched: tuple[Matched, ...]
    ignored: Mapping[str, str]
    left: tuple[str, ...]

    def of(self, rule: Rule) -> dict[int | None, str]:
        """Names of a rule's tensors by layer."""
        return {item.layer: item.name for item in self.matched if item.rule is rule}


def check_layout(layout: Layout) -> None:
    """Refuse a layout in which two rules take one tensor or fill one parameter.

    Raises:
        WeightsError: with both rules' names.
    """
    by_source: dict[str, Rule] = {}
    by_target: dict[str, Rule] = {}
    for rule in layout.rules:
        if rule.source.count(LAYER) > 1:
            raise WeightsError(f"layout {layout.name}: {rule.source} has {LAYER} more than once")
        if not rule.targets:
            raise WeightsError(f"layout {layout.name}: {rule.source} has no target")
        if rule.source in by_source:
            raise WeightsError(f"layout {layout.name}: two rules take {rule.source}")
        by_source[rule.source] = rule
        for path in rule.targets:
            if path in by_target:
                raise WeightsError(
                    f"layout {layout.name}: {path} is filled twice, from {by_target[path].source} and {rule.source}"
                )
            by_target[path] = rule


def match(layout: Layout, names: Iterable[str], extra_ignored: tuple[Ignored, ...] = ()) -> Matching:
    """Find each name's rule.

    `extra_ignored` goes before the rules; the layout's own `ignored` comes after them.

    Raises:
        WeightsError: the layout contradicts itself: two rules, or a rule and an ignored pattern, for one tensor.
    """
    check_layout(layout)
    names = list(names)
    extra = [(re.compile(item.pattern), item.why) for item in extra_ignored]
    own = [(re.compile(item.pattern), item.why) for item in layout.ignored]
    prefix = _prefix(layout, [name for name in names if _why(name, [*extra, *own]) is None])
    exact = {rule.source: rule for rule in layout.rules if LAYER not in rule.source}
    layered = [(_pattern(rule.source), rule) for rule in layout.rules if LAYER in rule.source]
    matched, ignored, left = [], {}, []
    for name in names:
        short = name.removeprefix(prefix)
        why = _why(name, extra) or _why(short, extra)
        if why is not None:
            ignored[name] = why
            continue
        found = [(exact[short], None)] if short in exact else []
        found += [(rule, int(hit[1])) for pattern, rule in layered if (hit := pattern.fullmatch(short))]
        why = _why(name, own) or _why(short, own)
        if len(found) > 1 or (found and why is not None):
            both = [rule.source for rule, _ in found] + ([f"ignored: {why}"] if why else [])
            raise WeightsError(f"layout {layout.name}: {name} belongs to {' and to '.join(both)}")
        if found:
            matched.append(Matched(name, *found[0]))
        elif why is not None:
            ignored[name] = why
        else:
            left.append(name)
    return Matching(prefix, tuple(matched), ignored, tuple(left))


def _prefix(layout: Layout, names: list[str]) -> str:
    """Wrappers in front of every name, one after the other (``module._orig_mod.``)."""
    found = ""
    while names:
        step = next((item for item in layout.prefixes if item and all(x.startswith(item) for x in names)), "")
        # A layout may itself write its names with a wrapper.
        if not step or any(rule.source.startswith(step) for rule in layout.rules):
            break
        found += step
        names = [name.removeprefix(step) for name in names]
    return found


def _why(name: str, patterns: list[tuple[re.Pattern[str], str]]) -> str | None:
    return next((why for pattern, why in patterns if pattern.fullmatch(name)), None)


def _pattern(source: str) -> re.Pattern[str]:
    # Layer numbers have no leading zeros: "blocks.01" is another name than "blocks.1".
    return re.compile(re.escape(source).replace(re.escape(LAYER), r"(0|[1-9]\d{0,5})"))


def hollow(shape: Shape) -> np.ndarray:
    """An array of a shape that takes one byte: steps can be run on it to learn shapes."""
    return np.broadcast_to(np.zeros((), np.bool_), shape)


def part_shapes(rule: Rule, shape: Shape, targets: tuple[Shape, ...]) -> tuple[Shape, ...] | None:
    """Shapes of what a rule makes of a source tensor; None where its steps cannot take one of that shape.

    The way back has to give the source's shape again: a reshape would also turn numbers of a wrong layout into the
    target's shape, where only their count is right.
    """
    try:
        parts = rule.forward(hollow(shape), targets)
        back = rule.backward(parts)
    except (ValueError, IndexError):
        return None
    return tuple(part.shape for part in parts) if back.shape == shape else None


def source_shape(rule: Rule, parts: tuple[Shape, ...]) -> Shape | None:
    """Shape of the source tensor that holds parameters of these shapes; None where the rule's steps cannot join them."""
    made: Parts = tuple(hollow(shape) for shape in parts)
    try:
        return rule.backward(made).shape
    except (ValueError, IndexError):
        return None
