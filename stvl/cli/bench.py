"""``stvl bench OP`` and ``stvl bench step``."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from stvl.cli.main import console, parse_args
from stvl.core.errors import ConfigError

if TYPE_CHECKING:
    from stvl.ops.bench.adapter import Adapter
    from stvl.ops.bench.ahead import Compiled
    from stvl.ops.bench.run import Plan, Report, Row


@dataclasses.dataclass
class Args:
    """Measure an op: each backend is checked against the f32 reference first, then timed on the devices at hand.

    With --aot it is compiled for a TPU that need not be there, and the compiler's schedule is printed instead.
    `step` measures the whole train step of named sizes: time, MFU, and the memory foretold and taken.
    """

    op: Positional[Literal["attention", "rotary", "pairwise", "step"]]
    """The op, or the whole train step."""
    shapes: str = ""
    """Names of shapes, apart by commas; `stvl bench OP --list` prints them. Default: a small set."""
    impls: str = ""
    """Names of backends, apart by commas; the first is what the others are compared with. Default: those of the rules.
    A step takes those of the rules."""
    dtype: Literal["auto", "f32", "bf16"] = "auto"
    """Of the inputs; auto is f32 on a CPU and bf16 elsewhere."""
    direction: Literal["forward", "both"] = "forward"
    """both: also forward and gradients in one program."""
    batch: int | None = None
    """Samples instead of the shapes' own."""
    blocks: str = ""
    """Tile sizes QUERIESxSOURCES[:BACKWARD], apart by commas; each is tried. Default: the backend's own."""
    aot: Literal["v5e", "v5p", "v6e"] | None = None
    """Compile for this chip and read the schedule; needs the `tpu` extra, no TPU."""
    remat: str = "none"
    """Of a step: what the backward pass of both towers computes again: none, full, attention, dots."""
    check: bool = True
    """Of a step: compare it with the f32 reference first."""
    json: Path | None = None
    """File for the results with command, versions and device."""
    list: bool = False
    """Print the names of shapes and backends, and stop."""


def run(argv: list[str]) -> int:
    """Run the command."""
    args = parse_args(Args, argv, "bench")
    if args.op == "step":
        from stvl.cli.bench_step import run_steps

        return run_steps(args)
    _refuse_of_step(args)
    from stvl.ops.bench.adapter import adapter, read_blocks
    from stvl.ops.bench.run import Plan

    op = adapter(args.op)
    if args.list:
        console().print(_names(op))
        return 0
    plan = Plan(
        shapes=split(args.shapes),
        impls=split(args.impls),
        dtype=_dtype(args),
        direction=args.direction,
        batch=args.batch,
        blocks=tuple(read_blocks(text) for text in split(args.blocks)),
    )
    _ahead(op, plan, args) if args.aot else _here(op, plan, args)
    if args.json is not None:
        print(f"written: {args.json}")
    return 0


def _refuse_of_step(args: Args) -> None:
    if args.remat != "none" or not args.check:
        raise ConfigError(f"--remat and --no-check belong to `stvl bench step`, not to {args.op}")


def split(text: str) -> tuple[str, ...]:
    """The words of a list with commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _words(*words: str) -> str:
    return " ".join(word for word in words if word)


def _dtype(args: Args) -> str:
    if args.dtype != "auto":
        return args.dtype
    import jax

    return "bf16" if args.aot or jax.default_backend() != "cpu" else "f32"


def _here(op: Adapter, plan: Plan, args: Args) -> None:
    from stvl.ops.bench.run import bench

    def told(row: Row) -> None:
        done = "no time" if row.seconds is None else f"{1e3 * row.seconds:.2f} ms"
        print(_words(row.shape, row.impl, row.blocks, row.direction, done), flush=True)

    report = bench(op, plan, told)
    if args.json is not None:
        report.to_json(args.json)
    console().print(_table(report))
    for row in report.rows:
        if row.reason:
            print(f"{_words(row.shape, row.impl, row.blocks, row.direction)}: {row.reason}")
    facts = report.environment
    named = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    print(f"device: {facts['devices']} x {facts['device']} ({facts['platform']}); host: {facts['processor']}")
    print(
        f"matmul {report.matmul / 1e12:.3g} TFLOP/s, elementwise {report.copy / 1e9:.3g} GB/s in {report.dtype}"
    )
    print(f"versions: {named}")


def _table(report: Report) -> Any:
    from rich.table import Table

    table = Table(title=f"{report.op}, {report.dtype}", title_justify="left")
    for name in ("shape", "batch", "backend", "direction"):
        table.add_column(name)
    for name in ("error", "ms", "x first", "ceiling", "peak MiB"):
        table.add_column(name, justify="right")
    for row in report.rows:
        name = f"{row.impl} {row.blocks}".strip()
        cells = [row.shape, "" if row.batch is None else str(row.batch), name, row.direction]
        error = "" if row.error is None else f"{row.error:.1e}"
        if row.seconds is None:
            table.add_row(*cells, error, "-")
            continue
        peak = "" if row.bytes is None else f"{row.bytes / 2**20:.1f}"
        table.add_row(
            *cells,
            error,
            f"{1e3 * row.seconds:.2f}",
            f"{row.ratio:.2f}",
            f"{100 * (row.share or 0):.0f} %",
            peak,
        )
    return table


def _ahead(op: Adapter, plan: Plan, args: Args) -> None:
    import json

    from stvl.ops.bench.ahead import bench_ahead, best, report

    def told(done: Compiled) -> None:
        said = "no schedule" if done.reason else f"{done.bundles / 1e6:.3f} M bundles"
        print(_words(done.shape, done.impl, done.blocks, said), flush=True)

    done = bench_ahead(op, plan, str(args.aot), told)
    if args.json is not None:
        args.json.write_text(json.dumps(report(done, op.name, plan.dtype), indent=1) + "\n", encoding="utf-8")
    console().print(_schedule_table(best(done), f"{op.name}, {plan.dtype}, {args.aot}, one core"))
    for one in done:
        if one.reason:
            print(f"{_words(one.shape, one.impl, one.blocks)}: {one.reason}")
    if any(kernel.assumed for one in done for kernel in one.kernels):
        print("* some regions depend on memory: they are counted as if they always ran")
    if any(kernel.unknown for one in done for kernel in one.kernels):
        print("! some loops depend on memory and no trips are declared: they are counted once")


def _schedule_table(done: list[Compiled], title: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("shape, backend, kernel", no_wrap=True)
    for name in ("M bundles", "+ waits", "MATMUL", "K spills", "VMEM MiB", "main x runs"):
        table.add_column(name, justify="right", no_wrap=True)
    first: dict[str, int] = {}
    for one in done:
        table.add_row(f"{one.shape} {one.impl} {one.blocks}".strip(), *[""] * 5, end_section=bool(one.reason))
        if one.reason:
            continue
        for kernel in one.kernels:
            mark = "*" * bool(kernel.assumed) + "!" * bool(kernel.unknown)
            waits = "" if kernel.waits is None else f"{kernel.waits / 1e6:.3f}"
            main = f"{kernel.main.bundles} x {kernel.main.runs}"
            numbers = [f"{kernel.bundles / 1e6:.3f}{mark}", waits, f"{100 * kernel.matmul:.0f} %"]
            numbers += [f"{kernel.spills / 1e3:.0f}", f"{kernel.vmem / 2**20:.1f}", main]
            table.add_row(f"  {_short(kernel.name)}", *numbers)
        ratio = one.bundles / first.setdefault(one.shape, one.bundles) if one.bundles else 0.0
        table.add_row(f"  kernels: {ratio:.2f} x the first backend", f"{one.bundles / 1e6:.3f}")
        table.add_row("  around them, by XLA", f"{one.others / 1e6:.3f}", end_section=True)
    return table


def _short(name: str) -> str:
    """A kernel's name without what the gradient's trace and the compiler put around it."""
    word, space, blocks = name.partition(" ")
    return re.sub(r"_*(\.\d+)?$", "", re.sub(r"^(transpose_|jvp_)+", "", word)) + space + blocks


def _names(op: Adapter) -> Any:
    from rich.table import Table

    table = Table(title=f"{op.name}: backends {', '.join(op.impls())}", title_justify="left")
    table.add_column("shape")
    table.add_column("sizes")
    for name, shape in op.shapes().items():
        fields = [(field.name, getattr(shape, field.name)) for field in dataclasses.fields(shape)]
        sizes = " ".join(f"{key}={value}" for key, value in fields if key != "source")
        table.add_row(name, f"{sizes}\n{getattr(shape, 'source', '')}")
    return table
