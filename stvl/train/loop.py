"""The loop: draw, step, log, evaluate, save; and stop without losing anything."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from stvl.core.errors import ConfigError, TrainingError, nearest
from stvl.core.paths import reach
from stvl.data.pipeline import TrainLoader
from stvl.dist.mesh import make_mesh
from stvl.dist.peak import peak_flops
from stvl.dist.peers import CALLED_OFF, Peers
from stvl.dist.place import ALONE
from stvl.dist.watchdog import Watchdog
from stvl.eval.share import Interrupted
from stvl.models.flops import repeated_flops, train_flops
from stvl.train.cache import compile_cache
from stvl.train.checkpoints import Checkpoints, saved_experiment, write_experiment
from stvl.train.clock import Clock, Work
from stvl.train.evaluation import evaluate, local_copy
from stvl.train.experiment import Experiment
from stvl.train.hooks import Hooks, Terminal
from stvl.train.init import Pretrained
from stvl.train.logs import loggers
from stvl.train.nonfinite import NonFinite, NonFiniteLoss, unsound
from stvl.train.profile.profiler import Profiler, Steps
from stvl.train.signals import Exit, StopFlag, stop_on_sigterm
from stvl.train.state import Starter, TrainState
from stvl.train.step import Step, make_step, put_batch

__all__ = ["NonFiniteLoss", "Preempted", "Run", "train"]


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


class Run:
    """One training run: everything that `train` holds on to."""

    def __init__(self, experiment: Experiment, peers: Peers | None = None) -> None:
        self.experiment = experiment
        self.peers = peers or Peers(ALONE)
        self.folder = reach(experiment.folder)
        self.mesh = make_mesh(experiment.mesh)
        self.starter = Starter(experiment, self.mesh)
        self.table = experiment.source.load()
        shard = (jax.process_index(), jax.process_count())
        self.loader = TrainLoader(
            self.table, experiment.train_transform, experiment.tokenizer, experiment.loader, shard=shard
        )
        self.checkpoints = Checkpoints(self.folder, experiment)
        self.step = make_step(self.starter)
        self.notes: tuple[str, ...] = self.checkpoints.torn
        self.passed_over: list[int] = []
        self.state, self.start = self._begin()
        write_experiment(self.folder, self.experiment)
        self.hooks = Hooks()
        if jax.process_index() == 0:
            terminal = Terminal(experiment.steps, self.start, experiment.loader.batch)
            self.hooks = Hooks(terminal, *loggers(self.folder))
        bad = self.folder / "nonfinite.jsonl" if jax.process_index() == 0 else None
        self.nonfinite = NonFinite(experiment.max_nonfinite, bad, self.passed_over)
        peak, self.peak_source = peak_flops(jax.local_devices()[0])
        self.clock = Clock(_work(experiment, peak * jax.device_count()))
        self.saved_bad = 0
        self.watchdog = Watchdog(experiment.watchdog, self.folder, jax.process_index())

    def _begin(self) -> tuple[TrainState, int]:
        if self.checkpoints.last is not None:
            found = self.checkpoints.restore(self.starter.target())
            self.notes = self.checkpoints.torn
            self.loader.set_state(found.data)
            self.passed_over = [int(step) for step in found.data.get("nonfinite", ())]
            # What the run once started from stays on record, whatever is asked for now.
            self._record(saved_experiment(self.folder, found.step).init)
            return found.state, found.step
        if self.experiment.init is None:
            return self.starter.start(), 0
        given = self.starter.pretrained()
        self.notes += given.notes
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
        with self.clock.part("data_wait"):
            batch = next(self.loader)
        with self.clock.part("host_to_device"):
            sent = put_batch(batch, self.mesh)
        # The first call compiles; the others only put the step in the device's queue.
        with self.clock.part("compute" if number > self.start + 1 else "compile"):
            self.state, metrics = self.step(self.state, sent)
        self.clock.step()
        log = number % self.experiment.log_every == 0 or number == self.experiment.steps
        return Pending(number, metrics, batch["index"], log)

    def settle(self, pending: Pending | None) -> None:
        """Look at the numbers of a step that was sent earlier: log them, or write down that it was passed over.

        Raises:
            NonFiniteLoss: too many steps were passed over; names the step and the batch's clips.
            TrainingError: what went wrong while saving in the background.
        """
        if pending is None:
            return
        with self.clock.part("compute"):
            metrics = {name: float(value) for name, value in pending.metrics.items()}
        self.watchdog.beat(pending.step)
        self.checkpoints.check()
        if unsound(metrics):
            self._pass_over(pending, metrics)
        if pending.log:
            # Two runs drew the same clips in this step where these numbers agree.
            row = metrics | {"ids_crc": float(zlib.crc32(_all_rows(pending.index).tobytes()))}
            if self.nonfinite.steps:
                row["passed_over"] = float(len(self.nonfinite.steps))
            self.hooks.write(pending.step, {**row, **self.clock.row()})
            self._tell_bad()

    def _pass_over(self, pending: Pending, metrics: dict[str, float]) -> None:
        ids = [self.table[int(row)].id for row in _all_rows(pending.index)]
        try:
            self.hooks.say(self.nonfinite.take(pending.step, metrics, ids))
        except NonFiniteLoss as problem:
            self.checkpoints.wait()
            raise NonFiniteLoss(
                f"{problem} The newest checkpoint is of step {self.checkpoints.last}; a smaller learning rate or "
                "optimizer.clip is the usual remedy"
            ) from problem

    def _tell_bad(self) -> None:
        if len(self.loader.bad) > self.saved_bad:
            for path, entry in list(self.loader.bad.items())[self.saved_bad :]:
                self.hooks.say(f"skipped {path} (row {entry.row}): {entry.reason}")
            self.saved_bad = len(self.loader.bad)

    def evaluate(self, number: int, stop: StopFlag | None = None) -> dict[str, float]:
        """Run every protocol, write its result JSON, and return all scores as ``PROTOCOL/METRIC``.

        Raises:
            Interrupted: `stop` was set on one of the processes; raised on all of them.
        """
        if not self.experiment.evals:
            return {}

        def stopping() -> bool:
            # The others learn of it between their batches, and all leave the evaluation together.
            if stop:
                self.peers.tell_stop()
            return bool(stop) or self.peers.asked_to_stop

        with self.clock.part("evaluation"):
            params = local_copy(self.state.best_params, self.mesh)
            scores = evaluate(self.experiment, params, number, stopping)
        best = self.experiment.best
        if best and best not in scores:
            raise ConfigError(f"best = {best!r} is no score of this run's protocols{nearest(best, scores)}")
        self.hooks.write(number, scores)
        shown = "  ".join(f"{name} {value:.1%}" for name, value in scores.items())
        self.hooks.say(f"evaluation at step {number}: {shown}")
        return scores

    def save(self, metrics: dict[str, float] | None = None) -> None:
        """Start to save the state, with the log of the steps that led to it."""
        data = {**self.loader.get_state(), "nonfinite": self.nonfinite.steps}
        with self.clock.part("checkpoint"):
            self.hooks.flush()
            self.checkpoints.save(self.state, data, metrics or None)

    def close(self) -> None:
        """Wait for the disk and close everything."""
        self.loader.close()
        try:
            with self.clock.part("checkpoint"):
                self.checkpoints.close()
        finally:
            # The last rows are on their way where the log goes to a bucket.
            self.hooks.say(f"where the time went, {self.clock.summary()}")
            self.hooks.close()


def _all_rows(index: np.ndarray) -> np.ndarray:
    """The table's rows of a batch over all processes."""
    return np.asarray(multihost_utils.process_allgather(index, tiled=True), "<i4")


def _work(experiment: Experiment, peak: float) -> Work:
    """What a step does, for devices that reach `peak` FLOP/s together."""
    loader, context = experiment.loader, experiment.tokenizer.context_length
    flops = train_flops(experiment.model, loader.frames, context, loader.batch)
    again = repeated_flops(experiment.model, loader.frames, context, loader.batch, experiment.grad_cache)
    return Work(loader.batch, flops / peak, (flops + again) / peak)


def train(
    experiment: Experiment,
    peers: Peers | None = None,
    stop: StopFlag | None = None,
    profile: Steps | None = None,
    watch: Callable[[Step], Step] | None = None,
) -> dict[str, float]:
    """Train to ``experiment.steps``, from the newest checkpoint of the run folder where there is one.

    Args:
        experiment: the run.
        peers: the other processes; None where there are none.
        stop: from a `stop_on_sigterm` that is in force already; None to catch SIGTERM from here on.
        profile: steps to trace (`stvl.train.profile`).
        watch: gets the step function and returns the one to use.

    Returns the scores of the last evaluation.

    Raises:
        NonFiniteLoss: with the batch's ids; nothing non-finite is ever saved.
        Preempted: SIGTERM came, the state is saved.
        TrainingError: too many damaged inputs, a run folder of another architecture, or a disk that takes no checkpoint.
        DataError, ConfigError: inputs that cannot be used.
    """
    if stop is None:
        with stop_on_sigterm() as caught:
            return train(experiment, peers, caught, profile, watch)
    stop.at_once(lambda: (peers or Peers(ALONE)).call_off(CALLED_OFF, Exit.PREEMPTED))
    with compile_cache(experiment.folder / "compile-cache", experiment.compile_cache) as cache:
        run = Run(experiment, peers)
        run.step = run.step if watch is None else watch(run.step)
        profiler = Profiler(profile, run.folder, run.hooks.say, run.clock.work.ideal)
        try:
            run.greet()
            with run.watchdog, contextlib.closing(profiler):
                return _loop(run, stop, profiler)
        finally:
            stop.after_saving()
            if cache.describe():
                run.hooks.say(cache.describe())
            run.close()


def _loop(run: Run, stop: StopFlag, profiler: Profiler) -> dict[str, float]:
    experiment, pending, scores = run.experiment, None, {}
    for number in range(run.start + 1, experiment.steps + 1):
        profiler.before(number)
        sent = run.advance(number)
        # Until here a restart would lose nothing, and nobody waits for the compiler to stop.
        stop.after_saving()
        # The device works on this step while the host looks at the numbers of the one before.
        run.settle(pending)
        run.clock.pause(profiler.after(number, sent.metrics))
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
                fresh, stopping = _evaluated(run, number, stop)
            scores = scores if fresh is None else fresh
            with run.watchdog.busy("saving"):
                run.save(fresh)
        if stopping and (not last or experiment.evals):
            run.checkpoints.wait()
            raise Preempted(
                f"SIGTERM: saved step {number} in {run.folder}; the same command goes on from there"
            )
    if run.start >= experiment.steps:
        run.hooks.say(f"{run.folder} has reached step {run.start} already; raise steps to train on")
        with run.watchdog.busy("evaluation"):
            scores = run.evaluate(run.start)
    return scores


def _evaluated(run: Run, number: int, stop: StopFlag) -> tuple[dict[str, float] | None, bool]:
    """(scores, whether to stop): none where a stop came first."""
    with run.watchdog.busy("evaluation"):
        try:
            return run.evaluate(number, stop), False
        except Interrupted:
            run.hooks.say(f"evaluation at step {number} given up: SIGTERM")
            return None, True
