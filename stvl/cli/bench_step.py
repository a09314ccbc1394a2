"""``stvl bench step``: what it prints."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from stvl.cli.bench import Args, split
from stvl.cli.main import console
from stvl.core.errors import ConfigError

if TYPE_CHECKING:
    from stvl.plan.measure import StepRow


def run_steps(args: Args) -> int:
    """Run the command."""
    given = {
        "--impls": args.impls,
        "--blocks": args.blocks,
        "--aot": args.aot,
        "--direction": args.direction != "forward",
    }
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise ConfigError(f"{wrong[0]} belongs to the ops, not to a step: leave it out")
    from stvl.plan.measure import StepReport, bench_step
    from stvl.plan.steps import STEPS, StepPlan

    if args.list:
        for name, size in STEPS.items():
            print(f"{name:<9} {size.model}, {size.frames} frames, batch {size.batch}")
        return 0
    plan = StepPlan(split(args.shapes), args.dtype, args.remat, args.batch, args.check)
    done: list[StepRow] = []

    def told(row: StepRow) -> None:
        done.append(row)
        time = row.reason or f"{1e3 * (row.seconds or 0):.2f} ms"
        print(f"{row.shape}: {time}", flush=True)
        # A later size may take longer than its caller waits.
        if args.json is not None:
            StepReport(" ".join(["stvl", *sys.argv[1:]]), plan, tuple(done)).to_json(args.json)

    rows = bench_step(plan, told)
    console().print(_table(rows))
    _say(rows)
    if args.json is not None:
        print(f"written: {args.json}")
    return 0


def _table(rows: tuple[StepRow, ...]) -> Any:
    from rich.table import Table

    table = Table(title="train step", title_justify="left")
    table.add_column("step", no_wrap=True)
    for name in (
        "batch",
        "dtype",
        "remat",
        "ms",
        "spread",
        "clips/s",
        "MFU",
        "ceiling",
        "GiB foretold",
        "taken",
        "ratio",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.shape,
            str(row.batch),
            row.dtype,
            row.remat,
            _told("{:.2f}", row.seconds and 1e3 * row.seconds),
            _told("{:.0%}", row.spread),
            _told("{:.1f}", row.clips_per_second),
            _told("{:.1%}", row.mfu),
            _told("{:.1%}", row.share),
            _told("{:.3f}", row.predicted and row.predicted / 2**30),
            _told("{:.3f}", row.measured and row.measured / 2**30),
            _told("{:.2f}", row.ratio),
        )
    return table


def _told(form: str, number: float | None) -> str:
    return "-" if number is None else form.format(number)


def _say(rows: tuple[StepRow, ...]) -> None:
    for row in rows:
        if row.model_flops is None:
            continue
        print(
            f"{row.shape}: {row.parameters:,} parameters, {row.model_flops:.4g} FLOPs a step by formula, ",
            end="",
        )
        print(f"compiled in {row.compile_seconds:.1f} s; attention: {'; '.join(row.backends)}")
        if row.features is not None:
            print(f"  from the f32 reference: features {row.features:.1e}, gradient {row.gradient:.1e}")
        if row.checked and set(row.checked) != set(row.backends):
            print(f"  the comparison took other backends than the step: {'; '.join(row.checked)}")
        if row.peak is not None:
            print(
                f"  MFU of {row.peak / 1e12:.4g} TFLOP/s ({row.peak_source}); ceiling: a matrix product in ",
                end="",
            )
            print(f"{row.dtype}, {(row.matmul or 0) / 1e12:.4g} TFLOP/s in this run")
    facts = next((row.environment for row in rows if row.environment), None)
    if facts is not None:
        named = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
        print(
            f"device: 1 of {facts['devices']} x {facts['device']} ({facts['platform']}); host: {facts['processor']}"
        )
        print(f"versions: {named}")
