"""The protocols of a run, on all of its processes, and how they are stopped halfway."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, UInt8

from stvl.dist.mesh import replicated
from stvl.eval.share import Interrupted, shared
from stvl.train.encoders import ModelEncoders
from stvl.train.experiment import Experiment
from stvl.train.state import Params


class _Stoppable(ModelEncoders):
    """Encoders of a run that end an evaluation between two batches of clips where the run is asked to stop."""

    stopping: Callable[[], bool]

    def video(self, frames: UInt8[np.ndarray, "b t y x c"]) -> Float32[np.ndarray, "b o"]:
        """L2-normalised embeddings of clips.

        Raises:
            Interrupted: the run is asked to stop.
        """
        if self.stopping():
            raise Interrupted("the evaluation was stopped")
        return super().video(frames)


def local_copy(params: Params, mesh: Mesh) -> Params:
    """Whole parameters on one device of this process, wherever their slices lie."""
    if jax.process_count() == 1:
        return jax.device_put(params, jax.local_devices()[0])
    # Slices on other hosts cannot be read from here: every device gets a copy, and this process keeps one of its own.
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(params)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


def evaluate(
    experiment: Experiment, params: Params, step: int, stopping: Callable[[], bool] = lambda: False
) -> dict[str, float]:
    """Run every protocol of the experiment; scores as ``PROTOCOL/METRIC``, the same on every process.

    The clips are split over the processes. Process 0 writes each protocol's result to
    ``results/PROTOCOL-STEP.json`` in the run folder.

    Args:
        experiment: its protocols, transform and run folder.
        params: from `local_copy`.
        step: number of updates made.
        stopping: asked before each batch of clips.

    Raises:
        Interrupted: `stopping` said so on one of the processes; raised on all of them.
        DataError, ConfigError: as the protocols.
    """
    encoders = _Stoppable(experiment, params)
    encoders.stopping = stopping
    scores: dict[str, float] = {}
    results = experiment.folder / "results"
    with shared(jax.process_index(), jax.process_count()):
        for protocol in experiment.evals:
            result = protocol.run(encoders)
            name = type(protocol).__name__
            if jax.process_index() == 0:
                result.to_json(results / f"{name}-{step}.json")
            scores |= {f"{name}/{metric}": value for metric, value in result.metrics.items()}
    return scores
