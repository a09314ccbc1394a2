"""What the TPU compiler planned for each kernel: executed bundles, slots filled, spills, VMEM.

The compiler is told to write its schedule with ``LIBTPU_INIT_ARGS="--xla_jf_dump_to=DIR --xla_jf_dump_llo_text=true"``
(`stvl.ops.bench.ahead` does it). Each bundle of a kernel is counted as often as it runs (`stvl.ops.bench.walk`), so a
prologue that runs once a head weighs less than an inner loop.

A bundle takes one cycle unless the core waits. `KernelSchedule.bundles` counts the final bundles; `waits` adds the
waits for results that the compiler planned and then folded into the bundles. Waits for memory are in neither.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from stvl.core.errors import DataError
from stvl.ops.bench.bundles import DELAY, Branch, parse
from stvl.ops.bench.walk import Loop, Walk, walk

_UTILIZATION = "final_hlo-static-per-bundle-utilization"
_CUSTOM = re.compile(r"exit bundle: %\S+ = \(?.*?custom-call\(")
_WHOLE = ("TLP", "<")
_VMEM = re.compile(r"#allocation\d+(_spill)? \[shape = .*?space=vmem, size = 0x([0-9a-f]+)")


@dataclasses.dataclass(frozen=True)
class Block:
    """Bundles in a row that run equally often.

    Attributes:
        first: the first bundle.
        bundles: their number.
        runs: how often each runs.
        matmul: share of the MATMUL slots that they fill.
    """

    first: int
    bundles: int
    runs: int
    matmul: float


@dataclasses.dataclass(frozen=True)
class KernelSchedule:
    """The schedule of one kernel on one core.

    Attributes:
        name: the kernel's name in the program.
        pallas: whether it is a Pallas kernel; else XLA made it.
        static: bundles in the text of the kernel.
        bundles: executed bundles.
        waits: executed bundles and the waits for results that the compiler planned; None where it was not dumped.
        slots: share of each kind of slot that is filled, over the executed bundles.
        capacity: slots of each kind in a bundle.
        spills: executed stores of registers to VMEM for lack of registers.
        fills: executed loads of what was spilt.
        vmem: bytes of VMEM, windows (twice, for the pipeline), scratch and spills.
        blocks: runs of bundles that are executed equally often.
        loops: the loops, in the order of the text, with all their trips.
        assumed: bundles executed in regions whose condition depends on memory and that were taken to run always.
        unknown: loops whose trips depend on memory and were not given; they count once.
    """

    name: str
    pallas: bool
    static: int
    bundles: int
    waits: int | None
    slots: dict[str, float]
    capacity: dict[str, int]
    spills: int
    fills: int
    vmem: int
    blocks: tuple[Block, ...]
    loops: tuple[Loop, ...]
    assumed: int
    unknown: int

    @property
    def matmul(self) -> float:
        """Share of the MATMUL slots that is filled."""
        return self.slots.get("MATMUL", 0.0)

    @property
    def main(self) -> Block:
        """The block in which most bundles are executed."""
        return max(self.blocks, key=lambda block: block.bundles * block.runs)


def schedule(
    dump_dir: str | Path, names: str = "", trips: Mapping[str, Sequence[int]] | None = None
) -> list[KernelSchedule]:
    """The schedules of all kernels whose final bundles lie in `dump_dir`, in the order in which they were compiled.

    Args:
        dump_dir: the folder given to the compiler.
        names: regular expression; only kernels whose name has a match. XLA's own fusions and copies are kernels too.
        trips: kernel name (without ``.1``) -> trips of the loops whose end depends on memory, in the order of the text.

    Raises:
        DataError: no folder or no schedule in it, or a file that does not read as one.
    """
    folder = Path(dump_dir)
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: the compiler wrote no schedule")
    found = []
    for path in sorted(folder.glob(f"*{_UTILIZATION}.txt"), key=lambda item: item.stat().st_mtime_ns):
        match = re.match(r"(\d+-(.+?))-\d+-final_hlo", path.name)
        # TLP is the program that calls the others; names in angle brackets are the compiler's own start and end.
        if match and re.search(names, match.group(2)) and not match.group(2).startswith(_WHOLE):
            prefix, name = match.groups()
            given = (trips or {}).get(re.sub(r"\.\d+$", "", name), ())
            if _one(folder, prefix, "final_bundles") is not None:
                found.append(_kernel(folder, prefix, name, given))
    if not found:
        raise DataError(f"{folder} holds no final bundles of a kernel{f' named {names!r}' if names else ''}")
    return found


def _one(folder: Path, prefix: str, kind: str) -> Path | None:
    files = [
        path for path in folder.iterdir() if re.fullmatch(rf"{re.escape(prefix)}-\d+-{kind}\.txt", path.name)
    ]
    return max(files, default=None, key=lambda path: int(path.name[len(prefix) + 1 :].split("-")[0]))


def _kernel(folder: Path, prefix: str, name: str, trips: Sequence[int]) -> KernelSchedule:
    final, used = _one(folder, prefix, "final_bundles"), _one(folder, prefix, _UTILIZATION)
    assert final is not None and used is not None
    text = final.read_text(encoding="utf-8")
    program = parse(text)
    done = walk(program, trips)
    capacity, rows = utilization(used.read_text(encoding="utf-8"))
    if len(rows) != len(done.counts):
        raise DataError(f"{used.name} has {len(rows)} bundles, {final.name} has {len(done.counts)}")
    early = _one(folder, prefix, "packed-bundles-post-ra")
    waits = None if early is None else int(walk(parse(early.read_text(encoding="utf-8")), trips).counts.sum())
    total = int(done.counts.sum())
    filled = {kind: int((rows[:, i] * done.counts).sum()) for i, kind in enumerate(capacity)}
    return KernelSchedule(
        name=name,
        pallas=bool(_CUSTOM.search(text)),
        static=len(rows),
        bundles=total,
        waits=waits,
        slots={kind: filled[kind] / (capacity[kind] * total) for kind in capacity},
        capacity=capacity,
        spills=filled.get("VSTORE:SPILL", 0),
        fills=filled.get("VLOAD:FILL", 0),
        vmem=_vmem(folder, prefix),
        blocks=_blocks(done, rows, capacity),
        loops=done.loops,
        assumed=_assumed(done, program.branches),
        unknown=len(done.unknown),
    )


def utilization(text: str) -> tuple[dict[str, int], Int[np.ndarray, "bundles kinds"]]:
    """Slots of each kind in a bundle, and the number of them that each bundle fills.

    Raises:
        DataError: the text has not the columns that are expected.
    """
    lines = text.splitlines()
    if len(lines) < 4 or "CAP" not in lines[0] or "UTILIZATION" not in lines[3]:
        raise DataError(f"no table of slots: expected capacity, kinds and utilization, found {lines[:1]}")
    kinds = [name.strip() for name in lines[1].split(",")]
    capacity = dict(zip(kinds, (int(word) for word in lines[2].split()), strict=True))
    rows = np.array([[int(word) for word in line.split()] for line in lines[4:] if line.strip()], np.int64)
    return capacity, rows.reshape(-1, len(kinds))


def _vmem(folder: Path, prefix: str) -> int:
    """Bytes of the allocations in VMEM; spills are known from the late texts only."""
    for kind in ("post-delay-converter", "original"):
        path = _one(folder, prefix, kind)
        if path is not None:
            found = _VMEM.findall(path.read_text(encoding="utf-8"))
            return sum(int(size, 16) for _, size in found)
    return 0


def _blocks(
    done: Walk, rows: Int[np.ndarray, "bundles kinds"], capacity: dict[str, int]
) -> tuple[Block, ...]:
    blocks, first = [], 0
    column = list(capacity).index("MATMUL") if "MATMUL" in capacity else None
    for runs, group in itertools.groupby(done.counts.tolist()):
        size = len(list(group))
        part = rows[first : first + size]
        matmul = 0.0 if column is None else float(part[:, column].sum()) / (capacity["MATMUL"] * size)
        blocks.append(Block(first, size, int(runs), matmul))
        first += size
    return tuple(blocks)


def _assumed(done: Walk, branches: Mapping[int, Branch]) -> int:
    """Executed bundles between the branches that could not be decided and their targets."""
    inside = np.zeros(len(done.counts), bool)
    for at in done.assumed:
        inside[at + 1 + DELAY : branches[at].to] = True
    return int(done.counts[inside].sum())
