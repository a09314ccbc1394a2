"""stvl's train step beside PyTorch's step of the same model, on one device, in turns: the table of ratios.

    python -m tests.parity.bench_step --sizes b16-4f,l14-4f,b16-16f,l14-16f --json ratios.json

Every turn is a process of its own, so that neither framework's memory is in the other's way; ``--order jax,torch,jax``
says whose turn it is. The JSON is written after every turn. Both steps must have as many parameters and count the same
FLOPs, else there is no ratio; that they are the same model is what `test_torch_step` holds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stvl.core.errors import ConfigError
from stvl.plan.measure import bench_step
from stvl.plan.steps import STEPS, StepPlan

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("jax", "torch")

#: Fields in which both rows of a size must be equal.
SAME = ("frames", "batch", "dtype", "parameters", "model_flops")


@dataclasses.dataclass(frozen=True)
class Asked:
    """The words of the command line.

    Attributes:
        sizes: names of steps.
        order: whose turns, one after the other.
        dtype, batch, budget: of both sides.
        check: compare stvl's step with its f32 reference in its first turn.
        limit: seconds after which a turn is given up.
        total: seconds after which no turn is begun and the last one is given up.
        torch: further words for `bench_torch`.
    """

    sizes: tuple[str, ...]
    order: tuple[str, ...] = ("jax", "torch", "jax")
    dtype: str = "auto"
    batch: int | None = None
    budget: float = 5.0
    check: bool = True
    limit: float = 300.0
    total: float = 3600.0
    torch: tuple[str, ...] = ()


Turn = dict[str, Any]


def torch_words(size: str, asked: Asked) -> list[str]:
    """The command of torch's turn."""
    words = [sys.executable, "-m", "tests.parity.bench_torch", size, "--dtype", asked.dtype]
    words += ["--budget", str(asked.budget)]
    return [*words, *(["--batch", str(asked.batch)] if asked.batch else []), *asked.torch]


def torch_turn(size: str, asked: Asked) -> Turn:
    """One turn of torch."""
    words = torch_words(size, asked)
    print("$", shlex.join(words), flush=True)
    # torch's process imports stvl's sizes, and with them jax, which must leave the GPU alone.
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(
            words, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=asked.limit
        )
    except subprocess.TimeoutExpired:
        return {"reason": f"fails: no result after {asked.limit:g} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing on stderr"]
        return {"reason": f"fails: exit code {done.returncode}: {said[-1][:300]}"}
    return json.loads(done.stdout.splitlines()[-1])


def jax_turn(size: str, asked: Asked, first: bool) -> Turn:
    """One turn of stvl."""
    check = asked.check and first
    plan = StepPlan((size,), asked.dtype, "none", asked.batch, check, asked.budget, asked.limit)
    words = ["stvl", "bench", "step", "--shapes", size, "--dtype", asked.dtype]
    words += ["--batch", str(asked.batch)] if asked.batch else []
    print("$", shlex.join([*words, *([] if check else ["--no-check"])]), flush=True)
    (row,) = bench_step(plan)
    return dataclasses.asdict(row)


def turns(asked: Asked, told: Callable[[list[Turn]], None]) -> list[Turn]:
    """All turns in their order, size after size; `told` gets what there is after each one."""
    done: list[Turn] = []
    begin = time.monotonic()
    for size in asked.sizes:
        for number, side in enumerate(asked.order):
            left = asked.total - (time.monotonic() - begin)
            now = dataclasses.replace(asked, limit=min(asked.limit, left))
            if left <= 0:
                row: Turn = {"reason": f"not begun: {asked.total:g} s were over"}
            else:
                row = torch_turn(size, now) if side == "torch" else jax_turn(size, now, number == 0)
            done.append({"side": side, **row, "shape": size})
            seconds = row.get("seconds")
            print(f"{size} {side}: {row.get('reason') or f'{1e3 * seconds:.2f} ms'}", flush=True)
            told(done)
    return done


def summary(size: str, done: Sequence[Turn]) -> Turn:
    """The ratio of one size from the medians of its turns, or the reason why there is none.

    ``ratio`` is torch's seconds over stvl's: above 1 stvl is faster. ``low`` and ``high`` are that of the least favourable
    and of the most favourable pair of turns.
    """
    rows = {side: [row for row in done if row["shape"] == size and row["side"] == side] for side in SIDES}
    found = {side: [row for row in part if row.get("seconds")] for side, part in rows.items()}
    # A turn that is not checked must not cover for one that was found wrong.
    wrong = [row["reason"] for row in rows["jax"] if str(row.get("reason", "")).startswith("wrong")]
    if wrong:
        return {"shape": size, "reason": f"jax: {wrong[0]}"}
    for side in SIDES:
        if not found[side]:
            reasons = [row["reason"] for row in rows[side]] or ["it had no turn"]
            return {"shape": size, "reason": f"{side}: {reasons[0]}"}
    ours, theirs = found["jax"][0], found["torch"][0]
    for name in SAME:
        if ours[name] != theirs[name]:
            return {
                "shape": size,
                "reason": f"not the same step: {name} is {ours[name]} in stvl, {theirs[name]} in torch",
            }
    times = {side: [row["seconds"] for row in part] for side, part in found.items()}
    middle = {side: statistics.median(part) for side, part in times.items()}
    flops = ours["model_flops"]
    return {
        "shape": size,
        "reason": "",
        **{name: ours[name] for name in SAME},
        "jax_seconds": middle["jax"],
        "torch_seconds": middle["torch"],
        "ratio": middle["torch"] / middle["jax"],
        "low": min(times["torch"]) / max(times["jax"]),
        "high": max(times["torch"]) / min(times["jax"]),
        "jax_mfu": flops / middle["jax"] / ours["peak"],
        "torch_mfu": flops / middle["torch"] / ours["peak"],
        "jax_share": flops / middle["jax"] / ours["matmul"],
        "torch_share": flops / middle["torch"] / ours["matmul"],
        "jax_bytes": ours["measured"],
        "torch_bytes": theirs["allocated"],
        "predicted": ours["predicted"],
        "memory_ratio": ours["ratio"],
        "turns": {side: len(part) for side, part in times.items()},
    }


HEADS = ("step", "batch", "stvl ms", "torch ms", "torch / stvl", "MFU", "MFU of torch", "of the product")
HEADS = (*HEADS, "of the product, torch", "GiB", "GiB of torch")


def table(rows: Sequence[Turn]) -> str:
    """The ratios as a Markdown table."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    for row in rows:
        if row["reason"]:
            lines.append("| " + " | ".join([row["shape"], row["reason"], *[""] * (len(HEADS) - 2)]) + " |")
            continue
        cells = [row["shape"], str(row["batch"])]
        cells += [f"{1e3 * row[f'{side}_seconds']:.1f}" for side in SIDES]
        cells += [f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"]
        cells += [f"{100 * row[f'{side}_{kind}']:.1f} %" for kind in ("mfu", "share") for side in SIDES]
        sizes = (row["jax_bytes"], row["torch_bytes"])
        cells += ["" if size is None else f"{size / 2**30:.2f}" for size in sizes]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def asked_for(argv: Sequence[str]) -> tuple[Asked, Path | None]:
    """The words of the command line, and the file for the JSON."""
    words = argparse.ArgumentParser(prog="python -m tests.parity.bench_step", description=__doc__)
    words.add_argument("--sizes", default="tiny-2f", help=", ".join(STEPS))
    words.add_argument("--order", default="jax,torch,jax", help="whose turns, apart by commas")
    words.add_argument("--dtype", choices=("auto", "f32", "bf16"), default="auto")
    words.add_argument("--batch", type=int)
    words.add_argument("--budget", type=float, default=5.0, help="seconds for one time")
    words.add_argument("--no-check", dest="check", action="store_false")
    words.add_argument("--limit", type=float, default=300.0, help="seconds after which a turn is given up")
    words.add_argument("--total", type=float, default=3600.0, help="seconds for all turns")
    words.add_argument("--compile", choices=("model", "blocks", "off"), default="model")
    words.add_argument("--sdpa", default="best")
    words.add_argument("--blocks", choices=("auto", "timm", "own"), default="auto")
    words.add_argument("--json", type=Path)
    given = vars(words.parse_args(argv))
    torch = tuple(word for name in ("compile", "sdpa", "blocks") for word in (f"--{name}", given.pop(name)))
    lists = {name: tuple(filter(None, given.pop(name).split(","))) for name in ("sizes", "order")}
    path = given.pop("json")
    StepPlan(lists["sizes"])
    wrong = set(lists["order"]) - set(SIDES)
    if wrong:
        raise ConfigError(f"--order names {' and '.join(SIDES)}, found {sorted(wrong)[0]!r}")
    return Asked(**lists, **given, torch=torch), path


def main(argv: Sequence[str]) -> int:
    """Run the turns, print the table, and give 1 where a size has no ratio."""
    asked, path = asked_for(argv)

    def told(done: list[Turn]) -> None:
        if path is None:
            return
        rows = [summary(size, done) for size in asked.sizes if any(row["shape"] == size for row in done)]
        command = shlex.join(["python", "-m", "tests.parity.bench_step", *argv])
        found = {"command": command, "asked": dataclasses.asdict(asked), "turns": done, "sizes": rows}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    done = turns(asked, told)
    rows = [summary(size, done) for size in asked.sizes]
    print(table(rows))
    return int(any(row["reason"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
