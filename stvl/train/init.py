"""A run that starts from given parameters: those of a weights folder or of another run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stvl.core.config import config, diff
from stvl.core.errors import ConfigError, WeightsError, nearest
from stvl.core.paths import to_path
from stvl.models.dual import DualEncoderConfig
from stvl.pretrained.encoders import hash_leaf, key_order
from stvl.pretrained.folder import Params, flat, is_weights_folder, nested, open_folder, param_targets
from stvl.pretrained.target import resizes
from stvl.weights.source import Source, open_source

#: Fields that change no parameter, or only how one starts, or are held by the shapes of parameters, which are compared
#: one by one afterwards.
_FREE = re.compile(
    r"video\.(frames|image_size|projection_bias|drop_path)|text\.context|(video|text)\.(remat|unroll)"
    r"|embedding|temperature|bias"
)
_SHOWN = 8


@config
class Pretrained:
    """Where the parameters of the first step come from.

    The folder's model has to be the experiment's, but for the number of frames and the size of images, whose tables are
    resized by the rules of ``stvl convert``, and for what is named here. A run that finds a checkpoint of its own goes on
    from that and looks at nothing here.

    Attributes:
        folder: a weights folder (``stvl convert``) or a run folder, which may lie in a bucket (``gs://BUCKET/...``).
        fresh: regular expressions for parameters that are not taken from the folder, whether it has them or not:
            ``projection``, ``log_scale``.
        changed: fields of the model that differ on purpose, with all below them: ``video.temporal_positions``.
        ema: take the averaged parameters of a run that has them.
        step: checkpoint of a run; None for the newest.
        sha256: what the parameters must hash to (``weights_sha256`` of protocol cards); empty for any. The experiment
            beside a checkpoint holds what was found.
    """

    folder: str
    fresh: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    ema: bool = True
    step: int | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        for pattern in self.fresh:
            try:
                re.compile(pattern)
            except re.error as problem:
                raise ConfigError(f"init.fresh: {pattern!r} is no regular expression: {problem}") from None


@dataclasses.dataclass(frozen=True)
class Start:
    """Parameters to start from.

    Attributes:
        params: laid out as the run asks.
        init: what was asked for, with the step and hash that were found.
        notes: what was resized, left fresh, or left in the folder, in lines.
    """

    params: Params
    init: Pretrained
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Given:
    """The parameters of a folder: their model, and the name of each in its source."""

    model: DualEncoderConfig
    source: Source
    names: Mapping[str, str]
    step: int | None = None


def load_start(
    init: Pretrained,
    model: DualEncoderConfig,
    targets: Params,
    shardings: Params,
    fresh: Callable[[Sequence[str]], Mapping[str, jax.Array]],
) -> Start:
    """Read the parameters of `init` and place them one at a time.

    Args:
        init: where from.
        model: the model of the run.
        targets: shapes and dtypes of its parameters.
        shardings: their places, a tree like `targets`.
        fresh: makes the parameters of the given paths as a start without `init` does.

    Raises:
        WeightsError: the folder is of another model (every field and parameter that differs is named), holds NaN, or has
            another hash than asked for.
        ConfigError: a pattern of `init.fresh` that no parameter has.
        TrainingError: a run folder without that checkpoint.
    """
    wanted, places = flat(targets), flat(shardings)
    with _open(init) as given:
        _refuse_other_model(init, given.model, model)
        left = _left_out(init.fresh, {*wanted, *given.names})
        rules, notes = _plan(init, given, wanted, left, model)
        params, found = _read(given, wanted, places, left, rules)
    if init.sha256 and init.sha256 != found:
        raise WeightsError(
            f"{init.folder} holds parameters of sha256 {found}, init.sha256 asks for {init.sha256}"
        )
    new = [path for path in wanted if path in left]
    params |= fresh(new) if new else {}
    head = f"start from {init.folder} (sha256 {found[:12]}): {len(params) - len(new)} of {len(params)} parameters"
    done = dataclasses.replace(init, sha256=found, step=given.step)
    return Start(nested(params), done, (head, *notes))


@contextlib.contextmanager
def _open(init: Pretrained) -> Iterator[_Given]:
    path = to_path(init.folder)
    if is_weights_folder(path):
        if init.step is not None:
            raise ConfigError(f"init.step is for run folders, {path} is a weights folder")
        opened = open_folder(path)
        with contextlib.closing(opened.source()) as source:
            yield _Given(opened.model, source, {name: name for name in source.entries})
        return
    if not (path / "checkpoints").is_dir():
        raise WeightsError(
            f"init.folder = {init.folder!r} is neither a weights folder (`stvl convert SRC --out DIR`) nor a run folder "
            "(`stvl train CONFIG run=DIR`)"
        )
    # Checkpoints know experiments, and experiments know this module.
    from stvl.train.checkpoints import saved_experiment, steps

    saved = saved_experiment(path, init.step)
    step = steps(path)[-1] if init.step is None else init.step
    head = "ema/" if init.ema and saved.ema is not None else "params/"
    with contextlib.closing(open_source(path / "checkpoints" / str(step))) as source:
        names = {name.removeprefix(head): name for name in source.entries if name.startswith(head)}
        yield _Given(saved.model, source, names, step)


def _refuse_other_model(init: Pretrained, found: DualEncoderConfig, asked: DualEncoderConfig) -> None:
    rows = []
    for path, old, new in diff(found, asked):
        meant = any(path == name or path.startswith((f"{name}.", f"{name}:")) for name in init.changed)
        if not (_FREE.fullmatch(path) or meant):
            rows.append(f"  model.{path}: {init.folder} has {old}, this run asks for {new}")
    if rows:
        raise WeightsError(
            f"{init.folder} holds another model:\n"
            + "\n".join(rows)
            + "\nset these fields to the folder's, or name those that are meant in init.changed"
        )


def _left_out(patterns: Sequence[str], paths: set[str]) -> set[str]:
    """The paths that one of the patterns matches."""
    left: set[str] = set()
    for pattern in patterns:
        found = {path for path in paths if re.search(pattern, path)}
        if not found:
            raise ConfigError(f"init.fresh: no parameter matches {pattern!r}{nearest(pattern, paths)}")
        left |= found
    return left


def _plan(
    init: Pretrained, given: _Given, wanted: Mapping[str, Any], left: set[str], model: DualEncoderConfig
) -> tuple[dict[str, Any], list[str]]:
    """Which parameters are resized by which rule, and everything worth a line; refuses what nothing explains."""
    sizes = (param_targets(given.model), param_targets(model))
    rules, notes, wrong = dict(resizes(*sizes, given.model, model)), [], []
    for path, target in wanted.items():
        if path in left or path not in given.names:
            continue
        shape = tuple(given.source.entries[given.names[path]].shape)
        if shape == tuple(target.shape):
            continue
        if path in rules:
            rules[path].check(shape, tuple(target.shape))
            notes.append(f"  resized {path} {shape} to {tuple(target.shape)}: {rules[path].says}")
        else:
            wrong.append(f"{path} {shape}, the model has {tuple(target.shape)}")
    lists = {
        "only in the folder": sorted(set(given.names) - set(wanted) - left),
        "only in the model": sorted(set(wanted) - set(given.names) - left),
        "of another shape": wrong,
    }
    if any(lists.values()):
        text = "\n".join(_listed(title, rows) for title, rows in lists.items() if rows)
        raise WeightsError(
            f"the parameters of {init.folder} are not those of this run's model:\n{text}\n"
            "name parameters that are to start anew, or to stay behind, in init.fresh"
        )
    notes += [f"  fresh: {path}" for path in wanted if path in left]
    notes += [f"  left behind: {path}" for path in sorted(set(given.names) - set(wanted))]
    return rules, notes


def _listed(title: str, rows: list[str]) -> str:
    more = [f"... and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
    return "\n".join([f"  {title}:", *(f"    {row}" for row in [*rows[:_SHOWN], *more])])


def _read(
    given: _Given,
    wanted: Mapping[str, Any],
    places: Mapping[str, Any],
    left: set[str],
    rules: Mapping[str, Any],
) -> tuple[dict[str, Any], str]:
    """Parameters by path, placed, and the hash of all that the source holds; one tensor is in memory at a time."""
    params: dict[str, Any] = {}
    digest = hashlib.sha256()
    for key, path in key_order(given.names):
        array = given.source.read(given.names[path]).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise WeightsError(f"{given.source.path}: {given.names[path]} holds NaN or infinities")
        hash_leaf(digest, key, array)
        if path in wanted and path not in left:
            target = wanted[path]
            if path in rules:
                array = rules[path](array, tuple(target.shape))
            params[path] = _placed(array.astype(target.dtype, copy=False), places[path])
    return params, digest.hexdigest()


def _placed(array: np.ndarray, sharding: Any) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
