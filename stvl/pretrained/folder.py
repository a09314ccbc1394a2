"""A weights folder: a model's parameters in one safetensors file, and everything needed to use them as JSON.

    DIR/config.json         sizes of both towers, tokenizer, transform, frames, source and notes
        model.safetensors   one tensor a parameter, named by its path: ``video/stack/layers/attention/query/kernel``

A folder appears whole or not at all: it is written under another name beside its place and renamed at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from stvl import __version__
from stvl.core.config import from_dict, to_dict
from stvl.core.errors import ConfigError, WeightsError, nearest
from stvl.core.paths import AnyPath, on_disk
from stvl.data.augment import EvalTransform
from stvl.data.text import ClipTokenizer
from stvl.models.dual import DualEncoder, DualEncoderConfig
from stvl.pretrained.provenance import check_sha256, sha256_of
from stvl.weights.load import Target
from stvl.weights.source import Entry, Source, open_source
from stvl.weights.writer import write_safetensors

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
FORMAT, VERSION = "stvl-weights", 1

Params = dict[str, Any]
#: A parameter's path, its shape and dtype, and what reads it when its turn comes.
Item = tuple[str, Entry, Callable[[], np.ndarray]]

_DTYPES = ("float32", "float16", "bfloat16", "float64")
_SHOWN = 8
_LOCAL = "weights folders are read and written on a disk: copy them (`gcloud storage cp -r`)"


def param_targets(model: DualEncoderConfig, dtype: Any = jnp.float32) -> dict[str, Target]:
    """Shape and dtype of every parameter of a model by its path with slashes; nothing is computed or allocated."""
    return {
        path: Target(tuple(leaf.shape), np.dtype(dtype))
        for path, leaf in flat(abstract_params(model)).items()
    }


def abstract_params(model: DualEncoderConfig, boxed: bool = False) -> Params:
    """The tree of a model's parameters as shapes; `boxed` keeps the logical axes that shardings are made from."""
    tree = _boxed_params(model)
    # A new tree, so that nobody changes the one that is kept.
    return dict(jax.tree.map(lambda leaf: leaf, tree) if boxed else nn.unbox(tree))


@functools.lru_cache(maxsize=32)
def _boxed_params(model: DualEncoderConfig) -> Any:
    return jax.eval_shape(DualEncoder(model).init, jax.random.key(0), *example_inputs(model))["params"]


def example_inputs(model: DualEncoderConfig) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of the smallest inputs that make all parameters of a model."""
    size = model.video.image_size
    video = jax.ShapeDtypeStruct((1, model.video.frames, size, size, 3), jnp.uint8)
    return video, jax.ShapeDtypeStruct((1, model.text.context), jnp.int32)


def nested(flat: Mapping[str, Any]) -> Params:
    """``{"video/stem/kernel": x}`` as nested dicts."""
    return unflatten_dict(dict(flat), sep="/")


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts as ``{"video/stem/kernel": x}``."""
    found: dict[str, Any] = flatten_dict(dict(params), sep="/")  # pyright: ignore[reportAssignmentType]
    return found


def items_of(params: Mapping[str, Any], dtype: Any = None) -> Iterator[Item]:
    """The parameters of a nested dict as `write_folder` takes them, in another dtype where one is named."""
    for path, leaf in sorted(flat(params).items()):
        kind = np.dtype(leaf.dtype if dtype is None else dtype)
        yield path, Entry(tuple(leaf.shape), kind), lambda leaf=leaf, kind=kind: np.asarray(leaf).astype(kind)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a weights folder says beside its parameters.

    Attributes:
        model: sizes of both towers.
        tokenizer: texts to ids.
        transform: frames to the model's size, by the rule that the source was trained or evaluated with.
        frames: frames of a clip; 1 for an image model.
        facts: plain JSON for people and for export: ``family``, ``size``, ``source`` (name, sha256, layout) and
            ``notes`` (resized, new, ignored, dropped).
    """

    model: DualEncoderConfig
    tokenizer: ClipTokenizer
    transform: EvalTransform
    frames: int
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ConfigError(f"frames is at least 1, found {self.frames}")
        if self.transform.size != self.model.video.image_size:
            raise ConfigError(
                f"transform.size is {self.transform.size}, the model takes frames of {self.model.video.image_size}"
            )
        if self.tokenizer.context_length > self.model.text.context:
            raise ConfigError(
                f"tokenizer.context_length is {self.tokenizer.context_length}, model.text.context is only "
                f"{self.model.text.context}"
            )
        if self.tokenizer.vocab_size > self.model.text.vocabulary:
            raise ConfigError(
                f"the tokenizer has {self.tokenizer.vocab_size} ids, model.text.vocabulary is only "
                f"{self.model.text.vocabulary}"
            )


@dataclasses.dataclass(frozen=True)
class WeightsFolder(Contents):
    """A weights folder that was opened and checked; its parameters are read by `load`.

    Attributes:
        path: the folder.
        entries: shape and dtype of every stored parameter.
    """

    path: Path = Path()
    entries: Mapping[str, Entry] = dataclasses.field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hash of the weights file, as written down when it was made."""
        return str(self.facts.get("weights", {}).get("sha256", ""))

    def load(self, dtype: Any = None, shardings: Any = None) -> Params:
        """The parameters as nested dicts of jax arrays, read and placed one at a time.

        Args:
            dtype: of all parameters; None for float32, which models and optimizers expect.
            shardings: a nested dict like the parameters with a sharding a leaf (`stvl.dist.params.param_shardings`),
                or one sharding for all; None puts everything on the first device.

        Raises:
            WeightsError: a parameter holds NaN or infinities, or has no sharding.
        """
        kind = np.dtype(jnp.float32 if dtype is None else dtype)
        places = flat(shardings) if isinstance(shardings, Mapping) else dict.fromkeys(self.entries, shardings)
        lost = sorted(set(self.entries) - set(places))
        if lost:
            raise WeightsError(f"no sharding for {', '.join(lost[:_SHOWN])}")
        with contextlib.closing(self.source()) as source:
            return nested({path: _placed(source, path, kind, places[path]) for path in self.entries})

    def read(self, path: str) -> np.ndarray:
        """One parameter as it is stored."""
        if path not in self.entries:
            raise WeightsError(f"{self.path} has no parameter {path!r}{nearest(path, self.entries)}")
        with contextlib.closing(self.source()) as source:
            return source.read(path)

    def source(self) -> Source:
        """The weights file, for readers that go through it tensor by tensor; close it after use."""
        return open_source(self.path / WEIGHTS_FILE)

    def verify(self) -> None:
        """Read the weights file and compare its hash with the one written down when it was made.

        Raises:
            WeightsError: they differ.
        """
        check_sha256(sha256_of(self.path / WEIGHTS_FILE), self.sha256, str(self.path / WEIGHTS_FILE))


def _placed(source: Source, path: str, kind: np.dtype, sharding: Any) -> jax.Array:
    array = source.read(path)
    if not np.isfinite(array).all():
        raise WeightsError(f"{source.path}: {path} holds NaN or infinities")
    array = array.astype(kind, copy=False)
    if sharding is None:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def is_weights_folder(path: AnyPath) -> bool:
    """Whether `path` holds both files of a weights folder, of this or another version."""
    return (path / CONFIG_FILE).is_file() and (path / WEIGHTS_FILE).is_file()


def folder_facts(path: AnyPath) -> dict[str, Any]:
    """The plain JSON of a weights folder's config, unchecked; empty for everything else."""
    return _read_config(on_disk(path, _LOCAL)) if is_weights_folder(path) else {}


def open_folder(path: str | AnyPath) -> WeightsFolder:
    """Open a weights folder and check that its parameters are those of its config; only headers are read.

    Raises:
        WeightsError: a file is missing or damaged, another format version, a config that this version does not know,
            or parameters that are not those of the config, with both sides' lists.
        ConfigError: a folder in a bucket.
    """
    path = on_disk(path, _LOCAL)
    data = _read_config(path)
    try:
        parts = {name: from_dict(data[name]) for name in ("model", "tokenizer", "transform")}
        if not isinstance(parts["model"], DualEncoderConfig):
            raise ConfigError(f"model is a {type(parts['model']).__name__}, expected a DualEncoderConfig")
        facts = {key: value for key, value in data.items() if key not in (*parts, "frames")}
        contents = Contents(**parts, frames=data["frames"], facts=facts)
        targets = param_targets(contents.model)
    except KeyError as problem:
        raise WeightsError(f"{path / CONFIG_FILE} has no field {problem}") from None
    except (TypeError, ValueError, AttributeError) as problem:
        raise WeightsError(
            f"{path / CONFIG_FILE} describes no model of this version of stvl: {problem}"
        ) from problem
    with contextlib.closing(open_source(path / WEIGHTS_FILE)) as source:
        entries = dict(source.entries)
    _compare(path, entries, targets)
    return WeightsFolder(**{field.name: getattr(contents, field.name) for field in dataclasses.fields(contents)},
                         path=path, entries=entries)  # fmt: skip


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise WeightsError(f"{path} is no folder; `stvl convert SRC --out DIR` makes a weights folder")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            raise WeightsError(
                f"{path} is no weights folder: it has no {name}; `stvl convert SRC --out DIR` makes one"
            )
    try:
        data = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    except ValueError as problem:
        raise WeightsError(f"{path / CONFIG_FILE} is no JSON: {problem}") from problem
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise WeightsError(
            f"{path / CONFIG_FILE} is not the config of a weights folder: its format is not {FORMAT!r}; "
            "`stvl convert SRC --out DIR` makes one from a checkpoint"
        )
    if data.get("version") != VERSION:
        raise WeightsError(
            f"{path} has format version {data.get('version')!r}, this stvl reads {VERSION}: "
            "convert the source again with this stvl, or use the stvl that wrote it "
            f"({data.get('stvl', 'unknown')})"
        )
    return data


def _compare(path: Path, entries: Mapping[str, Entry], targets: Mapping[str, Target]) -> None:
    extra = sorted(set(entries) - set(targets))
    missing = sorted(set(targets) - set(entries))
    shapes = [
        f"{name} {entries[name].shape}, the config says {targets[name].shape}"
        for name in sorted(set(entries) & set(targets))
        if tuple(entries[name].shape) != tuple(targets[name].shape)
    ]
    kinds = [
        f"{name} {entry.dtype}" for name, entry in sorted(entries.items()) if str(entry.dtype) not in _DTYPES
    ]
    lists = [
        ("only in the file", extra),
        ("missing in the file", missing),
        ("of another shape", shapes),
        ("of a dtype that no parameter has", kinds),
    ]
    if any(rows for _, rows in lists):
        text = "\n".join(_listed(title, rows) for title, rows in lists if rows)
        raise WeightsError(f"{path / WEIGHTS_FILE} does not hold the model of {CONFIG_FILE}:\n{text}")


def _listed(title: str, rows: list[str]) -> str:
    more = [f"... and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
    return "\n".join([f"  {title}:", *(f"    {row}" for row in [*rows[:_SHOWN], *more])])


def write_folder(
    out: str | AnyPath, contents: Contents, items: Iterable[Item], overwrite: bool = False
) -> WeightsFolder:
    """Write a weights folder, parameter by parameter, and open it.

    Args:
        out: a place where nothing is yet, or an empty folder; with `overwrite` also a weights folder to replace.
        contents: the config.
        items: the parameters of ``contents.model``, complete; each is read when its turn comes.
        overwrite: replace a weights folder at `out`.

    Raises:
        WeightsError: something else lies at `out`; parameters are missing, left over or of another shape.
    """
    out = on_disk(out, _LOCAL)
    refuse_taken(out, overwrite)
    listed = list(items)
    targets = param_targets(contents.model)
    _compare(out, {path: entry for path, entry, _ in listed}, targets)
    with _fresh(out, overwrite) as folder:
        write_safetensors(folder / WEIGHTS_FILE, listed, {"format": FORMAT, "version": str(VERSION)})
        data = _config(contents, folder / WEIGHTS_FILE, [entry for _, entry, _ in listed])
        (folder / CONFIG_FILE).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return open_folder(out)


def _config(contents: Contents, weights: Path, entries: list[Entry]) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in contents.facts.items()
        if key not in ("format", "version", "stvl", "weights")
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "stvl": __version__,
        "model": to_dict(contents.model),
        "tokenizer": to_dict(contents.tokenizer),
        "transform": to_dict(contents.transform),
        "frames": contents.frames,
        **kept,
        "weights": {
            "file": WEIGHTS_FILE,
            "sha256": sha256_of(weights),
            "parameters": sum(math.prod(entry.shape) for entry in entries),
            "bytes": weights.stat().st_size,
            "dtypes": sorted({str(entry.dtype) for entry in entries}),
        },
    }


def refuse_taken(out: Path, overwrite: bool = False) -> None:
    """Raise where something lies at `out` that must not be replaced.

    Raises:
        WeightsError: a file, a folder that holds anything, or a weights folder without `overwrite`.
    """
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.is_dir() and is_weights_folder(out):
        if overwrite:
            return
        raise WeightsError(f"{out} is a weights folder already: choose another --out, or add --overwrite")
    raise WeightsError(f"{out} exists and is no weights folder, so it is not replaced: choose another --out")


@contextlib.contextmanager
def _fresh(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end, or vanishes with the parents made for it."""
    made = [parent for parent in (out.parent, *out.parent.parents) if not parent.exists()]
    mark = secrets.token_hex(4)
    folder, old = out.with_name(f".{out.name}.{mark}.partial"), out.with_name(f".{out.name}.{mark}.old")
    try:
        folder.mkdir(parents=True)
        yield folder
        refuse_taken(out, overwrite)
        if is_weights_folder(out):
            os.rename(out, old)
        os.rename(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if old.exists():
            os.rename(old, out)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)
