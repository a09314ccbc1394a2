"""Times the real train step of named sizes, each in a process of its own: time, MFU, memory foretold and taken.

    python -m stvl.plan.measure NAME < PLAN

is such a process: it reads a `StepPlan` as JSON and prints a row as its last line. `bench_step` starts them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from stvl.core.errors import ConfigError, DataError
from stvl.dist.peak import peak_flops
from stvl.models.flops import train_flops
from stvl.ops.bench.machine import environment
from stvl.ops.bench.timing import matmul_ceiling, measure
from stvl.plan.agreement import agreement, backends
from stvl.plan.resident import CompiledStep, compile_step, random_batch, taken_by
from stvl.plan.steps import StepPlan, default_shapes, step_experiment

#: Share of a GPU's memory that jax takes at once: its own default, three quarters, leaves out what a large batch needs.
FRACTION = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}


@dataclasses.dataclass(frozen=True)
class StepRow:
    """One step, measured.

    Attributes:
        shape: its name.
        model, frames, batch, context, dtype, remat: what it trains: preset, frames of a clip, clips, tokens of a text,
            compute dtype, remat policy.
        reason: why there is no time; empty where there is one.
        parameters: how many.
        backends: kinds of attention in the step, and the backend of each.
        features, gradient: differences from the f32 reference, see `stvl.plan.agreement.Agreement`; None if not asked.
        checked: the backends of that comparison, which has fewer clips.
        compile_seconds: tracing and compiling.
        seconds, fastest, spread, measurements, in_flight: see `stvl.ops.bench.timing.Timing`.
        clips_per_second: batch over seconds.
        model_flops: of a step by `stvl.models.flops.train_flops`: what remat repeats is not counted.
        peak, peak_source: FLOP/s that the device can reach at most, bf16, and where the number comes from.
        mfu: model_flops / seconds / peak.
        matmul: FLOP/s of a large matrix product in the compute dtype, measured in the same process.
        share: model_flops / seconds / matmul.
        predicted: bytes of the step by the compiler.
        measured: bytes of the first two steps, by the allocator (accelerators) or the growth of the process (CPU).
        ratio: predicted / measured.
        loss: of the last step that was timed.
        environment: versions and device.
    """

    shape: str
    model: str
    frames: int
    batch: int
    context: int = 0
    dtype: str = ""
    remat: str = "none"
    reason: str = ""
    parameters: int = 0
    backends: tuple[str, ...] = ()
    features: float | None = None
    gradient: float | None = None
    checked: tuple[str, ...] = ()
    compile_seconds: float | None = None
    seconds: float | None = None
    fastest: float | None = None
    spread: float | None = None
    measurements: int | None = None
    in_flight: int | None = None
    clips_per_second: float | None = None
    model_flops: int | None = None
    peak: float | None = None
    peak_source: str = ""
    mfu: float | None = None
    matmul: float | None = None
    share: float | None = None
    predicted: int | None = None
    measured: int | None = None
    ratio: float | None = None
    loss: float | None = None
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class StepReport:
    """All steps of a run.

    Attributes:
        command: what was called.
        plan: what was asked for.
        rows: the steps.
    """

    command: str
    plan: StepPlan
    rows: tuple[StepRow, ...]

    def to_json(self, path: str | Path) -> None:
        """Write the report."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")


def read_step_report(path: str | Path) -> StepReport:
    """Read what `StepReport.to_json` wrote.

    Raises:
        DataError: the file does not read as such a report.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = tuple(_row_of(row) for row in data["rows"])
        return StepReport(data["command"], _plan_of(data["plan"]), rows)
    except (OSError, ValueError, TypeError, KeyError) as problem:
        raise DataError(f"{path} is no report of `stvl bench step`: {problem}") from problem


def bench_step(plan: StepPlan, progress: Callable[[StepRow], None] = lambda row: None) -> tuple[StepRow, ...]:
    """Measure every step of a plan, one process after another; `progress` is told each row as it is ready.

    This process starts no device: the others need the accelerator for themselves.
    """
    rows = []
    for name in plan.shapes or default_shapes(_platform(plan.limit)):
        rows.append(_in_a_process(name, plan))
        progress(rows[-1])
    return tuple(rows)


def _in_a_process(name: str, plan: StepPlan) -> StepRow:
    size = plan.size(name)
    blank = StepRow(name, size.model, size.frames, size.batch, remat=plan.remat)
    try:
        done = _python(["-m", "stvl.plan.measure", name], plan.limit, json.dumps(dataclasses.asdict(plan)))
    except subprocess.TimeoutExpired:
        return dataclasses.replace(blank, reason=f"fails: no result after {plan.limit:g} s")
    if done.returncode:
        return dataclasses.replace(blank, reason=f"fails: {_last_words(done)}")
    return _row_of(json.loads(done.stdout.splitlines()[-1]))


def _platform(limit: float) -> str:
    done = _python(["-c", "import jax; print(jax.default_backend())"], limit)
    if done.returncode:
        raise ConfigError(f"jax starts no device: {_last_words(done)} (JAX_PLATFORMS=cpu uses the CPU)")
    return done.stdout.split()[-1]


def _python(words: Sequence[str], limit: float, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run this Python with this stvl in a process of its own."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, *words],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=limit,
        env=FRACTION | os.environ | {"PYTHONPATH": path},
    )


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    said = done.stderr.strip().splitlines() or ["nothing on stderr"]
    return f"exit code {done.returncode}: {said[-1][:300]}"


def measured_step(name: str, plan: StepPlan) -> StepRow:
    """Measure one step in this process, on its first device; see the module for the order of things.

    Memory comes first, while the device holds nothing else, then correctness, then time.
    """
    size, device = plan.size(name), jax.local_devices()[0]
    row = StepRow(name, size.model, size.frames, size.batch, remat=plan.remat, environment=environment())
    try:
        step = compile_step(step_experiment(name, plan), [device])
        row = _described(row, step)
        taken, _ = taken_by(step)
        row = dataclasses.replace(
            row, measured=taken or None, ratio=step.predicted / taken if taken else None
        )
        state = step.starter.start()
        if plan.check:
            found = agreement(step, state.params)
            row = dataclasses.replace(
                row,
                features=found.features,
                gradient=found.gradient,
                checked=found.backends,
                reason=found.reason,
            )
        return row if row.reason else _timed(row, step, state, plan)
    except jax.errors.JaxRuntimeError as problem:
        return dataclasses.replace(row, reason=f"fails: {str(problem).strip().splitlines()[0][:300]}")


def _described(row: StepRow, step: CompiledStep) -> StepRow:
    """The row with what is known before anything has run."""
    experiment = step.starter.experiment
    context = experiment.tokenizer.context_length
    return dataclasses.replace(
        row,
        context=context,
        dtype=str(experiment.compute_dtype),
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(step.starter.abstract.params)),
        backends=backends(step.cases),
        compile_seconds=step.seconds,
        model_flops=train_flops(experiment.model, row.frames, context, row.batch),
        predicted=step.predicted,
    )


def _timed(row: StepRow, step: CompiledStep, state: Any, plan: StepPlan) -> StepRow:
    """The row with its times, shares of the ceilings, and the last loss."""
    sets = [(random_batch(step, seed),) for seed in (2, 3)]
    held = [state]

    def once(batch: dict[str, jax.Array]) -> Any:
        # The step takes its state's memory back, so each call goes on from the state of the call before.
        held[0], metrics = step.program(held[0], batch)
        return metrics

    timing = measure(once, sets, plan.budget)
    loss = float(once(*sets[0])["loss"])
    if not math.isfinite(loss):
        return dataclasses.replace(
            row, loss=loss, reason=f"wrong: the loss is {loss:g} after the timed steps"
        )
    held.clear()
    device = step.starter.mesh.devices.flat[0]
    peak, source = peak_flops(device)
    matmul = matmul_ceiling(step.starter.experiment.compute_dtype)
    rate = (row.model_flops or 0) / timing.seconds
    return dataclasses.replace(
        row,
        **timing._asdict(),
        clips_per_second=row.batch / timing.seconds,
        peak=peak,
        peak_source=source,
        mfu=rate / peak,
        matmul=matmul,
        share=rate / matmul,
        loss=loss,
    )


def _row_of(data: dict[str, Any]) -> StepRow:
    return StepRow(**{**data, "backends": tuple(data["backends"]), "checked": tuple(data["checked"])})


def _plan_of(data: dict[str, Any]) -> StepPlan:
    return StepPlan(**{**data, "shapes": tuple(data["shapes"])})


def main(argv: Sequence[str]) -> int:
    """Measure the step that `argv` names by the plan on stdin, and print its row as JSON."""
    if len(argv) != 1:
        raise ConfigError(f"python -m stvl.plan.measure takes the name of one step, found {list(argv)}")
    print(json.dumps(dataclasses.asdict(measured_step(argv[0], _plan_of(json.load(sys.stdin))))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
