"""Runs the arms of a claim, each with each seed, and writes one record a run; finished runs are not repeated."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stvl.claims.memory import HeldVideos
from stvl.claims.record import Record
from stvl.claims.spec import Arm, Budget, Claim, Evaluation
from stvl.core.config import diff, from_dict, to_dict
from stvl.core.errors import ConfigError, DataError, TrainingError
from stvl.data.pipeline import TrainLoader
from stvl.data.toy import write_world
from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.eval.card import versions
from stvl.eval.embed import open_npz
from stvl.eval.result import atomic_write
from stvl.models.dual import DualEncoderConfig
from stvl.train.encoders import ModelEncoders
from stvl.train.experiment import Experiment
from stvl.train.state import Params, Starter, TrainState
from stvl.train.step import Step, make_step, put_batch

#: The training log holds a row each so many steps, and a record the mean of the last rows.
LOG_EVERY, LAST_ROWS = 10, 10

Say = Callable[[str], None]


class Runner:
    """Trains and measures the arms of one claim on one device.

    Args:
        claim: what is run.
        out: folder of the world and of the records: ``OUT/world``, ``OUT/CLAIM/seed-S/ARM.json``.
        budget: see Budget.
        say: told one line a run.

    Raises:
        ConfigError: a record of other settings lies where one is to be written.
        DataError: `out` holds another world, or a saved start that cannot be read.
        TrainingError: a loss that is not finite.
    """

    def __init__(self, claim: Claim, out: str | Path, budget: Budget | None = None, say: Say = print) -> None:
        self.claim, self.out, self.budget, self.say = claim, Path(out), budget or Budget(), say
        self.world = self.out / "world"
        self.decoder = HeldVideos()
        self.mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
        self._steps: dict[str, Step] = {}
        self._encoders: dict[tuple[DualEncoderConfig, int], ModelEncoders] = {}

    def run(self, seeds: tuple[int, ...] = (), arms: tuple[str, ...] = ()) -> list[Record]:
        """Run what is not there yet; the claim's own seeds and all arms where none are named."""
        chosen = self.claim.chosen(arms, self.budget, str(self.world))
        # What a record keeps must not depend on the folder that the claim was run in.
        plain = self.claim.chosen(arms, self.budget, "world")
        seeds = seeds or self.claim.seeds
        found: dict[tuple[int, str], Record] = {}
        for seed in seeds:
            for arm, told in zip(chosen, plain, strict=True):
                known = self.known(told, seed)
                if known is not None:
                    self.say(f"{self.claim.name} seed {seed} {arm.name}: done before")
                found[seed, arm.name] = known or self._fresh(arm, told, seed)
        return list(found.values())

    def path(self, arm: str, seed: int, suffix: str = ".json") -> Path:
        """Where a run's record or its parameters lie."""
        return self.out / self.claim.name / f"seed-{seed}" / f"{arm}{suffix}"

    def known(self, arm: Arm, seed: int) -> Record | None:
        """The record of a finished run with these settings, or None.

        Raises:
            ConfigError: the record there is of other settings.
        """
        path = self.path(arm.name, seed)
        if not path.is_file():
            return None
        record = Record.read(path)
        changes = diff(from_dict(record.config), seeded(arm.experiment, seed))
        if changes:
            told = ", ".join(f"{name} = {old!r} there, {new!r} asked" for name, old, new in changes[:5])
            raise ConfigError(f"{path} is of other settings ({told}); name another --out or remove it")
        return record

    def _fresh(self, arm: Arm, told: Arm, seed: int) -> Record:
        write_world(self.world, self.claim.world(self.budget))
        begin = time.perf_counter()
        experiment = seeded(arm.experiment, seed)
        params, training = self._train(arm, experiment, seed)
        trained = time.perf_counter() - begin
        if any(other.start == arm.name for other in self.claim.arms(self.budget, "world")):
            save_params(self.path(arm.name, seed, ".npz"), params)
        metrics, chance = self._measure(arm, params)
        record = Record(
            claim=self.claim.name,
            arm=arm.name,
            title=arm.title,
            seed=seed,
            steps=experiment.steps,
            start=arm.start,
            metrics=metrics,
            chance=chance,
            training=training,
            config=to_dict(seeded(told.experiment, seed)),
            world=to_dict(self.claim.world(self.budget)),
            where={**versions(), "commit": commit(), **machine()},
            train_seconds=round(trained, 2),
            wall_seconds=round(time.perf_counter() - begin, 2),
        )
        record.write(self.path(arm.name, seed))
        shown = ", ".join(
            f"{name} {100 * metrics[key]:.1f}" for key, name in self.claim.metrics.items() if key in metrics
        )
        self.say(f"{self.claim.name} seed {seed} {arm.name}: {shown} ({record.wall_seconds:.0f} s)")
        return record

    def _train(self, arm: Arm, experiment: Experiment, seed: int) -> tuple[Params, dict[str, Any]]:
        starter = Starter(experiment, self.mesh)
        state = self._begin(arm, starter, seed)
        if arm.name not in self._steps:
            # One compilation serves all seeds: the seed of an experiment enters its step through drop path alone.
            self._steps[arm.name] = make_step(starter)
        step, rows = self._steps[arm.name], []
        loader = TrainLoader(
            experiment.source.load(),
            experiment.train_transform,
            experiment.tokenizer,
            experiment.loader,
            decoder=self.decoder,
        )
        try:
            for number in range(1, experiment.steps + 1):
                state, found = step(state, put_batch(next(loader), self.mesh))
                if number % LOG_EVERY == 0 or number == experiment.steps:
                    rows.append({"step": float(number)} | {name: float(x) for name, x in found.items()})
                    refuse_damage(rows[-1], arm.name, seed)
        finally:
            loader.close()
        return jax.device_get(state.params), summary(rows)

    def _begin(self, arm: Arm, starter: Starter, seed: int) -> TrainState:
        video: Any = starter.experiment.model.video
        if video.drop_path:
            raise ConfigError(
                f"drop path is {video.drop_path}: runs of several seeds share a compiled step without it"
            )
        if not arm.start:
            return starter.start()
        params = load_params(self.path(arm.start, seed, ".npz"), starter.abstract.params)
        fresh = TrainState(
            step=np.zeros((), np.int32), params=params, opt_state=starter.optimizer.init(params)
        )
        return jax.device_put(fresh, starter.shardings)

    def _measure(self, arm: Arm, params: Params) -> tuple[dict[str, float], dict[str, float]]:
        metrics: dict[str, float] = {}
        chance: dict[str, float] = {}
        for item in arm.evaluations:
            result = item.protocol.run(self._encoder(arm, item, params))
            metrics |= {f"{item.name}/{name}": value for name, value in result.metrics.items()}
            chance |= {f"{item.name}/{name}": value for name, value in result.baseline.items()}
        return metrics, chance

    def _encoder(self, arm: Arm, item: Evaluation, params: Params) -> ModelEncoders:
        experiment = dataclasses.replace(arm.experiment, model=item.model or arm.experiment.model)
        key = (experiment.model, item.frames)
        if key not in self._encoders:
            self._encoders[key] = ModelEncoders(experiment, params, item.frames)
        # Compiled once for all seeds, and for all arms of one model: parameters are an argument of what is compiled.
        self._encoders[key].params = params
        return self._encoders[key]


def seeded(experiment: Experiment, seed: int) -> Experiment:
    """The experiment with `seed` for its initial parameters and for the order, times, crops and texts of its data."""
    loader = dataclasses.replace(experiment.loader, seed=seed)
    return dataclasses.replace(experiment, seed=seed, loader=loader)


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Mean of each number over the last rows of the log, and the loss by step."""
    last = rows[-LAST_ROWS:]
    means = {name: float(np.mean([row[name] for row in last])) for name in last[0] if name != "step"}
    every = max(len(rows) // 10, 1)
    curve = [[row["step"], round(row["loss"], 5)] for row in rows[every - 1 :: every]]
    return {"last": means, "rows": len(last), "loss": curve}


def refuse_damage(row: dict[str, float], arm: str, seed: int) -> None:
    """Stop at a loss or a gradient that is not finite.

    Raises:
        TrainingError: naming the run and the step.
    """
    for name in ("loss", "grad_norm"):
        if not np.isfinite(row[name]):
            raise TrainingError(f"{arm}, seed {seed}: {name} of step {row['step']:g} is {row[name]}")


def save_params(path: Path, params: Params) -> None:
    """Write parameters to an .npz file, arrays by their path in the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = {jax.tree_util.keystr(place): np.asarray(leaf) for place, leaf in leaves}
    atomic_write(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def load_params(path: Path, like: Params) -> Params:
    """Read what `save_params` wrote into a tree of the shapes of `like`.

    Raises:
        DataError: a missing file, or parameters of another model.
    """
    with open_npz(
        path, "parameters of an earlier run of the claim (remove its .json to run it again)"
    ) as arrays:
        held = {name: arrays[name] for name in arrays.files}
    leaves, tree = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(place) for place, _ in leaves]
    shapes = {name: leaf.shape for name, (_, leaf) in zip(names, leaves, strict=True)}
    if {name: array.shape for name, array in held.items()} != shapes:
        raise DataError(f"{path} holds parameters of another model")
    return jax.tree.unflatten(tree, [held[name] for name in names])


@functools.cache
def commit() -> str:
    """The commit of the checkout that stvl runs from, with ``+changes`` where files differ; ``"unknown"`` without git."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, str]:
    """What the numbers of a run depend on besides versions: processor, the cores that it may use, Python."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "backend": jax.default_backend(),
        "cores": str(cores),
    }
