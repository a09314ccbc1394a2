"""The steps that `stvl bench step` knows by name: a model, frames, a batch, and the experiment that they make."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

from stvl.core.errors import ConfigError, nearest
from stvl.data.augment import EvalTransform, TrainTransform
from stvl.data.pipeline import LoaderOptions
from stvl.data.sources import ManifestSource
from stvl.data.text import ClipTokenizer
from stvl.dist.mesh import MeshConfig
from stvl.losses.infonce import InfoNCE
from stvl.models.presets import preset
from stvl.nn.stack import REMAT
from stvl.train.experiment import Experiment
from stvl.train.optimizers import AdamW

#: Words of the command line for compute dtypes.
DTYPES = {"auto": "auto", "f32": "float32", "bf16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class StepSize:
    """What is trained in one step.

    Attributes:
        model: preset, ``FAMILY/SIZE``.
        frames: of a clip.
        batch: clips of a step.
    """

    model: str
    frames: int
    batch: int


#: Batches of the large sizes: the largest power of two whose step takes at most half of an H200's 141 GB without remat
#: by `stvl plan --topology h200x1` (55, 52, 50 and 47 GiB), whose analysis is not exact. Both frameworks take the same.
STEPS = MappingProxyType(
    {
        "tiny-2f": StepSize("eva02-at/tiny", 2, 8),
        "tiny-4f": StepSize("eva02-at/tiny", 4, 64),
        "b16-4f": StepSize("eva02-at/b16", 4, 64),
        "b16-16f": StepSize("eva02-at/b16", 16, 16),
        "l14-4f": StepSize("eva02-at/l14", 4, 16),
        "l14-16f": StepSize("eva02-at/l14", 16, 4),
    }
)


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What to measure.

    Attributes:
        shapes: names of `STEPS`; empty for ``tiny-2f`` on a CPU and for the four large ones elsewhere.
        dtype: compute dtype: ``auto``, ``f32`` or ``bf16``.
        remat: policy of both towers, a name of `stvl.nn.stack.REMAT`.
        batch: clips instead of the sizes' own.
        check: compare features and gradients with the f32 reference first, and time nothing that differs.
        budget: seconds to spend on one time.
        limit: seconds after which the process of one size is given up.
    """

    shapes: tuple[str, ...] = ()
    dtype: str = "auto"
    remat: str = "none"
    batch: int | None = None
    check: bool = True
    budget: float = 5.0
    limit: float = 900.0

    def __post_init__(self) -> None:
        for what, names, known in (
            ("step", self.shapes, STEPS),
            ("dtype", (self.dtype,), DTYPES),
            ("remat policy", (self.remat,), REMAT),
        ):
            for name in names:
                if name not in known:
                    raise ConfigError(f"unknown {what} {name!r}{nearest(name, known)}")
        if self.batch is not None and self.batch < 2:
            raise ConfigError(f"a contrastive step has at least two clips, found batch = {self.batch}")

    def size(self, name: str) -> StepSize:
        """The size called `name`, with the plan's batch."""
        size = STEPS[name]
        return size if self.batch is None else dataclasses.replace(size, batch=self.batch)


def default_shapes(platform: str) -> tuple[str, ...]:
    """The names that are measured on a platform where none is asked for."""
    return ("tiny-2f",) if platform == "cpu" else tuple(name for name in STEPS if not name.startswith("tiny"))


def step_experiment(name: str, plan: StepPlan) -> Experiment:
    """The run whose step is measured: InfoNCE, AdamW with a bound on the gradient, f32 parameters, no average.

    It names a table of clips that is never read.
    """
    size = plan.size(name)
    model = preset(size.model)
    model = dataclasses.replace(
        model,
        video=dataclasses.replace(model.video, frames=size.frames, remat=plan.remat),
        text=dataclasses.replace(model.text, remat=plan.remat),
    )
    pixels = model.video.image_size
    return Experiment(
        name=name,
        model=model,
        source=ManifestSource(csv="none.csv"),
        train_transform=TrainTransform(size=pixels),
        eval_transform=EvalTransform(size=pixels),
        tokenizer=ClipTokenizer(context_length=model.text.context),
        loader=LoaderOptions(batch=size.batch, frames=size.frames),
        loss=InfoNCE(),
        optimizer=AdamW(),
        mesh=MeshConfig(data=1),
        dtype=DTYPES[plan.dtype],  # pyright: ignore[reportArgumentType]
    )
