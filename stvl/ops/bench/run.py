"""Runs a bench: every shape by every backend, each checked against the f32 reference before it is timed."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from stvl.core.errors import ConfigError, DataError, NotSupported
from stvl.ops.bench.adapter import Adapter, Blocks, chosen
from stvl.ops.bench.check import Subject, program
from stvl.ops.bench.machine import environment
from stvl.ops.bench.timing import copy_ceiling, matmul_ceiling, measure, peak_bytes

Direction = Literal["forward", "both"]

#: Largest error that is timed, relative to the largest value of the reference. What rounding leaves is a tenth of it;
#: a missing tile, scale or rotation leaves more.
TOLERANCE = {"float32": 2e-3, "bfloat16": 3e-2}

DTYPES = {"f32": "float32", "bf16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        shapes: names; empty for the op's own choice.
        impls: names; empty for those of the op's rules.
        dtype: of the inputs: ``f32`` or ``bf16``.
        direction: forward only, or forward and forward with gradients.
        batch: samples instead of the shapes' own.
        blocks: tile sizes to try with each backend; empty for those that the op tries with it.
        budget: seconds to spend on one time.
    """

    shapes: tuple[str, ...] = ()
    impls: tuple[str, ...] = ()
    dtype: str = "f32"
    direction: Direction = "forward"
    batch: int | None = None
    blocks: tuple[Blocks, ...] = ()
    budget: float = 2.0

    def cases(self, op: Adapter, platform: str) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
        """(name, shape, impls) of every shape that is asked for.

        Raises:
            ConfigError: an unknown name or dtype, with the nearest one.
        """
        chosen("dtype", (self.dtype,), DTYPES)
        impls = chosen(f"{op.name} backend", self.impls or op.default_impls(platform), op.impls())
        known = op.shapes()
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"a shape has at least one sample, found batch = {self.batch}")
        batch = self.batch if self.shapes or self.batch is not None else op.default_batch(platform)
        for name in chosen(f"{op.name} shape", self.shapes or op.default_shapes(platform), known):
            yield name, known[name] if batch is None else op.resized(known[name], batch), impls

    def rows(
        self, op: Adapter, name: str, shape: Any, impls: tuple[str, ...]
    ) -> Iterator[tuple[Row, Blocks]]:
        """The measurements of one shape, without results."""
        directions = ("forward", "both") if self.direction == "both" else ("forward",)
        batch = getattr(shape, "b", None)
        for impl in impls:
            for blocks, direction in itertools.product(self.blocks or op.tries(impl), directions):
                yield Row(name, impl, direction, batch=batch, blocks=str(blocks)), blocks


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        shape: name of the shape.
        batch: samples; None for a shape that has none.
        impl: name of the backend.
        blocks: tile sizes, empty for the backend's own.
        direction: ``forward``, or ``both`` for forward and gradients in one program; empty where neither is served.
        reason: why there is no time: the backend declines, or it is wrong; empty where there is one.
        error: largest error relative to the largest value of the reference, of output and gradients.
        rows: how many rows of the output were compared; None for all.
        seconds, fastest, spread, measurements, in_flight: see `stvl.ops.bench.timing.Timing`.
        ratio: seconds over those of the first backend that was timed on this shape and direction.
        share: operations a second (bytes a second for an op without products) over the measured ceiling.
        bytes: peak memory of the program, arguments included.
    """

    shape: str
    impl: str
    direction: str
    batch: int | None = None
    blocks: str = ""
    reason: str = ""
    error: float | None = None
    rows: int | None = None
    seconds: float | None = None
    fastest: float | None = None
    spread: float | None = None
    measurements: int | None = None
    in_flight: int | None = None
    ratio: float | None = None
    share: float | None = None
    bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """All measurements of a run.

    Attributes:
        op: name of the op.
        dtype: of the inputs.
        rows: the measurements.
        matmul: operations a second of a large matrix product, measured in this run.
        copy: bytes a second of an elementwise change, measured in this run.
        environment: command, versions, device.
    """

    op: str
    dtype: str
    rows: tuple[Row, ...]
    matmul: float
    copy: float
    environment: dict[str, Any]

    def to_json(self, path: str | Path) -> None:
        """Write the report."""
        text = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
        Path(path).write_text(text, encoding="utf-8")


def read_report(path: str | Path) -> Report:
    """Read what `Report.to_json` wrote.

    Raises:
        DataError: the file does not read as a report.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return Report(**{**data, "rows": tuple(Row(**row) for row in data["rows"])})
    except (OSError, ValueError, TypeError, KeyError) as problem:
        raise DataError(f"{path} is no report of a bench: {problem}") from problem


def bench(op: Adapter, plan: Plan, progress: Callable[[Row], None] = lambda row: None) -> Report:
    """Check and time every case of a plan; `progress` is told each row as it is ready.

    Raises:
        ConfigError: an unknown name, with the nearest one.
    """
    platform = jax.default_backend()
    cases = list(plan.cases(op, platform))
    dtype = jnp.dtype(DTYPES[plan.dtype])
    matmul, copy = matmul_ceiling(dtype), copy_ceiling()
    rows: list[Row] = []
    for name, shape, impls in cases:
        first: dict[str, float] = {}
        subjects: dict[str, Subject] = {}
        for start, blocks in plan.rows(op, name, shape, impls):
            reason = op.declines(shape, start.impl, dtype, blocks)
            if reason is not None:
                if start.direction == "both":
                    continue  # said for the forward pass already
                row = dataclasses.replace(start, direction="", reason=f"declines: {reason}")
            else:
                if start.direction not in subjects:
                    subjects[start.direction] = Subject(op, shape, dtype, start.direction == "both")
                row = _row(start, op, shape, blocks, subjects[start.direction], plan)
            if row.seconds is not None:
                work = op.work(shape, dtype, row.direction == "both")
                share = work.flops / matmul if work.flops else work.bytes / copy
                ratio = row.seconds / first.setdefault(row.direction, row.seconds)
                row = dataclasses.replace(row, ratio=ratio, share=share / row.seconds)
            rows.append(row)
            progress(row)
    return Report(op.name, str(dtype), tuple(rows), matmul, copy, environment())


def _row(row: Row, op: Adapter, shape: Any, blocks: Blocks, subject: Subject, plan: Plan) -> Row:
    call = program(op.call(shape, row.impl, blocks), op, row.direction == "both")
    try:
        compiled = jax.jit(call).lower(*subject.sets[0]).compile()
        error = subject.error(compiled)
    except NotSupported as problem:
        return dataclasses.replace(row, reason=f"declines: {problem}")
    except jax.errors.JaxRuntimeError as problem:
        return dataclasses.replace(row, reason=f"fails: {str(problem).strip().splitlines()[0][:200]}")
    row = dataclasses.replace(row, error=error, rows=subject.rows)
    limit = TOLERANCE[DTYPES[plan.dtype]]
    if not error <= limit:
        return dataclasses.replace(row, reason=f"wrong: error {error:.2g}, at most {limit:.2g} is timed")
    timing = measure(compiled, subject.sets, plan.budget)
    return dataclasses.replace(row, **timing._asdict(), bytes=peak_bytes(compiled))
