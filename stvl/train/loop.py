"""The loop: draw, step, log, evaluate, save; and stop without losing anything."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from stvl.core.errors import ConfigError, TrainingError, nearest
from stvl.data.pipeline import TrainLoader
from stvl.dist.mesh import make_mesh
from stvl.dist.peak import peak_flops
from stvl.dist.peers import Peers
from stvl.dist.place import Place
from stvl.dist.watchdog import Watchdog
from stvl.models.flops import train_flops
from stvl.train.checkpoints import Checkpoints, saved_experiment, write_experiment
from stvl.train.encoders import ModelEncoders
from stvl.train.experiment import Experiment
from stvl.train.hooks import Hooks, JsonLines, TensorBoard, Terminal
from stvl.train.init import Pretrained
from stvl.train.profile.profiler import Profiler, Steps
from stvl.train.signals import Exit, StopFlag, stop_on_sigterm
from stvl.train.state import Starter, TrainState
from stvl.train.step import Step, make_step, put_batch


class NonFiniteLoss(TrainingError):
    """The loss or the gradient of a step was NaN or infinite; the message names the batch's clips."""

    exit_code = Exit.NON_FINITE


class Preempted(TrainingError):
    """SIGTERM came; the state is saved."""

    exit_code = Exit.PREEMPTED


@dataclasses.dataclass
class Pending:
    """A step that was sent to the device and whose numbers were not looked at yet."""

    step: int
    metrics: dict[str, jax.Array]
    index: np.ndarray
    log: bool


@dataclasses.dataclass
class Clock:
    """Where the seconds since the last log row went."""

    start: float = dataclasses.field(default_factory=time.perf_counter)
    waited: float = 0.0
    steps: int = 0

    def row(self, batch: int, flops: float) -> dict[str, float]:
        """Speed figures; `flops` is the share of a step's FLOPs in the peak of all devices, in seconds."""
        seconds = max(time.perf_counter() - self.start, 1e-9)
        each = seconds / max(self.steps, 1)
        return {
            "clips_per_second": batch / each,
            "step_seconds": each,
            "data_wait": self.waited / seconds,
            "mfu": flops / each,
        }


class Run:
    """One training run: everything that `train` holds on to."""

    def __init__(self, experiment: Experiment, peers: Peers | None = None) -> None:
        self.experiment = experiment
        self.peers = peers or Peers(Place("", 1, 0, "alone"))
        self.folder: Path = experiment.folder
        self.mesh = make_mesh(experiment.mesh)
        self.starter = Starter(experiment, self.mesh)
        self.table = experiment.source.load()
        shard = (jax.process_index(), jax.process_count())
        self.loader = TrainLoader(
            self.table, experiment.train_transform, experiment.tokenizer, experiment.loader, shard=shard
        )
        self.checkpoints = Checkpoints(self.folder, experiment)
        self.step = make_step(self.starter)
        self.notes: tuple[str, ...] = ()
        self.state, self.start = self._begin()
        write_experiment(self.folder, self.experiment)
        self.hooks = Hooks()
        if jax.process_index() == 0:
            terminal = Terminal(experiment.steps, self.start, experiment.loader.batch)
            self.hooks = Hooks(terminal, JsonLines(self.folder), TensorBoard(self.folder))
        peak, self.peak_source = peak_flops(jax.local_devices()[0])
        flops = train_flops(
            experiment.model,
            experiment.loader.frames,
            experiment.tokenizer.context_length,
            experiment.loader.batch,
        )
        self.ideal_seconds = flops / (peak * jax.device_count())
        self.clock = Clock()
        self.saved_bad = 0
        self.watchdog = Watchdog(experiment.watchdog, self.folder, jax.process_index())

    def _begin(self) -> tuple[TrainState, int]:
        if self.checkpoints.last is not None:
            found = self.checkpoints.restore(self.starter.target())
            self.loader.set_state(found.data)
            # What the run once started from stays on record, whatever is asked for now.
            self._record(saved_experiment(self.folder, found.step).init)
            return found.state, found.step
        if self.experiment.init is None:
            return self.starter.start(), 0
        given = self.starter.pretrained()
        self.notes = given.notes
        self._record(given.init)
        return self.starter.start_from(given.params), 0

    def _record(self, init: Pretrained | None) -> None:
        """Let every checkpoint's experiment say what the run started from, with its hash."""
        self.experiment = self.checkpoints.experiment = dataclasses.replace(self.experiment, init=init)

    def greet(self) -> None:
        """Say what is about to happen."""
        experiment, count = (
            self.experiment,
            sum(leaf.size for leaf in jax.tree.leaves(self.starter.abstract.params)),
        )
        sizes = (
            " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items() if size > 1) or "one device"
        )
        self.hooks.say(
            f"{experiment.name}: {count / 1e6:.1f} M parameters, {len(self.table)} clips, batch {experiment.loader.batch}, "
            f"{experiment.compute_dtype}, {jax.default_backend()} ({sizes}), peak {self.peak_source}"
        )
        for line in self.notes:
            self.hooks.say(line)
        if self.start:
            self.hooks.say(f"resumed from step {self.start} in {self.folder}")

    def advance(self, number: int) -> Pending:
        """Draw a batch and send one step to the device."""
        begin = time.perf_counter()
        batch = next(self.loader)
        self.clock.waited += time.perf_counter() - begin
        self.state, metrics = self.step(self.state, put_batch(batch, self.mesh))
        self.clock.steps += 1
        log = number % self.experiment.log_every == 0 or number == self.experiment.steps
        return Pending(number, metrics, batch["index"], log)

    def settle(self, pending: Pending | None) -> None:
        """Look at the numbers of a step that was sent earlier: refuse non-finite ones, log the others.

        Raises:
            NonFiniteLoss: naming the step and the batch's clips.
        """
        if pending is None:
            return
        # A finite loss with a NaN gradient has spoilt the parameters already; the next step's loss would come too late.
        for name, metric in (("loss", "loss"), ("gradient's norm", "grad_norm")):
            value = float(pending.metrics[metric])
            if not np.isfinite(value):
                clips = ", ".join(self.table[int(index)].id for index in pending.index)
                self.checkpoints.wait()
                raise NonFiniteLoss(
                    f"the {name} of step {pending.step} is {value}; ids of its batch: {clips}. The newest checkpoint is "
                    f"of step {self.checkpoints.last}; a smaller learning rate or optimizer.clip is the usual remedy"
                )
        self.watchdog.beat(pending.step)
        if pending.log:
            row = {name: float(value) for name, value in pending.metrics.items()}
            # Two runs drew the same clips in this step where these numbers agree.
            index = multihost_utils.process_allgather(pending.index, tiled=True)
            row["ids_crc"] = float(zlib.crc32(np.asarray(index, "<i4").tobytes()))
            batch = self.experiment.loader.batch
            self.hooks.write(pending.step, {**row, **self.clock.row(batch, self.ideal_seconds)})
            self.clock = Clock()
            self._tell_bad()

    def _tell_bad(self) -> None:
        if len(self.loader.bad) > self.saved_bad:
            for path, entry in list(self.loader.bad.items())[self.saved_bad :]:
                self.hooks.say(f"skipped {path} (row {entry.row}): {entry.reason}")
            self.saved_bad = len(self.loader.bad)

    def evaluate(self, number: int) -> dict[str, float]:
        """Run every protocol, write its result JSON, and return all scores as ``PROTOCOL/METRIC``."""
        scores: dict[str, float] = {}
        if not self.experiment.evals:
            return scores
        if jax.process_count() > 1:
            self.hooks.say("evaluation runs on one process only: use `stvl eval` on the run folder")
            return scores
        params = jax.device_put(self.state.best_params, jax.local_devices()[0])
        encoders = ModelEncoders(self.experiment, params)
        for protocol in self.experiment.evals:
            result = protocol.run(encoders)
            name = type(protocol).__name__
            result.to_json(self.folder / "results" / f"{name}-{number}.json")
            scores |= {f"{name}/{metric}": value for metric, value in result.metrics.items()}
        best = self.experiment.best
        if best and best not in scores:
            raise ConfigError(f"best = {best!r} is no score of this run's protocols{nearest(best, scores)}")
        self.hooks.write(number, scores)
        shown = "  ".join(f"{name} {value:.1%}" for name, value in scores.items())
        self.hooks.say(f"evaluation at step {number}: {shown}")
        self.clock = Clock()
        return scores

    def save(self, metrics: dict[str, float] | None = None) -> None:
        """Start to save the state."""
        self.checkpoints.save(self.state, self.loader.get_state(), metrics or None)

    def close(self) -> None:
        """Wait for the disk and close everything."""
        self.loader.close()
        self.checkpoints.close()
        self.hooks.close()


def train(
    experiment: Experiment,
    peers: Peers | None = None,
    profile: Steps | None = None,
    watch: Callable[[Step], Step] | None = None,
) -> dict[str, float]:
    """Train to ``experiment.steps``, from the newest checkpoint of the run folder where there is one.

    The steps in `profile` are traced (`stvl.train.profile`); `watch` gets the step function and returns the one to use.
    Returns the scores of the last evaluation.

    Raises:
        NonFiniteLoss: with the batch's ids; nothing non-finite is ever saved.
        Preempted: SIGTERM came, the state is saved.
        TrainingError: too many damaged inputs, or a run folder of another architecture.
        DataError, ConfigError: inputs that cannot be used.
    """
    run = Run(experiment, peers)
    run.step = run.step if watch is None else watch(run.step)
    profiler = Profiler(profile, run.folder, run.hooks.say, run.ideal_seconds)
    try:
        run.greet()
        with stop_on_sigterm() as stop, run.watchdog, contextlib.closing(profiler):
            return _loop(run, stop, profiler)
    finally:
        run.close()


def _loop(run: Run, stop: StopFlag, profiler: Profiler) -> dict[str, float]:
    experiment, pending, scores = run.experiment, None, {}
    for number in range(run.start + 1, experiment.steps + 1):
        profiler.before(number)
        sent = run.advance(number)
        # The device works on this step while the host looks at the numbers of the one before.
        run.settle(pending)
        run.clock.start += profiler.after(number, sent.metrics)
        pending = sent
        last = number == experiment.steps
        # The same answer on every process: one that stopped alone would leave the others waiting in a collective.
        stopping = run.peers.stop_now(number, bool(stop))
        due = bool(experiment.eval_every) and number % experiment.eval_every == 0
        if due or last or stopping or number % experiment.save_every == 0:
            run.settle(pending)
            pending = None
            # A checkpoint carries the scores of its own step only: `best` is chosen by them.
            fresh = None
            if (due or last) and not stopping:
                with run.watchdog.busy("evaluation"):
                    fresh = run.evaluate(number)
            scores = scores if fresh is None else fresh
            with run.watchdog.busy("saving"):
                run.save(fresh)
        if stopping and not last:
            run.checkpoints.wait()
            raise Preempted(
                f"SIGTERM: saved step {number} in {run.folder}; the same command goes on from there"
            )
    if run.start >= experiment.steps:
        run.hooks.say(f"{run.folder} has reached step {run.start} already; raise steps to train on")
        scores = run.evaluate(run.start)
    return scores
