"""Small things that tests of several rooms share: a toy world, an experiment shrunk to a few seconds, and a trained run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Sizes of the shrunk model; all of them divide by 4, so that every mesh of 8 devices can split them.
FRAMES, SIZE, PATCH, CONTEXT, BATCH = 2, 16, 8, 12, 8


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy world of 24 training and 36 test clips of 32 x 32 pixels. Read only."""
    from stvl.data.toy import ToyOptions, write_world

    root = tmp_path_factory.mktemp("toy") / "world"
    write_world(root, ToyOptions(train_videos=4, test_videos=6, size=32, seconds=(0.5, 0.8)))
    return root


@pytest.fixture
def as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the run-time type checker, which only tests install: errors are those that a user meets."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def shrunk_model(**video: Any) -> Any:
    """Both towers at 32 and 16 wide, two and one blocks deep; `video` changes fields of the video tower."""
    from stvl.models.clip_text import ClipTextConfig
    from stvl.models.dual import DualEncoderConfig
    from stvl.models.eva02_at.module import EVA02ATConfig

    sizes = {"width": 32, "depth": 2, "heads": 2, "patch": PATCH, "image_size": SIZE, "frames": FRAMES}
    return DualEncoderConfig(
        video=EVA02ATConfig(**(sizes | video)),
        text=ClipTextConfig(width=16, depth=1, heads=2, context=CONTEXT),
        embedding=16,
    )


def shrink(experiment: Any, **changes: Any) -> Any:
    """`experiment` with the sizes above and its own choices (positions, loss, protocols ...), for a few steps."""
    from stvl.data.augment import EvalTransform, TrainTransform
    from stvl.data.text import ClipTokenizer

    video = experiment.model.video
    kept = {"temporal_positions": video.temporal_positions, "rope": video.rope, "drop_path": video.drop_path}
    loader = dataclasses.replace(experiment.loader, batch=BATCH, frames=FRAMES, workers=0, max_bad_share=1.0)
    schedule = dataclasses.replace(experiment.optimizer.schedule, warmup=1)
    defaults = {
        "model": dataclasses.replace(
            shrunk_model(**kept, remat=video.remat), temperature=experiment.model.temperature
        ),
        "train_transform": TrainTransform(size=SIZE),
        "eval_transform": EvalTransform(size=SIZE),
        "tokenizer": ClipTokenizer(context_length=CONTEXT),
        "loader": loader,
        "optimizer": dataclasses.replace(experiment.optimizer, schedule=schedule),
        "steps": 2,
        "log_every": 1,
        "save_every": 2,
    }
    return dataclasses.replace(experiment, **(defaults | changes))


def tiny_experiment(world: Path | str, run: Path | str = "", **changes: Any) -> Any:
    """Six steps with an average on the training clips of a toy world; `changes` are fields of Experiment."""
    from stvl.data.augment import EvalTransform, TrainTransform
    from stvl.data.pipeline import LoaderOptions
    from stvl.data.sources import EpicSource
    from stvl.data.text import ClipTokenizer
    from stvl.train.experiment import Experiment
    from stvl.train.optimizers import AdamW, Schedule

    fields: dict[str, Any] = {
        "name": "tiny",
        "run": str(run),
        "model": shrunk_model(),
        "source": EpicSource(csv=f"{world}/EPIC_100_retrieval_train.csv", videos=f"{world}/videos"),
        "train_transform": TrainTransform(size=SIZE),
        "eval_transform": EvalTransform(size=SIZE),
        "tokenizer": ClipTokenizer(context_length=CONTEXT),
        "loader": LoaderOptions(batch=BATCH, frames=FRAMES, threads=1),
        "optimizer": AdamW(schedule=Schedule(peak=1e-3, warmup=2)),
        "steps": 6,
        "ema": 0.9,
        "log_every": 1,
        "save_every": 2,
    }
    return Experiment(**(fields | changes))


def random_batch(
    seed: int, batch: int = BATCH, frames: int = FRAMES, size: int = SIZE
) -> dict[str, np.ndarray]:
    """Frames of noise and random words between CLIP's start and end ids."""
    rng = np.random.default_rng(seed)
    text = np.zeros((batch, CONTEXT), np.int32)
    for row in text:
        length = int(rng.integers(1, CONTEXT - 1))
        row[: length + 2] = [49406, *rng.integers(1, 49000, length), 49407]
    return {"video": rng.integers(0, 256, (batch, frames, size, size, 3), np.uint8), "text": text}


def random_params(module: Any, *inputs: Any, seed: int = 0, scale: float = 0.3) -> Any:
    """Parameters for `module`, all of them random, made without compiling its initialisers."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape) * scale, x.dtype), shapes)


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """Every array of a tree by its path, on the host."""
    import jax

    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def same(left: Any, right: Any) -> None:
    """Assert that two trees of arrays are equal bit by bit."""
    one, two = leaves(left), leaves(right)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name].tobytes() != two[name].tobytes()] == []


@pytest.fixture(scope="session")
def shared_compiles() -> Iterator[None]:
    """Let runs in this process whose experiments compile to the same step share it: compiling is most of their time."""
    import jax

    import stvl.train.loop as loop
    from stvl.data.pipeline import LoaderOptions
    from stvl.train.state import Starter
    from stvl.train.step import make_step

    starters: dict[Any, Starter] = {}
    steps: dict[int, Any] = {}
    fields = {"name": "x", "run": "", "evals": (), "best": "", "keep": 1, "eval_every": 0, "log_every": 1}
    fields |= {"save_every": 1, "source": tiny_experiment("").source}

    def make(experiment: Any, mesh: Any) -> Starter:
        """One starter for all experiments that differ in nothing the compiler sees; it starts from a copy on the host."""
        loader = LoaderOptions(batch=experiment.loader.batch, frames=experiment.loader.frames)
        key = (dataclasses.replace(experiment, loader=loader, **fields), mesh)
        if key not in starters:
            made = starters[key] = Starter(experiment, mesh)
            first = functools.cache(lambda: jax.device_get(Starter.start(made)))
            made.start = lambda: jax.device_put(first(), made.shardings)
        return starters[key]

    def step(starter: Starter) -> Any:
        return steps.setdefault(id(starter), make_step(starter))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Starter", make)
        patch.setattr(loop, "make_step", step)
        patch.setattr(loop, "peak_flops", lambda device: (1e12, "made up"))
        yield


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run folder, the experiment that made it, and the scores that it ended with."""

    folder: Path
    experiment: Any
    scores: dict[str, float]


@pytest.fixture(scope="session")
def tiny_run(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory, shared_compiles: None) -> TrainedRun:
    """Six steps on the toy world with all three protocols, an average, and a best checkpoint. Read only."""
    from stvl.eval.protocols.egomcq import EgoMCQ
    from stvl.eval.protocols.epic_mir import EpicMIR, Opposites
    from stvl.train.loop import train

    csv, videos = f"{tiny_world}/EPIC_100_retrieval_test.csv", f"{tiny_world}/videos"
    sentences = f"{tiny_world}/EPIC_100_retrieval_test_sentence.csv"
    experiment = tiny_experiment(
        tiny_world,
        tmp_path_factory.mktemp("runs") / "tiny",
        best="EpicMIR/map.avg",
        evals=(
            EpicMIR(csv=csv, sentences=sentences, videos=videos),
            EgoMCQ(json=f"{tiny_world}/egomcq.json", videos=f"{videos}/P02"),
            Opposites(csv=csv, videos=videos, pairs=((0, 1),)),
        ),
    )
    return TrainedRun(experiment.folder, experiment, train(experiment))
