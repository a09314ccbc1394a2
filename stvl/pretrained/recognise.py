"""Which model a file of weights holds: its layout and all sizes, read from names and shapes alone."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from stvl.core.errors import ConfigError, WeightsError, nearest
from stvl.data.augment import EvalTransform
from stvl.data.text import ClipTokenizer
from stvl.models.clip_text import ClipTextConfig
from stvl.models.dual import DualEncoderConfig
from stvl.models.eva02_at import weights as eva02_at
from stvl.models.text_weights import NEW_TEXT, NEW_TIME
from stvl.models.vit import weights as vit
from stvl.nn.mlp import Activation
from stvl.pretrained.hints import foreign
from stvl.pretrained.layouts import LAYOUTS, FamilyLayout, HasShape, Sizes, patterns_of, source_of
from stvl.weights.rules import Layout, New

__all__ = ["LAYOUTS", "FamilyLayout", "HasShape", "Recognised", "Sizes", "bare", "recognise"]


@dataclasses.dataclass(frozen=True)
class Recognised:
    """A file's model.

    Attributes:
        layout: rules for this file.
        family: family of presets.
        size: ``EVA02-L-14``, or ``EVA02 of width 192, depth 3, patch 8 at 48 px`` where the size is not a published one.
        model: both towers as the file has them: an image model is a video model of one frame without P_t.
        tokenizer, transform: the source's own.
        frames: rows of P_t; 1 for image models.
        notes: what was decided without evidence in the file.
        optional_new: parameters that the file lacks and that a caller may allow to start at random (`plan_load`'s
            ``extra_new``): the text tower of a file that holds an image tower only.
        source: public code that the names were read from.
    """

    layout: Layout
    family: str
    size: str
    model: DualEncoderConfig
    tokenizer: ClipTokenizer
    transform: EvalTransform
    frames: int
    notes: tuple[str, ...]
    optional_new: tuple[New, ...]
    source: str


#: What `Layout` takes away by itself.
_PREFIXES = ("module.", "_orig_mod.")

#: (width, depth) -> letter in the name of a size (arXiv 2010.11929, Table 1).
_LETTERS = MappingProxyType({(768, 12): "B", (1024, 24): "L"})


def bare(entries: Mapping[str, HasShape], prefixes: tuple[str, ...]) -> dict[str, HasShape]:
    """Entries without the wrappers that stand before every name."""
    found = dict(entries)
    while found:
        prefix = next((p for p in prefixes if all(name.startswith(p) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): entry for name, entry in found.items()}
    return found


def recognise(
    entries: Mapping[str, HasShape],
    *,
    expect: str | None = None,
    activation: Activation | None = None,
    heads: tuple[int, int] | None = None,
) -> Recognised:
    """The layout and the model of a file, from names and shapes.

    Heads leave no trace in shapes: width / 64 in each tower, as in all published sizes, unless `heads` (video, text)
    says otherwise.

    Args:
        entries: name -> anything with a shape.
        expect: refuse everything but this size (``EVA02-L-14``), family (``vit-clip``) or layout (``avion/plain``).
        activation: what the MLPs were trained with, where the caller knows better than the names.
        heads: heads of the video and of the text tower.

    Raises:
        WeightsError: no known layout, with the nearest one and the names that speak against it; another model than
            `expect`; an activation that has to be said; shapes that make no model.
    """
    given, wrappers, fitting = _unwrapped(entries)
    if not fitting:
        raise WeightsError(_unknown(given))
    found = max(fitting, key=lambda item: len(item.anchors))
    layout = _of_this_file(found, given)
    if wrappers:
        layout = dataclasses.replace(layout, prefixes=(*layout.prefixes, *wrappers))
    notes = [f"every name stands behind {wrapper!r}" for wrapper in wrappers]
    sizes = _sizes(found, layout, given, heads, _activation(found, given, activation, notes))
    alone = not source_of(layout, "text/tokens")
    try:
        model = DualEncoderConfig(
            video=found.video(sizes),
            text=_usual_text(sizes) if alone else _text(layout, given, heads, sizes),
            embedding=sizes.embedding,
            temperature=0.07 if "logit_scale" in given else None,
        )
    except ConfigError as error:
        raise WeightsError(f"the shapes make no model of {layout.name}: {error}") from error
    notes += [*_remarks(found, model, alone, said=heads is not None)]
    name = _name(found.kind, sizes)
    _hold(expect, name, found, given)
    return Recognised(
        layout=layout,
        family=found.family,
        size=name,
        model=model,
        tokenizer=ClipTokenizer(context_length=model.text.context),
        transform=EvalTransform(size=sizes.image_size, kernel=found.kernel),
        frames=max(sizes.frames, 1),
        notes=tuple(notes),
        optional_new=(NEW_TEXT,) if alone else (),
        source=found.source,
    )


def _remarks(found: FamilyLayout, model: DualEncoderConfig, alone: bool, said: bool) -> Iterator[str]:
    """What was decided without evidence in the file."""
    if not said:
        yield f"heads are width / 64: {model.video.heads} and {model.text.heads}"
    if alone:
        yield "an image tower only: a text tower would start at random"
    elif model.text.vocabulary != ClipTokenizer().vocab_size:
        yield f"the tokenizer is CLIP's of {ClipTokenizer().vocab_size} ids, the file has {model.text.vocabulary}"
    if found.kernel == "bilinear":
        yield "the source resizes tensors bilinearly, and without antialias in old versions of torchvision"
    if found.layout is eva02_at.RELEASE:
        yield f"the layout is {found.source}"


def _unwrapped(
    entries: Mapping[str, HasShape],
) -> tuple[dict[str, HasShape], tuple[str, ...], list[FamilyLayout]]:
    """Entries without wrappers, the wrappers that no layout knows of (``model.``), and the layouts that fit."""
    plain = given = bare(entries, _PREFIXES)
    wrappers: tuple[str, ...] = ()
    while True:
        fitting = [item for item in LAYOUTS.values() if item.fits(given)]
        wrapper = next(iter(given), "").partition(".")[0] + "."
        if fitting or not given or not all(name.startswith(wrapper) for name in given):
            return (given, wrappers, fitting) if fitting else (plain, (), [])
        wrappers = (*wrappers, wrapper)
        given = bare(given, (wrapper, *_PREFIXES))


def _of_this_file(found: FamilyLayout, entries: Mapping[str, HasShape]) -> Layout:
    """The layout without the rules of optional names that this file lacks."""
    absent = [name for name in found.optional if name not in entries]
    if not absent:
        return found.layout
    rules = tuple(rule for rule in found.layout.rules if rule.source not in absent)
    return dataclasses.replace(found.layout, rules=rules, new=(*found.layout.new, NEW_TIME))


def _activation(
    found: FamilyLayout, entries: Mapping[str, HasShape], asked: Activation | None, notes: list[str]
) -> Activation:
    openai = [name for name in vit.OPENAI_NUMBERS if name in entries]
    if asked is not None:
        if openai and asked != "quick_gelu":
            notes.append(
                f"{asked} as asked, although {openai[0]!r} marks a file of OpenAI's, trained with quick_gelu"
            )
        return asked
    if openai:
        notes.append(f"quick_gelu: {openai[0]!r} marks a file of OpenAI's")
        return "quick_gelu"
    if found.activation is None:
        raise WeightsError(
            f"names of {found.layout.name} cannot tell the activation: OpenAI's weights need quick_gelu, LAION's and "
            "most later ones gelu (hidden_act in the model's config.json); say which"
        )
    if found.family == "vit-clip":
        notes.append(
            "gelu: names cannot tell; say quick_gelu for a model whose name ends so, or that OpenAI trained"
        )
    return found.activation


def _shape(layout: Layout, entries: Mapping[str, HasShape], target: str, axes: int) -> tuple[int, ...]:
    name = source_of(layout, target)
    if name not in entries:
        raise WeightsError(f"{layout.name}: {name!r} is not in the file, and sizes cannot be told without it")
    shape = tuple(entries[name].shape)
    if len(shape) < axes:
        raise WeightsError(f"{layout.name}: {name!r} has the shape {shape}, {axes} axes or more are expected")
    return shape


def _depth(layout: Layout, entries: Mapping[str, HasShape], tower: str) -> int:
    rule = next(rule for rule in layout.rules if f"{tower}/stack/layers/mlp_norm/scale" in rule.targets)
    pattern = re.compile(re.escape(rule.source).replace(re.escape("{i}"), r"(\d+)"))
    layers = {int(match[1]) for name in entries if (match := pattern.fullmatch(name))}
    if not layers:
        raise WeightsError(f"{layout.name}: no {rule.source!r} in the file, so the tower has no layers")
    return 1 + max(layers)


def _heads(width: int, asked: int | None, tower: str) -> int:
    if asked is None and width % 64:
        raise WeightsError(
            f"the {tower} tower's width {width} is no multiple of 64: say how many heads it has"
        )
    return asked or width // 64


def _sizes(
    found: FamilyLayout,
    layout: Layout,
    entries: Mapping[str, HasShape],
    heads: tuple[int, int] | None,
    activation: Activation,
) -> Sizes:
    width = _shape(layout, entries, "video/class_token", 1)[-1]
    stem = _shape(layout, entries, "video/stem/kernel", 2)
    patch = math.isqrt(stem[1] // 3) if found.stem_axes == 2 else stem[-1]
    places = _shape(layout, entries, "video/positions/space", 2)[-2] - 1
    side = math.isqrt(places)
    if side * side != places or not side:
        name = source_of(layout, "video/positions/space")
        raise WeightsError(f"{layout.name}: {name!r} has {places} places, which are no square")
    projection = _shape(layout, entries, "video/projection/kernel", 2)
    # torch's Linear is (out, in); a bare projection matrix is (in, out).
    linear = source_of(layout, "video/projection/kernel").endswith(".weight")
    timed = source_of(layout, "video/positions/time")
    return Sizes(
        width=width,
        depth=_depth(layout, entries, "video"),
        heads=_heads(width, heads[0] if heads else None, "video"),
        patch=patch,
        image_size=patch * side,
        frames=_shape(layout, entries, "video/positions/time", 2)[-2] if timed else 0,
        embedding=projection[0 if linear else 1],
        activation=activation,
    )


def _text(
    layout: Layout, entries: Mapping[str, HasShape], heads: tuple[int, int] | None, sizes: Sizes
) -> ClipTextConfig:
    """The text tower."""
    vocabulary, width = _shape(layout, entries, "text/tokens", 2)
    return ClipTextConfig(
        width=width,
        depth=_depth(layout, entries, "text"),
        heads=_heads(width, heads[1] if heads else None, "text"),
        context=_shape(layout, entries, "text/positions", 2)[0],
        vocabulary=vocabulary,
        activation=sizes.activation,
    )


def _usual_text(sizes: Sizes) -> ClipTextConfig:
    """The text tower that EVA02-CLIP pairs with an image tower of this width."""
    return ClipTextConfig(width=768, heads=12) if sizes.width >= 1024 else ClipTextConfig()


def _name(kind: str, sizes: Sizes) -> str:
    letter = _LETTERS.get((sizes.width, sizes.depth))
    if letter is None or sizes.heads * 64 != sizes.width:
        where = f"patch {sizes.patch} at {sizes.image_size} px"
        return f"{kind} of width {sizes.width}, depth {sizes.depth}, {where}"
    return f"{kind}-{letter}-{sizes.patch}" + (f"-{sizes.image_size}" if sizes.image_size != 224 else "")


def _hold(expect: str | None, name: str, found: FamilyLayout, entries: Mapping[str, HasShape]) -> None:
    """Refuse another model than the expected one, with what tells them apart."""
    if expect is None or expect in (name, found.family, found.layout.name):
        return
    for item in LAYOUTS.values():
        if expect in (item.family, item.layout.name) or expect.startswith(f"{item.kind}-"):
            if item.kind != found.kind or item.layout.name == expect:
                missing = item.missing(entries)
                why = f": {found.anchors[0]!r} is there" + (f", {missing[0]!r} is not" if missing else "")
                raise WeightsError(f"this is {name} ({found.layout.name}), not {expect}{why}")
            raise WeightsError(f"this is {name} ({found.layout.name}), not {expect}: its sizes differ")
    known = [*LAYOUTS, *(item.family for item in LAYOUTS.values()), name]
    raise WeightsError(
        f"this is {name} ({found.layout.name}); there is no {expect!r}{nearest(expect, known)}"
    )


def _unknown(entries: Mapping[str, HasShape]) -> str:
    """Why no layout fits: the nearest one, and what speaks against it."""
    if not entries:
        return "no known layout: the file holds no tensor"
    hint = foreign(entries)
    if hint:
        return f"no known layout: {hint}"
    patterns = patterns_of(entries)

    def shared(item: FamilyLayout) -> float:
        sources = {rule.source for rule in item.layout.rules}
        # Whole names first; their ends find the layout again where only the front was renamed.
        return _overlap(sources, patterns) + _overlap(_ends(sources), _ends(patterns))

    near = max(LAYOUTS.values(), key=shared)
    sources = {rule.source for rule in near.layout.rules}
    parts = [
        f"no known layout; nearest is {near.layout.name} ({len(sources & patterns)} of {len(sources)} names)"
    ]
    stem = source_of(near.layout, "video/stem/kernel")
    if not near.missing(entries) and stem in entries:
        parts.append(f"{stem!r} has {len(entries[stem].shape)} axes, expected {near.stem_axes}")
    lacking, over = sorted(sources - patterns), sorted(patterns - sources)
    parts += [f"not in the file: {_few(lacking)}"] if lacking else []
    parts += [f"not in the layout: {_few(over)}"] if over else []
    return "; ".join([*parts, f"layouts: {', '.join(LAYOUTS)}"])


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def _ends(names: set[str]) -> set[str]:
    return {".".join(name.split(".")[-3:]) for name in names}


def _few(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
