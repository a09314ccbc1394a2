"""The towers of a run as an evaluation sees them."""

from __future__ import annotations

from typing import Any

import jax

from stvl.core.config import to_dict
from stvl.core.paths import AnyPath, to_path
from stvl.dist.mesh import make_mesh
from stvl.pretrained.encoders import DualEncoders, weights_sha256
from stvl.pretrained.folder import Contents
from stvl.train.checkpoints import Checkpoints, saved_experiment
from stvl.train.experiment import Experiment
from stvl.train.state import Params, Starter

__all__ = ["ModelEncoders", "load_run", "weights_sha256"]


class ModelEncoders(DualEncoders):
    """`DualEncoders` as an experiment sets them up.

    Args:
        experiment: sizes, tokenizer, transform, number of frames, compute dtype.
        params: parameters of the dual encoder.
        frames: frames of a clip, where another number than in training is asked for.
    """

    def __init__(self, experiment: Experiment, params: Params, frames: int | None = None) -> None:
        self.experiment = experiment
        super().__init__(contents(experiment), params, frames=frames, dtype=experiment.compute_dtype)


def contents(experiment: Experiment) -> Contents:
    """What a run's parameters need to be used, with the facts about their training for protocol cards."""
    facts: dict[str, Any] = {
        "experiment": experiment.name,
        "train_frames": experiment.loader.frames,
        "train_batch": experiment.loader.batch,
    }
    if experiment.init is not None:
        facts["init"] = to_dict(experiment.init)
    return Contents(
        experiment.model, experiment.tokenizer, experiment.eval_transform, experiment.loader.frames, facts
    )


def load_run(folder: str | AnyPath, *, step: int | None = None, frames: int | None = None) -> ModelEncoders:
    """The encoders of a run folder: its newest checkpoint, or that of `step`; averaged parameters where there are some.

    Raises:
        TrainingError: no finished checkpoint in `folder`.
    """
    folder = to_path(folder)
    experiment = saved_experiment(folder, step)
    # One device is enough to embed with; a run of many hosts is restored onto it.
    starter = Starter(experiment, make_mesh(type(experiment.mesh)(data=1), jax.local_devices()[:1]))
    checkpoints = Checkpoints(folder, experiment, read_only=True)
    try:
        state = checkpoints.restore(starter.target(), step).state
    finally:
        checkpoints.close()
    return ModelEncoders(experiment, state.best_params, frames)
