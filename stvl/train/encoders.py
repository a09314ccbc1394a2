"""Trained towers as an evaluation sees them: from arrays to unit vectors, with a description for protocol cards."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32, UInt8

from stvl.core.errors import ConfigError
from stvl.dist.mesh import make_mesh
from stvl.train.checkpoints import Checkpoints, saved_experiment
from stvl.train.experiment import Experiment
from stvl.train.state import Params, Starter, build


class ModelEncoders:
    """Implements `stvl.eval.encoders.Encoders` with a model's parameters.

    Args:
        experiment: sizes, tokenizer, transform, number of frames.
        params: parameters of the dual encoder.
        frames: frames of a clip, where another number than in training is asked for.
    """

    def __init__(self, experiment: Experiment, params: Params, frames: int | None = None) -> None:
        self.experiment, self.params = experiment, params
        self.frames = experiment.loader.frames if frames is None else frames
        self.size = experiment.model.video.image_size
        self.width = experiment.model.embedding
        self.tokenizer, self.transform = experiment.tokenizer, experiment.eval_transform
        if self.frames < 1:
            raise ConfigError(f"frames is at least 1, found {self.frames}")
        model, _ = build(experiment)
        self._video = jax.jit(
            lambda params, video: model.apply({"params": params}, video, method="encode_video")
        )
        self._text = jax.jit(lambda params, ids: model.apply({"params": params}, ids, method="encode_text"))

    def describe(self) -> dict[str, Any]:
        """The facts for a protocol card."""
        video = self.experiment.model.video
        return {
            "model": f"EVA02-AT {video.width}x{video.depth}, patch {video.patch}",
            "experiment": self.experiment.name,
            "positions": video.temporal_positions,
            "dtype": str(self.experiment.compute_dtype),
            "weights_sha256": weights_sha256(self.params),
            "mean": list(video.mean),
            "std": list(video.std),
            "train_frames": self.experiment.loader.frames,
            "train_batch": self.experiment.loader.batch,
        }

    def video(self, frames: UInt8[np.ndarray, "b t y x c"]) -> Float32[np.ndarray, "b o"]:
        """L2-normalised embeddings of clips."""
        return np.asarray(self._video(self.params, frames), np.float32)

    def text(self, ids: Int32[np.ndarray, "b l"]) -> Float32[np.ndarray, "b o"]:
        """L2-normalised embeddings of texts."""
        return np.asarray(self._text(self.params, ids), np.float32)


def weights_sha256(params: Params) -> str:
    """Hash over names, shapes and values of all parameters, independent of the order of the tree."""
    digest = hashlib.sha256()
    leaves = [
        (jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    for name, leaf in sorted(leaves, key=lambda item: item[0]):
        array = np.asarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def load_run(folder: str | Path, *, step: int | None = None, frames: int | None = None) -> ModelEncoders:
    """The encoders of a run folder: its newest checkpoint, or that of `step`; averaged parameters where there are some.

    Raises:
        TrainingError: no finished checkpoint in `folder`.
    """
    folder = Path(folder)
    experiment = saved_experiment(folder, step)
    # One device is enough to embed with; a run of many hosts is restored onto it.
    starter = Starter(experiment, make_mesh(type(experiment.mesh)(data=1), jax.local_devices()[:1]))
    checkpoints = Checkpoints(folder, experiment, read_only=True)
    try:
        state = checkpoints.restore(starter.target(), step).state
    finally:
        checkpoints.close()
    return ModelEncoders(experiment, state.best_params, frames)
