"""The towers of a run as an evaluation sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, UInt8

from stvl.core.config import to_dict
from stvl.core.paths import AnyPath, to_path
from stvl.core.sharding import activation_sharding
from stvl.dist.mesh import RULES, MeshConfig, batch_sharding, make_mesh, replicated
from stvl.pretrained.encoders import DualEncoders, weights_sha256
from stvl.pretrained.folder import Contents
from stvl.train.checkpoints import Checkpoints, saved_experiment
from stvl.train.experiment import Experiment
from stvl.train.state import Params, Starter

__all__ = ["ModelEncoders", "load_run", "weights_sha256"]


class ModelEncoders(DualEncoders):
    """`DualEncoders` as an experiment sets them up, on all devices of this process: each embeds its share of the clips.

    Args:
        experiment: sizes, tokenizer, transform, number of frames, compute dtype.
        params: parameters of the dual encoder.
        frames: frames of a clip, where another number than in training is asked for.
        devices: jax devices of this process; default: all accelerators, or one CPU, whose fake devices share its cores.
    """

    def __init__(
        self,
        experiment: Experiment,
        params: Params,
        frames: int | None = None,
        devices: Sequence[Any] | None = None,
    ) -> None:
        self.experiment = experiment
        if devices is None:
            devices = jax.local_devices()[: 1 if jax.default_backend() == "cpu" else None]
        self.mesh = make_mesh(MeshConfig(data=len(devices)), devices)
        params = jax.device_put(params, replicated(self.mesh))
        super().__init__(contents(experiment), params, frames=frames, dtype=experiment.compute_dtype)

    def video(self, frames: UInt8[np.ndarray, "b t y x c"]) -> Float32[np.ndarray, "b o"]:
        """L2-normalised embeddings of clips."""
        rows = -len(frames) % self.mesh.size
        padded = np.concatenate([frames, np.repeat(frames[-1:], rows, axis=0)]) if rows else frames
        with activation_sharding(self.mesh, RULES):
            found = self._video(self.params, jax.device_put(padded, batch_sharding(self.mesh)))
        return np.asarray(found, np.float32)[: len(frames)]


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
    # A run of many hosts is restored onto one device of this one.
    starter = Starter(experiment, make_mesh(MeshConfig(data=1), jax.local_devices()[:1]))
    checkpoints = Checkpoints(folder, experiment, read_only=True)
    try:
        state = checkpoints.restore(starter.target(), step).state
    finally:
        checkpoints.close()
    return ModelEncoders(experiment, state.best_params, frames)
