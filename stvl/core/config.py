"""Configs as data: frozen dataclasses that print to JSON, come back from it, and can be compared field by field.

A config class is registered under its own name by `config`. JSON holds that name, and only registered names are
accepted when it is read back, so that a file can never name code.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, dataclass_transform

from stvl.core.errors import ConfigError, nearest

T = TypeVar("T")
_REGISTRY: dict[str, type] = {}


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Make `cls` a frozen keyword-only dataclass and register it, so that JSON can bring it back.

    Raises:
        ConfigError: another class of that name is registered already.
    """
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    known = _REGISTRY.get(made.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (made.__module__, made.__qualname__):
        raise ConfigError(
            f"two config classes are called {made.__name__!r}: {known.__module__} and {made.__module__}"
        )
    _REGISTRY[made.__name__] = made
    return made


def registered() -> Mapping[str, type]:
    """All registered config classes by name."""
    return types.MappingProxyType(_REGISTRY)


def is_config(value: object) -> bool:
    """Whether `value` is an instance of a registered config class."""
    return dataclasses.is_dataclass(value) and type(value).__name__ in _REGISTRY


def to_dict(value: Any) -> Any:
    """Turn a config into plain JSON types; each config becomes a dict with its class name under ``"type"``."""
    if is_config(value):
        fields = {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, (tuple, list)):
        return [to_dict(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(
        f"a config may hold numbers, strings, tuples and configs, not {type(value).__name__}: {value!r}"
    )


def from_dict(data: Any) -> Any:
    """Bring back what `to_dict` wrote (lists come back as tuples). Fields that are missing take their defaults.

    Raises:
        ConfigError: an unregistered type or an unknown field, with the nearest name.
    """
    if isinstance(data, list):
        return tuple(from_dict(item) for item in data)
    if not isinstance(data, dict):
        return data
    name = data.get("type")
    if name not in _REGISTRY:
        raise ConfigError(f"unknown config type {name!r}{nearest(str(name), _REGISTRY)}")
    cls = _REGISTRY[name]
    known = {field.name for field in dataclasses.fields(cls)}
    for key in data:
        if key != "type" and key not in known:
            raise ConfigError(f"{name} has no field {key!r}{nearest(key, known)}")
    return cls(**{key: from_dict(item) for key, item in data.items() if key != "type"})


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``("model.video.depth", 12)`` pairs: every leaf of a config with its dotted path; types as ``path:type``."""
    if is_config(value):
        yield f"{prefix}:type" if prefix else ":type", type(value).__name__
        for field in dataclasses.fields(value):
            path = f"{prefix}.{field.name}" if prefix else field.name
            yield from flatten(getattr(value, field.name), path)
    elif isinstance(value, (tuple, list)) and any(is_config(item) for item in value):
        for index, item in enumerate(value):
            yield from flatten(item, f"{prefix}[{index}]")
    else:
        yield prefix, value


def diff(left: Any, right: Any) -> list[tuple[str, Any, Any]]:
    """List ``(path, left, right)`` for every leaf in which two configs differ; a missing leaf reads ``None``."""
    one, two = dict(flatten(left)), dict(flatten(right))
    paths = list(one) + [path for path in two if path not in one]
    return [(path, one.get(path), two.get(path)) for path in paths if one.get(path) != two.get(path)]


def override(value: T, changes: Mapping[str, str]) -> T:
    """Return a copy of `value` in which the leaf at each dotted path is read from its text by the type of its field.

    All changes of a config are made at once, so fields that must fit each other can be changed together in any order.

    Raises:
        ConfigError: an unknown name (with the nearest one), a text that the field's type does not take, or values
            that do not fit each other.
    """
    names = [field.name for field in dataclasses.fields(value)]  # type: ignore[arg-type]
    hints = typing.get_type_hints(type(value))
    inner: dict[str, dict[str, str]] = {}
    made: dict[str, Any] = {}
    for path, text in changes.items():
        head, _, rest = path.partition(".")
        if head not in names:
            raise ConfigError(f"{type(value).__name__} has no field {head!r}{nearest(head, names)}")
        if rest:
            inner.setdefault(head, {})[rest] = text
        else:
            made[head] = parse(text, hints[head], head)
    for head, parts in inner.items():
        part = getattr(value, head)
        if not is_config(part):
            deeper = f"{head}.{next(iter(parts))}"
            raise ConfigError(f"{deeper!r} goes deeper than the config does: {part!r} has no fields")
        made[head] = override(part, parts)
    return dataclasses.replace(value, **made)  # type: ignore[type-var]


def parse(text: str, hint: Any, name: str) -> Any:
    """Read `text` as a value of the annotation `hint`: numbers, booleans, strings, literals, tuples, optionals.

    Raises:
        ConfigError: what was expected and what was found.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(text, args, name)
    if origin is typing.Literal:
        if text in args:
            return text
        raise ConfigError(f"{name} = {text!r}{nearest(text, [str(arg) for arg in args])}")
    if origin is tuple:
        items = [item for item in text.strip("()[] ").split(",") if item.strip()]
        kinds = [args[0]] * len(items) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(kinds) != len(items):
            raise ConfigError(f"{name} takes {len(kinds)} values, found {len(items)}: {text!r}")
        return tuple(parse(item.strip(), kind, name) for item, kind in zip(items, kinds, strict=True))
    if hint is bool:
        if text.lower() in ("true", "1", "yes", "on", "false", "0", "no", "off"):
            return text.lower() in ("true", "1", "yes", "on")
        raise ConfigError(f"{name} is true or false, found {text!r}")
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            kind = "a whole number" if hint is int else "a number"
            raise ConfigError(f"{name} is {kind}, found {text!r}") from None
    if hint is str:
        return text
    raise ConfigError(
        f"{name} holds {getattr(hint, '__name__', hint)}, which one word cannot spell: set its fields"
    )


def _parse_union(text: str, args: tuple[Any, ...], name: str) -> Any:
    if type(None) in args and text.lower() in ("none", "null", ""):
        return None
    problems = []
    for arg in args:
        if arg is type(None):
            continue
        try:
            return parse(text, arg, name)
        except ConfigError as problem:
            problems.append(str(problem))
    raise ConfigError("; ".join(problems))
