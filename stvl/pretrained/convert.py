"""From a checkpoint to a weights folder: recognise, plan, and write parameter by parameter."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from stvl.core.config import diff, from_dict
from stvl.core.errors import WeightsError
from stvl.core.paths import AnyPath, on_disk, to_path
from stvl.models.dual import DualEncoder, DualEncoderConfig
from stvl.pretrained.folder import (
    Contents,
    Item,
    WeightsFolder,
    example_inputs,
    flat,
    folder_facts,
    is_weights_folder,
    open_folder,
    param_targets,
    refuse_taken,
    write_folder,
)
from stvl.pretrained.hub import fetch, parse_name
from stvl.pretrained.provenance import check_sha256, sha256_of
from stvl.pretrained.recognise import Recognised
from stvl.pretrained.target import (
    ConvertOptions,
    dropped,
    dtype_of,
    fitted_layout,
    recognised,
    resizes,
    target_model,
)
from stvl.weights.load import LoadPlan, Target, plan_load
from stvl.weights.rules import Ignored, Layout, Rule
from stvl.weights.source import Entry, Source, open_source

__all__ = ["ConvertOptions", "Report", "Row", "convert", "init_leaves", "locate"]


@dataclasses.dataclass(frozen=True)
class Row:
    """The source tensors of one rule.

    Attributes:
        source: their name, ``{i}`` for the layer.
        count: how many there are.
        shape: of one of them.
        dtype: of one of them.
        size: bytes of all of them.
        targets: the parameters that they become.
    """

    source: str
    count: int
    shape: tuple[int, ...]
    dtype: str
    size: int
    targets: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion does, or would do.

    Attributes:
        source: the file or folder.
        sha256: its hash.
        found: what it holds.
        contents: the config of the weights folder.
        rows: where its tensors go.
        ignored: source tensor -> why it goes nowhere.
        resized: parameter -> the rule that changed its shape.
        new: parameter -> why it does not come from the source.
        notes: what else a reader should know.
        size: bytes of all parameters.
        folder: the result; None after a dry run.
    """

    source: AnyPath
    sha256: str
    found: Recognised
    contents: Contents
    rows: tuple[Row, ...]
    ignored: Mapping[str, str]
    resized: Mapping[str, str]
    new: Mapping[str, str]
    notes: Sequence[str]
    size: int
    folder: WeightsFolder | None = None


def convert(
    src: str | AnyPath,
    out: str | Path | None,
    options: ConvertOptions = ConvertOptions(),
    dry_run: bool = False,
) -> Report:
    """Make a weights folder of a checkpoint: a file, a folder, a run folder, a weights folder, or a name on the hub.

    Every source tensor becomes a parameter or is ignored by name, and every parameter is filled or new by name. Only one
    parameter is in memory at a time.

    Args:
        src: the checkpoint; a path that exists is always taken as one.
        out: the weights folder to make; not touched by a dry run.
        options: what the model is to be.
        dry_run: plan everything, write nothing. Values are not read, so NaN is not found.

    Raises:
        WeightsError: the source is damaged or unknown, is of another model, leaves tensors over or parameters unfilled,
            holds NaN; something lies at `out` already. Nothing is left behind.
        ConfigError: options that do not fit each other.
    """
    if out is None and not dry_run:
        raise WeightsError("a conversion needs a folder to write: --out DIR, or --dry-run")
    if out is not None and not dry_run:
        refuse_taken(on_disk(out, "a weights folder is written on a disk"), options.overwrite)
    path, origin = locate(src)
    if options.sha256 is not None and isinstance(path, Path) and path.is_file():
        check_sha256(sha256_of(path), options.sha256, str(path))
    with contextlib.closing(open_source(path)) as source:
        digest = source.sha256()
        if options.sha256 is not None:
            check_sha256(digest, options.sha256, str(path))
        found = own_layout(path, source) or recognised(source, options)
        model = target_model(found, options)
        plan, gone = _plan(source, found, model, options)
        report = _report((path, source, {"sha256": digest, **origin}), (found, model, plan, gone), options)
        if dry_run or out is None:
            return report
        items = list(_items(plan, model, options))
        folder = write_folder(out, report.contents, items, options.overwrite)
    return dataclasses.replace(report, folder=folder)


def locate(src: str | AnyPath) -> tuple[AnyPath, dict[str, str]]:
    """A path that exists, also in a bucket, or what the Hugging Face hub gives for a name, with the facts to record of it.

    Raises:
        WeightsError: nothing is there.
    """
    path = to_path(src)
    if path.exists():
        return path, {}
    name = parse_name(str(src))
    if name is None:
        raise WeightsError(f"there is no file or folder {str(src)!r}")
    fetched = fetch(name)
    return fetched.path, fetched.facts


def own_layout(path: AnyPath, source: Source) -> Recognised | None:
    """What a weights folder or a run folder of stvl holds; None for everything else."""
    if path.is_dir() and is_weights_folder(path):
        folder = open_folder(path)
        rules = tuple(Rule(name, (name,)) for name in source.entries)
        size = str(folder.facts.get("size", "a weights folder"))
        family = str(folder.facts.get("family", "stvl"))
        return Recognised(
            layout=Layout("stvl/folder", rules, prefixes=()),
            family=family,
            size=size,
            model=folder.model,
            tokenizer=folder.tokenizer,
            transform=folder.transform,
            frames=folder.frames,
            notes=(),
            optional_new=(),
            source="stvl",
        )
    run = _run_config(source)
    return None if run is None else _run_layout(source, run)


def _run_config(source: Source) -> dict[str, Any] | None:
    """The experiment that lies beside the state in a checkpoint of `stvl train`."""
    place = source.path.parent / "experiment" / "metadata"
    if not source.path.is_dir() or not place.is_file():
        return None
    try:
        return json.loads(place.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise WeightsError(f"{place} is no JSON: {problem}") from problem


def _run_layout(source: Source, run: Mapping[str, Any]) -> Recognised:
    # Only these parts are read, for `train` lies above this room.
    try:
        parts = {name: from_dict(run[name]) for name in ("model", "tokenizer", "eval_transform")}
        frames = int(run["loader"]["frames"])
    except (KeyError, TypeError, ValueError) as problem:
        raise WeightsError(
            f"{source.path}: its experiment describes no model of this version of stvl: {problem}"
        ) from problem
    averaged = any(name.startswith("ema/") for name in source.entries)
    kept = "ema/" if averaged else "params/"
    rules = tuple(Rule(name, (name.removeprefix(kept),)) for name in source.entries if name.startswith(kept))
    ignored = [Ignored(r"(opt_state(/.*)?|step)", "state of the training")]
    if averaged:
        ignored.append(Ignored(r"params/.*", "the averaged parameters are taken"))
    which = "averaged parameters" if averaged else "parameters"
    return Recognised(
        layout=Layout("stvl/run", rules, tuple(ignored), prefixes=()),
        family="stvl",
        size=parts["model"].video.title,
        model=parts["model"],
        tokenizer=parts["tokenizer"],
        transform=parts["eval_transform"],
        frames=frames,
        notes=(f"{which} of the run {run.get('name', '')!r} at step {source.path.parent.name}",),
        optional_new=(),
        source="stvl",
    )


def _plan(
    source: Source, found: Recognised, model: DualEncoderConfig, options: ConvertOptions
) -> tuple[LoadPlan, dict[str, str]]:
    targets = param_targets(model, "float32" if options.dtype == "source" else dtype_of(options.dtype))
    gone = dropped(found.layout, found, model, targets, options.times == "zeros")
    layout = fitted_layout(found.layout, gone, targets)
    extra = found.optional_new if options.new_text else ()
    rules = resizes(param_targets(found.model), targets, found.model, model)
    plan = plan_load(layout, source, targets, resize=rules, extra_new=extra)
    if options.dtype == "source":
        kinds = {path: plan.source_dtype(path) for path in plan.fills}
        targets = {
            path: Target(target.shape, kinds.get(path, target.dtype)) for path, target in targets.items()
        }
        plan = plan_load(layout, source, targets, resize=rules, extra_new=extra)
    return plan, gone


def _items(plan: LoadPlan, model: DualEncoderConfig, options: ConvertOptions) -> Iterator[Item]:
    """All parameters in the order of their names; those of the source are read when their turn comes."""
    fresh = init_leaves(model, tuple(plan.new), options.seed)
    for path, target in sorted(plan.targets.items()):
        kind = np.dtype(target.dtype)
        entry = Entry(tuple(target.shape), kind)
        if path in fresh:
            yield path, entry, _fixed(fresh[path].astype(kind))
        else:
            yield path, entry, lambda path=path: plan.read(path)


def _fixed(array: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: array


def init_leaves(model: DualEncoderConfig, paths: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """The named parameters of a new model, equal to those of a whole initialisation with the same seed.

    Only they are computed: the compiler drops everything that they do not need, so that a large model is never in memory.
    """
    if not paths:
        return {}
    video, ids = example_inputs(model)

    def leaves(key: jax.Array) -> dict[str, jax.Array]:
        inputs = (jnp.zeros(x.shape, x.dtype) for x in (video, ids))
        params = flat(nn.unbox(DualEncoder(model).init(key, *inputs)["params"]))
        return {path: params[path] for path in paths}

    return jax.device_get(jax.jit(leaves)(jax.random.key(seed)))


def _report(
    origin: tuple[AnyPath, Source, Mapping[str, str]],
    planned: tuple[Recognised, DualEncoderConfig, LoadPlan, Mapping[str, str]],
    options: ConvertOptions,
) -> Report:
    (path, source, known), (found, model, plan, gone) = origin, planned
    rows, notes = _rows(plan, source), _notes(found, model)
    size = sum(math.prod(target.shape) * np.dtype(target.dtype).itemsize for target in plan.targets.values())
    facts: dict[str, Any] = {
        "family": found.family,
        "size": found.size,
        "source": {"name": path.name, **known, "layout": found.layout.name, **_stored(plan, source)},
        "notes": {
            "resized": dict(plan.resized),
            "new": dict(plan.new),
            "ignored": dict(plan.ignored),
            "dropped": dict(gone),
            "other": notes,
        },
    }
    facts["source"]["embedding"] = found.model.embedding
    before = folder_facts(path).get("source")
    if before:
        facts["source"]["origin"] = before
    if options.seed and plan.new:
        facts["seed"] = options.seed
    untouched = options.preset is None and options.frames is None
    contents = Contents(
        model=model,
        tokenizer=dataclasses.replace(
            found.tokenizer, context_length=min(found.tokenizer.context_length, model.text.context)
        ),
        transform=dataclasses.replace(found.transform, size=model.video.image_size),
        frames=found.frames if untouched else model.video.frames,
        facts=facts,
    )
    return Report(
        source=path, sha256=known["sha256"], found=found, contents=contents, rows=rows, ignored=plan.ignored,
        resized=plan.resized, new=plan.new, notes=notes, size=size,
    )  # fmt: skip


def _rows(plan: LoadPlan, source: Source) -> tuple[Row, ...]:
    groups: dict[Rule, list[str]] = {}
    for name, rule in plan.taken.items():
        groups.setdefault(rule, []).append(name)
    rows = []
    for rule, names in groups.items():
        entries = [source.entries[name] for name in names]
        size = sum(entry.nbytes for entry in entries)
        first = entries[0]
        rows.append(Row(rule.source, len(names), tuple(first.shape), str(first.dtype), size, rule.targets))
    return tuple(rows)


def _stored(plan: LoadPlan, source: Source) -> dict[str, Any]:
    """What an export needs to give back the same names and dtypes: one dtype and its exceptions, and a prefix."""
    kinds = {name: str(source.entries[name].dtype) for name in plan.taken}
    common = Counter(kinds.values()).most_common(1)[0][0] if kinds else "float32"
    return {
        "tensors": len(source.entries),
        "bytes": sum(entry.nbytes for entry in source.entries.values()),
        "dtype": common,
        "other_dtypes": {name: kind for name, kind in kinds.items() if kind != common},
        "prefix": plan.prefix,
    }


def _notes(found: Recognised, model: DualEncoderConfig) -> list[str]:
    """What changes without a tensor changing: rotary angles, and choices of a preset that the file cannot tell."""
    notes = list(found.notes)
    old, new = found.model.video, model.video
    rope = getattr(new, "rope", None)
    if rope is not None and (old.side, old.frames) != (new.side, new.frames):
        grid = getattr(rope, "reference_grid", None)
        how = f"rescaled to the reference grid of {grid:g}" if grid else "counted in patches"
        notes.append(
            f"rotary angles are computed for {new.side} x {new.side} places, {how}: there is nothing to resize"
        )
    silent = re.compile(r"(video|text)\.(activation|eps|mean|std|rope.*)")
    for path, before, after in diff(found.model, model):
        if silent.fullmatch(path):
            notes.append(f"model.{path} is {after} as asked for; for the source it would be {before}")
    return notes
