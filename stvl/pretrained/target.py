"""Which model a conversion aims at, and what of the source has to be resized, dropped or drawn anew for it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np

from stvl.core.errors import ConfigError, WeightsError
from stvl.models.dual import DualEncoderConfig
from stvl.models.presets import names as preset_names
from stvl.models.presets import preset
from stvl.nn.mlp import Activation
from stvl.pretrained.recognise import Recognised, recognise
from stvl.weights.load import Target
from stvl.weights.resize import (
    Resize,
    chain,
    cut_context,
    inflate_patch,
    resize_patch,
    resize_places,
    resize_times,
)
from stvl.weights.rules import Ignored, Layout, New
from stvl.weights.source import Source

#: Sizes in which a preset has to agree with the file: no resize rule changes them.
_BODY = {
    "video": ("width", "depth", "heads", "patch", "input_norm"),
    "text": ("width", "depth", "heads", "vocabulary"),
}
#: Parameters that a model may lack although the source has them, or have although the source lacks them.
OPTIONAL = {
    "log_scale": "learnable temperature",
    "logit_bias": "learnable bias of the logits",
    "video/positions/time": "table P_t",
    "video/projection/bias": "bias in the video tower's projection",
}
_PROJECTIONS = re.compile(r"(video|text)/projection/.+")
TIME, STEM = "video/positions/time", "video/stem/kernel"


def dtype_of(name: str) -> np.dtype:
    """The numpy dtype of this name, ``bfloat16`` among them."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """What the converted model is to be; None keeps what the source has.

    Attributes:
        preset: ``FAMILY/SIZE`` of `stvl.models.presets`; the other options change single sizes of it.
        frames: frames of a clip; more than 1 makes a video model of an image model.
        size: side of the frames in pixels.
        patch: patch side in pixels.
        tube: frames in one token.
        context: positions of the text tower; only fewer than the source has.
        positions: how a model of EVA-02 tells frames apart; ``both`` where an image model becomes a video model.
        embedding: width of the shared space; where it changes, both projections start anew.
        times: a table P_t of another length is interpolated, or starts at zero.
        dtype: of the stored parameters; ``source`` keeps each tensor's own.
        seed: of parameters that start anew.
        activation: of the MLPs, which names cannot always tell; a preset says it as well.
        heads: of the video and the text tower, which shapes cannot tell; width / 64, or those of the preset.
        new_text: let the text tower start anew where the source is an image tower only.
        sha256: what the source file has to have; checked before anything is read.
        overwrite: replace a weights folder.
    """

    preset: str | None = None
    frames: int | None = None
    size: int | None = None
    patch: int | None = None
    tube: int | None = None
    context: int | None = None
    positions: Literal["learned", "rope", "both", "none"] | None = None
    embedding: int | None = None
    times: Literal["linear", "zeros"] = "linear"
    dtype: Literal["float32", "bfloat16", "float16", "source"] = "float32"
    seed: int = 0
    activation: Activation | None = None
    heads: tuple[int, int] | None = None
    new_text: bool = False
    sha256: str | None = None
    overwrite: bool = False


def recognised(source: Source, options: ConvertOptions) -> Recognised:
    """What a foreign checkpoint holds, where options or a preset say what names and shapes cannot tell.

    Raises:
        WeightsError: no known layout, or something that has to be said and is not.
    """
    wanted = None if options.preset is None else preset(options.preset)
    activation = options.activation or getattr(wanted and wanted.video, "activation", None)
    said = None if wanted is None else (wanted.video.heads, wanted.text.heads)
    try:
        found = recognise(source.entries, activation=activation, heads=options.heads)
    except WeightsError:
        if said is None or options.heads is not None:
            raise
        return recognise(source.entries, activation=activation, heads=said)
    if wanted is not None and said is not None and options.heads is None:
        if (found.model.video.width, found.model.text.width) == (wanted.video.width, wanted.text.width):
            return recognise(source.entries, activation=activation, heads=said)
    return found


def target_model(found: Recognised, options: ConvertOptions) -> DualEncoderConfig:
    """The model that `options` ask for, on the ground of what the source holds.

    Raises:
        WeightsError: a preset of another family or size, with both names and the sizes that differ.
        ConfigError: sizes that do not fit each other, or that the family does not have.
    """
    model = found.model
    if options.preset is not None:
        model = preset(options.preset)
        _refuse_other(found, options, model)
    if options.embedding is not None:
        model = dataclasses.replace(model, embedding=options.embedding)
    changes: dict[str, Any] = {
        "frames": options.frames,
        "image_size": options.size,
        "patch": options.patch,
        "tube": options.tube,
        "temporal_positions": options.positions or _default_positions(found, options),
    }
    if model.embedding == found.model.embedding and hasattr(model.video, "projection_bias"):
        changes["projection_bias"] = getattr(found.model.video, "projection_bias", None)
    video = _changed(model.video, changes)
    text = _changed(model.text, {"context": options.context})
    if options.frames is not None and options.frames < 1:
        raise ConfigError(f"frames is at least 1, found {options.frames}")
    if video.frames % getattr(video, "tube", 1):
        raise ConfigError(f"{video.frames} frames cannot be cut into tubes of {getattr(video, 'tube', 1)}")
    return dataclasses.replace(model, video=video, text=text)


def _default_positions(found: Recognised, options: ConvertOptions) -> str | None:
    """An image model that becomes a video model gets the paper's best; everything else keeps what it has."""
    if options.preset is not None or found.frames > 1 or (options.frames or 1) == 1:
        return None
    return "both" if hasattr(found.model.video, "rope") else "learned"


def _changed(part: Any, changes: Mapping[str, Any]) -> Any:
    fields = {field.name for field in dataclasses.fields(part)}
    made = {name: value for name, value in changes.items() if value is not None}
    for name, value in made.items():
        if name not in fields and not (name == "tube" and value == 1):
            raise ConfigError(f"{type(part).__name__} has no {name}: a model of this family cannot change it")
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ConfigError(f"{name} is at least 1, found {value}")
    allowed = {"temporal_positions": ("learned", "none")} if not hasattr(part, "rope") else {}
    for name, values in allowed.items():
        if name in made and made[name] not in values:
            raise ConfigError(
                f"{type(part).__name__} has no rotary positions: {name} is {' or '.join(values)}"
            )
    return dataclasses.replace(part, **{name: value for name, value in made.items() if name in fields})


def _differences(found: Recognised, model: DualEncoderConfig, patch: bool = True) -> list[str]:
    """Sizes that no rule changes and in which a model is not what was found, in lines."""
    rows, old = [], found.model
    if type(old.video) is not type(model.video):
        rows.append(
            f"the video tower is {type(old.video).__name__}, the preset's {type(model.video).__name__}"
        )
    # Heads leave no trace in the shapes of a foreign checkpoint.
    free = {"heads"} if not found.layout.name.startswith("stvl/") else set()
    free |= set() if patch else {"patch"}
    for tower, names in _BODY.items():
        for name in names:
            before, after = (getattr(getattr(side, tower), name, None) for side in (old, model))
            if name not in free and before != after and None not in (before, after):
                rows.append(f"{tower}.{name} is {before}, the preset's {after}")
    return rows


def _refuse_other(found: Recognised, options: ConvertOptions, model: DualEncoderConfig) -> None:
    rows = _differences(found, model, patch=options.patch is None)
    if not rows:
        return
    fit = [name for name in preset_names() if not _differences(found, preset(name))]
    hint = f"presets that fit: {', '.join(fit)}" if fit else "no preset fits: leave --preset out"
    raise WeightsError(
        f"this is {found.size} ({found.layout.name}), not {options.preset}:\n"
        + "\n".join(f"  {row}" for row in rows)
        + f"\n{hint}"
    )


def dropped(
    layout: Layout, found: Recognised, model: DualEncoderConfig, targets: Mapping[str, Target], zeros: bool
) -> dict[str, str]:
    """Parameters that the source holds and the model does not take from it, and why.

    Args:
        layout: the source's naming.
        found: what the source is.
        model: what is made of it.
        targets: the parameters of `model`.
        zeros: a table P_t of another length starts at zero.
    """
    held = {target for rule in layout.rules for target in rule.targets}
    gone = {}
    for path in sorted(held):
        if _PROJECTIONS.fullmatch(path) and model.embedding != found.model.embedding:
            gone[path] = f"the shared space is {model.embedding} wide, the source's {found.model.embedding}"
        elif path not in targets and path in OPTIONAL:
            gone[path] = f"the model has no {OPTIONAL[path]}"
        elif path == TIME and zeros and model.video.frames != found.model.video.frames:
            gone[path] = f"P_t starts at zero for {model.video.frames} frames, the source has {found.frames}"
    return gone


def fitted_layout(layout: Layout, gone: Mapping[str, str], targets: Mapping[str, Target]) -> Layout:
    """`layout` without the rules of dropped parameters: their tensors are ignored by name. Optional ones may be new."""
    rules = tuple(rule for rule in layout.rules if not gone.keys() & set(rule.targets))
    out = [rule for rule in layout.rules if rule not in rules]
    ignored = tuple(
        Ignored(
            name_pattern(rule.source), f"dropped: {gone[next(path for path in rule.targets if path in gone)]}"
        )
        for rule in out
    )
    held = {target for rule in rules for target in rule.targets}
    new = [New(re.escape(path), why) for path, why in gone.items() if path in targets]
    for path, what in OPTIONAL.items():
        known = any(re.fullmatch(item.pattern, path) for item in layout.new)
        if path in targets and path not in held and path not in gone and not known:
            new.append(New(re.escape(path), f"the source has no {what}"))
    return dataclasses.replace(
        layout, rules=rules, ignored=layout.ignored + ignored, new=layout.new + tuple(new)
    )


def name_pattern(source: str) -> str:
    """A regular expression for the names of a rule's source tensors."""
    return re.escape(source).replace(re.escape("{i}"), r"\d+")


def resizes(
    old: Mapping[str, Target], new: Mapping[str, Target], found: DualEncoderConfig, model: DualEncoderConfig
) -> dict[str, Resize]:
    """The rule for each parameter whose shape changes between two models of one family; others have none.

    Args:
        old: the parameters of `found`.
        new: the parameters of `model`.
        found: the source's model.
        model: the model that is asked for.
    """
    side, patch = model.video.side, model.video.patch
    rules: dict[str, Resize] = {"video/positions/space": resize_places(side, side)}
    rules["text/positions"] = cut_context(model.text.context)
    if TIME in new:
        rules[TIME] = resize_times(new[TIME].shape[0])
    steps = []
    if patch != found.video.patch:
        steps.append(resize_patch(patch))
    if STEM in new and STEM in old and new[STEM].shape[0] != old[STEM].shape[0]:
        steps.append(inflate_patch(new[STEM].shape[0]))
    if steps:
        rules[STEM] = chain(*steps)
    return {
        path: rule
        for path, rule in rules.items()
        if path in old and path in new and old[path].shape != new[path].shape
    }
