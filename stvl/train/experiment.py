"""A run as one typed object, and how it is read from a config module and the command line."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from stvl.core.config import config, override, parse
from stvl.core.errors import ConfigError, nearest
from stvl.core.paths import AnyPath, to_path
from stvl.data.augment import EvalTransform, TrainTransform
from stvl.data.pipeline import LoaderOptions
from stvl.data.sources import EpicSource, ManifestSource
from stvl.data.text import ClipTokenizer
from stvl.dist.mesh import MeshConfig
from stvl.dist.watchdog import WatchdogOptions
from stvl.eval.protocols.charades_ego import CharadesEgo
from stvl.eval.protocols.egomcq import EgoMCQ
from stvl.eval.protocols.epic_mir import EpicMIR, Opposites
from stvl.eval.protocols.epic_recognition import EpicRecognition
from stvl.eval.protocols.recognition import Recognition
from stvl.eval.protocols.retrieval import TextVideoRetrieval
from stvl.eval.protocols.zero_shot import ZeroShot
from stvl.losses.catalogue import AnyLoss
from stvl.losses.infonce import InfoNCE
from stvl.models.dual import DualEncoderConfig
from stvl.train.init import Pretrained
from stvl.train.optimizers import AdamW

#: Protocols that take a model of two towers.
Protocol = (
    EpicMIR | EgoMCQ | Opposites | CharadesEgo | EpicRecognition | Recognition | ZeroShot | TextVideoRetrieval
)


@config
class Experiment:
    """Everything that decides a run. Its JSON lies beside every checkpoint.

    Attributes:
        name: used in messages and in the default run folder.
        run: folder of checkpoints, logs and results, also ``gs://BUCKET/...``; empty means ``runs/NAME``.
        model: sizes of both towers.
        source: training clips.
        train_transform, eval_transform: frames to the model's size.
        tokenizer: texts to ids.
        loader: batch, frames, seed of the data order, workers.
        loss: what is minimised.
        grad_cache: parts of a batch that the encoders see one at a time (`stvl.losses.gradcache`); the loss is over the
            whole batch in any case. 1 encodes the batch at once.
        optimizer: how.
        mesh: layout of the devices.
        watchdog: when a step is too slow, and what happens then.
        steps: length of the run.
        seed: of the initial parameters and of the model's own randomness.
        init: weights folder or run folder whose parameters the run starts from; None starts from random ones.
        dtype: compute dtype; ``auto`` is bfloat16 on accelerators and float32 on CPUs. Parameters are float32.
        ema: decay of an exponential moving average of the parameters that evaluation then uses; None for none.
        evals: protocols, run each `eval_every` steps and at the end.
        eval_every, save_every, log_every: in steps; 0 evaluates at the end only.
        best: metric ``PROTOCOL/METRIC`` whose best checkpoint is kept beside the last ones; empty for none.
        keep: how many of the last checkpoints are kept.
        max_nonfinite: how many of the last 100 steps may have a loss or gradient that is not finite; they are passed over
            and written to ``nonfinite.jsonl``. One more stops the run.
        offload: ``optimizer`` keeps the optimizer's state in the host's memory between steps.
        compile_cache: keep compiled programs in the run folder, so that a restart finds them; ``auto`` does so on
            accelerators (a CPU's program may not run on the CPU of the next host).
    """

    name: str
    run: str = ""
    model: DualEncoderConfig
    source: EpicSource | ManifestSource
    train_transform: TrainTransform
    eval_transform: EvalTransform
    tokenizer: ClipTokenizer = ClipTokenizer()
    loader: LoaderOptions = LoaderOptions()
    loss: AnyLoss = InfoNCE()
    grad_cache: int = 1
    optimizer: AdamW = AdamW()
    mesh: MeshConfig = MeshConfig()
    watchdog: WatchdogOptions = WatchdogOptions()
    steps: int = 1000
    seed: int = 0
    init: Pretrained | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    ema: float | None = None
    evals: tuple[Protocol, ...] = ()
    eval_every: int = 0
    save_every: int = 100
    log_every: int = 10
    best: str = ""
    keep: int = 2
    max_nonfinite: int = 3
    offload: Literal["none", "optimizer"] = "none"
    compile_cache: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        size = self.model.video.image_size
        for name in ("train_transform", "eval_transform"):
            found = getattr(self, name).size
            if found != size:
                raise ConfigError(
                    f"{name}.size is {found}, the model takes frames of model.video.image_size = {size}"
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
        if self.steps < 1 or self.log_every < 1 or self.save_every < 1:
            raise ConfigError(
                f"steps, log_every and save_every are at least 1, found {self.steps}, {self.log_every}, {self.save_every}"
            )
        if self.grad_cache < 1 or self.loader.batch % self.grad_cache:
            raise ConfigError(
                f"grad_cache cuts a batch into equal parts: loader.batch = {self.loader.batch} is no multiple of "
                f"grad_cache = {self.grad_cache}"
            )
        if self.max_nonfinite < 0:
            raise ConfigError(f"max_nonfinite is 0 or more steps, found {self.max_nonfinite}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema is a decay between 0 and 1, found {self.ema}")
        self.optimizer.make(self.steps)

    @property
    def folder(self) -> AnyPath:
        """The run folder, on a disk or in a bucket."""
        return to_path(self.run or f"runs/{self.name}")

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype that ``auto`` stands for on the devices at hand."""
        if self.dtype == "auto":
            return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
        return jnp.dtype(self.dtype)


def load_experiment(config_path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Run ``experiment(...)`` of a config module and apply ``name=value`` overrides.

    A name without a dot that is a parameter of the module's ``experiment`` function is passed to it (``folder=clips``);
    every other name is a dotted path into the Experiment (``model.video.depth=4``). ``init=DIR`` starts from the weights
    folder or run folder DIR, in any config (``init.fresh=projection`` and the other fields may follow).

    Raises:
        ConfigError: no such module, no ``experiment`` function, an unknown name (with the nearest), a wrong type.
    """
    path = _find(Path(config_path))
    spec = importlib.util.spec_from_file_location(f"stvl_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make = getattr(module, "experiment", None)
    if make is None:
        raise ConfigError(f"{path} has no function `experiment() -> Experiment`")
    pairs = [_pair(text) for text in overrides]
    hints, signature = typing.get_type_hints(make), inspect.signature(make)
    arguments = {name: parse(text, hints[name], name) for name, text in pairs if name in signature.parameters}
    made = make(**arguments)
    fields = [field.name for field in dataclasses.fields(made)]
    changes = {name: text for name, text in pairs if name not in signature.parameters}
    for name in changes:
        if name.split(".")[0] not in fields:
            known = [*fields, *signature.parameters]
            raise ConfigError(f"{path.name} knows no {name!r}{nearest(name.split('.')[0], known)}")
    return override(*_with_init(made, changes))


def _with_init(made: Experiment, changes: dict[str, str]) -> tuple[Experiment, dict[str, str]]:
    """``init=DIR`` spelt out: a config without `init` gets one of that folder, so that its other fields can be changed."""
    folder = changes.get("init", changes.get("init.folder", ""))
    if folder.lower() in ("", "none", "null"):
        lost = [name for name in changes if name.startswith("init.") and made.init is None]
        if lost:
            raise ConfigError(f"{lost[0]} needs a folder to start from: init=DIR")
        return made, changes
    init = Pretrained(folder=folder) if made.init is None else dataclasses.replace(made.init, folder=folder)
    changes = {name: text for name, text in changes.items() if name not in ("init", "init.folder")}
    return dataclasses.replace(made, init=init), changes


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"overrides read name=value, found {text!r}")
    return name.lstrip("-"), value


def _find(path: Path) -> Path:
    """The module at `path`; a bare name is looked up in ``configs/``."""
    tries = [path, path.with_suffix(".py"), Path("configs") / path.with_suffix(".py").name]
    for candidate in tries:
        if candidate.is_file():
            return candidate
    folder = path.parent if path.parent.is_dir() and path.parent != Path(".") else Path("configs")
    names = [item.stem for item in folder.glob("*.py") if not item.stem.startswith("_")]
    raise ConfigError(f"no config {str(path)!r}{nearest(path.stem, names)}")
