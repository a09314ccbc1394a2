"""Checkpoints with Orbax: written in the background, the last and the best kept, restored onto any mesh."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from stvl.core.config import diff, from_dict, to_dict
from stvl.core.errors import TrainingError
from stvl.core.paths import AnyPath, absolute, is_remote, make_folder
from stvl.train.experiment import Experiment
from stvl.train.state import TrainState

_FILE = "experiment.json"
#: Files that every whole checkpoint holds; the manifest is the last that Orbax writes for the state.
_PARTS = ("_CHECKPOINT_METADATA", "state/manifest.ocdbt", "data/metadata", "experiment/metadata")
#: In a bucket, where no folder can be renamed: what Orbax writes last of all.
_COMMITTED = "commit_success.txt"


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint gives back.

    Attributes:
        state: the training state, laid out as the target asked.
        data: the data iterator's state, and the steps that were passed over.
        step: number of updates made.
    """

    state: TrainState
    data: dict[str, Any]
    step: int


class Checkpoints:
    """The checkpoints of one run folder.

    A step is a folder that holds the state, the data iterator's state and the experiment's JSON. On a disk Orbax writes it
    under a temporary name and renames it when it is whole; in a bucket it writes ``commit_success.txt`` last. So half a
    checkpoint of a killed run is never taken for a whole one.

    Args:
        folder: the run folder.
        experiment: what runs there, or is compared with what ran there.
        read_only: for evaluation, which may look at a folder whose run is writing to it: nothing is cleaned up.
    """

    def __init__(self, folder: AnyPath, experiment: Experiment, read_only: bool = False) -> None:
        self.experiment, self._alone = experiment, jax.process_count() == 1
        self.folder = absolute(folder)
        policies: list[Any] = [preservation_policy.LatestN(experiment.keep)]
        if experiment.best:
            best = preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics[experiment.best],
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            policies.append(best)
        torn = _torn(self.folder)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=True,
        )
        self.manager = ocp.CheckpointManager(self.folder / "checkpoints", options=options)
        self._torn = set(self.manager.all_steps()) - set(steps(self.folder))
        #: A line for each folder that is no whole checkpoint.
        self.torn = torn

    @property
    def last(self) -> int | None:
        """Step of the newest finished checkpoint."""
        return max(steps(self.folder), default=None)

    def save(self, state: TrainState, data: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Start to save `state`; returns as soon as its arrays are copied. Saving a step again does nothing."""
        step = int(state.step)
        if step in self._torn:
            self.manager.delete(step)
            self._torn.remove(step)
        if step in self.manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(data),
            experiment=ocp.args.JsonSave(to_dict(self.experiment)),
        )
        self.manager.save(step, args=items, metrics=metrics, force=True)

    def restore(self, target: TrainState, step: int | None = None) -> Restored:
        """Bring back `step` (default: the newest) with the shapes, dtypes and shardings of `target`.

        Where the newest one is damaged and there is one process, the one before it is taken, with a line in `torn`.
        Several processes might not agree on what each can read, so there the damage is an error.

        Raises:
            TrainingError: there is no checkpoint, or none that can be read, or it is of another architecture or optimizer,
                or of other rules for the data: every differing field is named.
        """
        if step is not None:
            return self._restore(target, step)
        found = steps(self.folder)
        if not found:
            raise TrainingError(f"{self.folder} holds no finished checkpoint")
        damaged: list[TrainingError] = []
        for number in reversed(found):
            try:
                restored = self._restore(target, number)
            except (ValueError, OSError) as problem:
                told = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
                damaged.append(
                    TrainingError(f"the checkpoint of step {number} in {self.folder} is damaged: {told}")
                )
                if not self._alone:
                    break
                continue
            self.torn += tuple(f"skipped: {one}" for one in damaged)
            # Their steps are saved anew when the run comes to them.
            self._torn |= {other for other in found if other > number}
            return restored
        raise TrainingError(f"{damaged[0]}. Delete its folder to go on from the one before it") from damaged[
            0
        ]

    def _restore(self, target: TrainState, step: int) -> Restored:
        refuse_other_model(saved_experiment(self.folder, step), self.experiment, self.folder)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore())
        found = self.manager.restore(step, args=items)
        return Restored(found["state"], found["data"], step)

    def check(self) -> None:
        """Raise what went wrong while saving in the background, as soon as it is known.

        Raises:
            TrainingError: with what the file system said.
        """
        try:
            self.manager.check_for_errors()
        except Exception as problem:
            raise self._unsaved(problem) from problem

    def wait(self) -> None:
        """Block until everything is on disk.

        Raises:
            TrainingError: what went wrong while saving in the background.
        """
        try:
            self.manager.wait_until_finished()
        except Exception as problem:
            raise self._unsaved(problem) from problem

    def _unsaved(self, problem: Exception) -> TrainingError:
        return TrainingError(
            f"saving to {self.folder / 'checkpoints'} failed: {type(problem).__name__}: {problem}. The newest finished "
            f"checkpoint is of step {self.last}; see to the disk, then start the same command again"
        )

    def close(self) -> None:
        """Wait, then release the manager's threads."""
        self.manager.close()


def _torn(folder: AnyPath) -> tuple[str, ...]:
    """What lies among the checkpoints of a run folder without being whole, a line each."""
    root = folder / "checkpoints"
    if not root.is_dir():
        return ()
    whole, told = set(steps(folder)), []
    for item in sorted(root.iterdir(), key=lambda path: path.name):
        if item.name.isdigit() and int(item.name) not in whole:
            lost = next(part for part in parts_of(folder) if not (item / part).is_file())
            told.append(f"skipped the torn checkpoint {item.name}: it lacks {lost}")
        elif "orbax-checkpoint-tmp" in item.name:
            told.append(f"skipped {item.name}: a save that did not finish")
    return tuple(told)


def steps(folder: AnyPath) -> list[int]:
    """Finished checkpoints of a run folder, oldest first; folders that lack a part (a torn copy) are left out."""
    root = folder / "checkpoints"
    if not root.is_dir():
        return []
    found = [item for item in root.iterdir() if item.name.isdigit()]
    return sorted(
        int(item.name) for item in found if all((item / part).is_file() for part in parts_of(folder))
    )


def parts_of(folder: AnyPath) -> tuple[str, ...]:
    """Files that a whole checkpoint of this run folder holds."""
    return (_COMMITTED, *_PARTS) if is_remote(folder) else _PARTS


def saved_experiment(folder: AnyPath, step: int | None = None) -> Experiment:
    """The experiment that `folder` was trained with.

    Raises:
        TrainingError: no checkpoint there.
    """
    found = steps(folder)
    if not found:
        raise TrainingError(
            f"{folder} holds no finished checkpoint; a run folder is what `stvl train ... run=DIR` writes"
        )
    if step is not None and step not in found:
        raise TrainingError(
            f"{folder} holds no checkpoint of step {step} (there are: {', '.join(map(str, found))})"
        )
    chosen = str(found[-1] if step is None else step)
    text = (folder / "checkpoints" / chosen / "experiment" / "metadata").read_text()
    return from_dict(json.loads(text))


def refuse_other_model(saved: Experiment, asked: Experiment, folder: AnyPath) -> None:
    """Raise where a checkpoint cannot be continued by `asked`, naming every field that differs."""
    fields = [row for row in diff(saved.model, asked.model) if not row[0].endswith(("remat", "unroll"))]
    model = [(f"model.{path}", old, new) for path, old, new in fields]
    other: list[tuple[str, Any, Any]] = []
    if (saved.ema is None) != (asked.ema is None):
        other.append(("ema", saved.ema, asked.ema))
    # Optimizers keep states of their own shape: AdamW's moments would be read as LAMB's.
    if type(saved.optimizer) is not type(asked.optimizer):
        other.append(("optimizer", type(saved.optimizer).__name__, type(asked.optimizer).__name__))
    if (saved.optimizer.clip is None) != (asked.optimizer.clip is None):
        other.append(("optimizer.clip", saved.optimizer.clip, asked.optimizer.clip))
    # Mining changes what a text of the batch is, so that one run would have been trained on two data sets.
    if (saved.loader.mining is None) != (asked.loader.mining is None):
        words = [
            None if mining is None else type(mining).__name__
            for mining in (saved.loader.mining, asked.loader.mining)
        ]
        other.append(("loader.mining", words[0], words[1]))
    if model or other:
        what = "with another architecture" if model else "in another way"
        lines = [
            f"  {path}: the checkpoint has {old}, this run asks for {new}"
            for path, old, new in [*model, *other]
        ]
        raise TrainingError(
            f"{folder} was trained {what}:\n"
            + "\n".join(lines)
            + "\nset these fields back, or choose another run folder with run=DIR (init.folder=... starts a new run from "
            "the parameters of this one)"
        )


def write_experiment(folder: AnyPath, experiment: Experiment) -> None:
    """Put the experiment's JSON into the run folder, for people to read."""
    if jax.process_index() == 0:
        make_folder(folder)
        (folder / _FILE).write_text(json.dumps(to_dict(experiment), indent=2) + "\n")
