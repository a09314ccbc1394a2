"""A plan as JSON types with stable keys, and as text."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from stvl.plan.ahead import Memory
from stvl.plan.planner import VERSION, Largest, Plan
from stvl.plan.roofline import Moved
from stvl.plan.whatif import Row, faults_of, mesh_words, recommended, remedies

MIB, GIB = 2**20, 2**30


def as_json(plan: Plan, largest: Largest | None = None, rows: Sequence[Row] = ()) -> dict[str, Any]:
    """The plan with the keys that `docs/plan.md` lists; seconds, bytes and FLOPs, None where unknown."""
    experiment, chip = plan.experiment, plan.topology.chip
    found: dict[str, Any] = {
        "version": VERSION,
        "method": plan.method,
        "experiment": _experiment(plan),
        "topology": {
            "name": plan.topology.name,
            "chip": chip.name,
            "platform": chip.platform,
            "chips": plan.topology.chips,
            "devices": plan.topology.devices,
            "slices": plan.topology.slices,
            "memory_bytes": plan.topology.memory,
            "peak_flops": _number(chip.flops / chip.devices),
            "memory_bandwidth": _number(chip.bandwidth / chip.devices),
            "link_bandwidth": _number(chip.link),
            "network_bandwidth": _number(chip.network),
            "source": chip.source,
        },
        "fits": plan.fits,
        "refused": plan.refused,
        "memory": {f"{key}_bytes": value for key, value in dataclasses.asdict(plan.memory).items()},
        "flops": {**dataclasses.asdict(plan.flops), "ratio": plan.flops.ratio},
        "hbm_bytes": None if plan.roofline is None else plan.roofline.work.bytes,
        "collectives": collective_rows(plan.moved),
        "blocking_in_layers": collective_rows(plan.blocking),
        "roofline": _roofline(plan),
        "mfu": _number(plan.mfu),
        "attention": list(plan.attention),
        "shardings": [_placed(one) for one in plan.shardings],
        "replicated_big": [_placed(one) for one in plan.replicated],
        "faults": faults_of(plan),
        "remedies": remedies(plan),
        "run": {
            "steps": experiment.steps,
            "hours": _number(experiment.steps * plan.step / 3600),
            "chip_hours": _number(plan.chip_hours),
        },
        "compile_seconds": plan.compile_seconds,
        "largest_batch": None if largest is None else dataclasses.asdict(largest),
        "what_if": [_row(row) for row in rows],
        "recommendation": None,
    }
    if rows:
        best, why = recommended(list(rows))
        found["recommendation"] = {"changes": None if best is None else list(best.changes), "why": why}
    return found


def _experiment(plan: Plan) -> dict[str, Any]:
    experiment = plan.experiment
    remat = {name: getattr(experiment.model, name).remat for name in ("video", "text")}
    return {
        "name": experiment.name,
        "model": experiment.model.video.title,
        "batch": experiment.loader.batch,
        "rows_per_device": plan.rows,
        "frames": experiment.loader.frames,
        "dtype": experiment.dtype,
        "remat": remat,
        "grad_cache": experiment.grad_cache,
        "mesh": {**plan.sizes, "gather": experiment.mesh.gather},
    }


def _roofline(plan: Plan) -> dict[str, Any]:
    found = {
        "step_seconds": _number(plan.step),
        "network_seconds": _number(plan.network),
        "exposed_network_seconds": _number(plan.exposed),
    }
    if plan.roofline is not None:
        one = plan.roofline
        found |= {
            "compute_seconds": _number(one.compute),
            "memory_seconds": _number(one.memory),
            "device_seconds": _number(one.device),
            "bound": one.bound,
            "by_loop_seconds": {loop or "outside": _number(time) for loop, time in one.by_loop.items()},
        }
    return found


def collective_rows(moved: Sequence[Moved]) -> list[dict[str, Any]]:
    """Collectives of one kind, loop, group size and asynchrony together; most bytes first."""
    groups: dict[tuple[Any, ...], list[Moved]] = defaultdict(list)
    for one in moved:
        what = one.what
        groups[(what.kind, what.loop, len(what.group), what.asynchronous, what.far)].append(one)
    rows = []
    for (kind, loop, size, asynchronous, far), parts in groups.items():
        largest = max(parts, key=lambda one: one.what.bytes)
        rows.append(
            {
                "kind": kind,
                "loop": loop or "outside",
                "devices": size or None,
                "between_slices": far,
                "asynchronous": asynchronous,
                "count": sum(one.what.times for one in parts),
                "bytes": sum(one.what.times * one.what.bytes for one in parts),
                "largest_bytes": largest.what.bytes,
                "where": largest.what.where,
                "seconds": _number(math.fsum(one.what.times * one.seconds for one in parts)),
                "exposed_seconds": _number(math.fsum(one.exposed for one in parts)),
            }
        )
    return sorted(rows, key=lambda row: -row["bytes"])


def _placed(one: Any) -> dict[str, Any]:
    return {
        "path": one.path,
        "shape": list(one.shape),
        "dtype": one.dtype,
        "axes": list(one.axes),
        "spec": [list(axes) for axes in one.spec],
        "bytes": one.bytes,
        "whole_bytes": one.whole,
        "replicated": one.replicated,
        "reasons": list(one.reasons),
    }


def _row(row: Row) -> dict[str, Any]:
    plan = row.plan
    if plan is None:
        return {"changes": list(row.changes), "reason": row.reason}
    return {
        "changes": list(row.changes),
        "mesh": {**plan.sizes, "gather": plan.experiment.mesh.gather},
        "batch": plan.experiment.loader.batch,
        "fits": plan.fits,
        "total_bytes": plan.memory.total,
        "flops_ratio": plan.flops.ratio,
        "step_seconds": _number(plan.step),
        "exposed_network_seconds": _number(plan.exposed),
        "samples_per_second": row.rate,
        "mfu": _number(plan.mfu),
        "blocking_in_layers": len(plan.blocking),
        "replicated_big": len(plan.replicated),
        "chip_hours": _number(plan.chip_hours),
        "reason": plan.refused,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def as_text(plan: Plan, largest: Largest | None = None, rows: Sequence[Row] = ()) -> str:
    """The plan for people."""
    return "\n".join(
        [
            *_head(plan),
            *_memory(plan),
            *_work(plan),
            *_traffic(plan),
            *_whole(plan),
            *_end(plan, largest, rows),
        ]
    )


def size_text(count: int | float) -> str:
    """Bytes for people: ``1.50 GiB``."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (2**10, "KiB")):
        if count >= unit / 10:
            return f"{count / unit:.2f} {name}"
    return f"{count:.0f} B"


def _time(seconds: float) -> str:
    return (
        "unknown"
        if math.isnan(seconds)
        else f"{seconds:.3f} s"
        if seconds >= 0.1
        else f"{1e3 * seconds:.2f} ms"
    )


def _head(plan: Plan) -> Iterator[str]:
    experiment, topology = plan.experiment, plan.topology
    mesh = " x ".join(f"{name} {size}" for name, size in plan.sizes.items() if size > 1) or "one device"
    gather = ", parameters gathered once a step" if experiment.mesh.gather == "step" else ""
    slices = f" in {topology.slices} slices" if topology.slices > 1 else ""
    loader = experiment.loader
    yield f"{experiment.name}: {experiment.model.video.title}, {loader.frames} frames, batch {loader.batch}"
    yield f"on {topology.name}{slices}: {topology.chips} chips, mesh {mesh}{gather}, {experiment.dtype}"
    towers = ", ".join(f"{name} {getattr(experiment.model, name).remat}" for name in ("video", "text"))
    yield f"{plan.rows} samples a device, remat: {towers}, grad_cache {experiment.grad_cache}"
    how = "compiled ahead of time" if plan.method == "compiled" else "by analysis only, nothing was compiled"
    yield f"{how}{f', {plan.compile_seconds:.0f} s' if plan.compile_seconds else ''}; chip data: {topology.chip.source}"
    for one in plan.attention:
        yield f"attention {one['q']} x {one['k']}, {one['mask']}: {one['impl']}"


def state_text(memory: Memory) -> str:
    """``parameters 0.10 GiB, optimizer ...``: what lies on a device between steps, and the batch."""
    parts = {
        "parameters": memory.params,
        "optimizer": memory.optimizer,
        "average": memory.ema,
        "batch": memory.batch,
    }
    return ", ".join(f"{name} {size_text(count)}" for name, count in parts.items())


def _memory(plan: Plan) -> Iterator[str]:
    found = plan.memory
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    yield ""
    yield f"memory of a device: {size_text(found.total)} of {size_text(plan.topology.memory)}: {verdict}"
    yield f"  {state_text(found)}"
    if found.host:
        away = size_text(found.host)
        yield f"  in the host's memory: optimizer {away}; the way there and back is not in the step's time"
    if plan.refused:
        yield f"  the compiler refused the step: {plan.refused}"
    else:
        rest = (
            f", code {size_text(found.code)}, results {size_text(found.outputs)}"
            if plan.method == "compiled"
            else ""
        )
        temp = f"temporaries (activations, gradients) {size_text(found.temp)}"
        yield f"  all arguments {size_text(found.arguments)}, {temp}{rest}"


def _work(plan: Plan) -> Iterator[str]:
    flops = plan.flops
    yield ""
    yield f"FLOPs of a device: model {flops.model / 1e12:.2f} T"
    if flops.compiled is not None:
        words = "compiled" if plan.method == "compiled" else "with what is computed again"
        yield f"  {words} {flops.compiled / 1e12:.2f} T, {flops.ratio:.2f} times the model's"
    if flops.matrix is not None and flops.kernels is not None and flops.vector is not None:
        parts = f"products {flops.matrix / 1e12:.2f} T, Pallas kernels {flops.kernels / 1e12:.2f} T"
        yield f"  {parts} (their own estimate: XLA cannot see into them), elementwise {flops.vector / 1e12:.3f} T"
    found = plan.roofline
    yield (
        f"step: at least {_time(plan.step)}, MFU at most {100 * plan.mfu:.0f} %"
        if not math.isnan(plan.step)
        else "step: unknown"
    )
    if found is not None:
        yield (
            f"  compute {_time(found.compute)}, HBM {size_text(found.work.bytes)} in {_time(found.memory)}, instruction by "
            f"instruction {_time(found.device)}, network not hidden {_time(found.exposed)}; bound by {found.bound}"
        )
    if found is not None and not math.isnan(found.device):
        parts = sorted(found.by_loop.items(), key=lambda item: -item[1])[:6]
        yield "  of it: " + ", ".join(f"{loop or 'outside of loops'} {_time(time)}" for loop, time in parts)
    hours = plan.experiment.steps * plan.step / 3600
    if not math.isnan(hours):
        yield f"run: {plan.experiment.steps} steps, at least {hours:.1f} hours, {plan.chip_hours:.0f} chip-hours"


def _traffic(plan: Plan) -> Iterator[str]:
    rows = collective_rows(plan.moved)
    if not rows:
        return
    yield ""
    yield f"exchanges of a step: {_time(plan.network)}, of it not hidden {_time(plan.exposed)}"
    for row in rows[:14]:
        way = "asynchronous" if row["asynchronous"] else "synchronous"
        group = f"{row['devices']} devices" if row["devices"] else "neighbours"
        group = "between slices" if row["between_slices"] else group
        where = "outside of loops" if row["loop"] == "outside" else f"in {row['loop']}"
        yield (
            f"  {row['kind']:<18} {way:<12} {row['count']:>6} x, {size_text(row['bytes']):>11}, {group}, {where}, "
            f"{_time(row['seconds'] or 0.0)}"
        )
    if len(rows) > 14:
        yield f"  and {len(rows) - 14} smaller kinds"
    for one in plan.blocking[:8]:
        yield f"  waits in a layer: {one.what.kind} of {size_text(one.what.bytes)}, {one.what.where}"


def _whole(plan: Plan) -> Iterator[str]:
    if plan.replicated:
        yield ""
        yield "big tensors that every device holds whole:"
        for one in plan.replicated[:12]:
            yield f"  {one.path} {list(one.shape)} {size_text(one.whole)}: {'; '.join(one.reasons)}"


def shardings_text(plan: Plan) -> str:
    """A line for every parameter: its axes, what splits them, its bytes, and why an axis stays whole."""
    lines = ["parameters, largest part of a device first:"]
    for one in plan.shardings:
        axes = ", ".join(
            f"{name or '-'} {size}{'/' + 'x'.join(used) if used else ''}"
            for name, size, used in zip(one.axes or [None] * len(one.shape), one.shape, one.spec, strict=True)
        )
        reasons = f"  ({'; '.join(one.reasons)})" if one.reasons else ""
        lines.append(f"  {one.path}: [{axes}] {size_text(one.bytes)} of {size_text(one.whole)}{reasons}")
    return "\n".join(lines)


def _end(plan: Plan, largest: Largest | None, rows: Sequence[Row]) -> Iterator[str]:
    if largest is not None:
        yield ""
        yield f"largest batch that fits: {largest.batch} ({largest.method})"
    faults = faults_of(plan)
    if faults:
        yield ""
        yield "this configuration " + "; ".join(faults) + ". Remedies:"
        yield from (f"  {line}" for line in remedies(plan))
    if rows:
        yield ""
        yield from _table(rows)


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield f"{'what if':<64} {'memory':>10} {'step':>9} {'samples/s':>10} {'MFU':>5} {'ratio':>6}  faults"
    for row in rows:
        words = " ".join(row.changes) or "(as asked for)"
        if row.plan is None:
            yield f"{words:<64} {row.reason}"
            continue
        plan = row.plan
        ratio = "" if plan.flops.ratio is None else f"{plan.flops.ratio:.2f}"
        mfu = "" if math.isnan(plan.mfu) else f"{100 * plan.mfu:.0f} %"
        yield (
            f"{words:<64} {size_text(plan.memory.total):>10} {_time(plan.step):>9} {row.rate:>10.0f} {mfu:>5} {ratio:>6}  "
            f"{'; '.join(faults_of(plan)) or 'none'}"
        )
    best, why = recommended(list(rows))
    if best is None:
        yield f"recommended: nothing: {why}"
    else:
        words = " ".join(best.changes) or "the configuration as it is"
        yield f"recommended: {words}: {why}"


def setting_words(plan: Plan) -> str:
    """The overrides that give `stvl train` the plan's mesh."""
    return " ".join(mesh_words(plan.experiment))
