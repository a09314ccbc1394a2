"""A trace as text: which operations had the time, of what kind they are, and which part of the model they belong to."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping

from stvl.train.profile.times import Span, busy, pieces, shares
from stvl.train.profile.trace import STEP, Op, Trace

#: What a trace holds and what it does not, by platform.
HOLDS = {
    "cpu": "A CPU trace holds the operations of XLA's thread pool as wall-clock time: an operation that works on several "
    "threads counts once, from its start to its end. It holds neither hardware counters nor memory; cores that other "
    "programs share make operations look long.",
    "gpu": "A GPU trace holds the kernels and copies of every stream, as CUPTI timed them; kernels that run at once on "
    "several streams count each. It holds no hardware counters and no memory.",
    "tpu": "A TPU trace holds the operations of the cores, as the chips timed them; loops count without what they hold. "
    "Copies and exchanges in flight beside them are listed apart. It holds no memory.",
}

#: Kinds of operations by opcode and custom-call target, in the order in which they are asked; then by name.
_COLLECTIVE = re.compile(
    r"all-reduce|all-gather|reduce-scatter|all-to-all|collective|ragged-all|^send|^recv|nccl|rendezvous"
)
_KERNEL = re.compile(r"pallas|triton|mosaic|tpu_custom_call|fmha|flash|splash|cudnn")
_PRODUCT = re.compile(r"\bdot\b|convolution|gemm|matmul|cublas|cutlass|nvjet|xmma|_dot_|^dot|^conv")
_COPY = re.compile(r"copy|transpose|memcpy|memset|slice|concatenate|bitcast|pad|reshape|infeed|outfeed")
_CONTROL = frozenset({"while", "conditional", "call"})
_FILLERS = frozenset(
    {"", "fusion", "wrapped", "loop", "input", "dynamic", "update", "d", "h", "dtod", "dtoh", "htod"}
)

#: Segments of a source path that say nothing of the model.
_NOISE = re.compile(
    r"[(.]|^(closed_call|while|body|cond|checkpoint|rematted_computation|custom_vjp_call|shard_map)$"
)
#: Segments of a source path that name a part of the model.
_DEPTH = 4


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the loop knows of the profiled steps.

    Attributes:
        first, last: numbers of the steps.
        seconds: wall-clock time from the start of the first to the end of the last step's work on the device.
        process, processes: which process this is.
        ideal: seconds of a step at the peak rate of all devices; 0 where unknown.
        notes: what else should be said.
    """

    first: int
    last: int
    seconds: float
    process: int = 0
    processes: int = 1
    ideal: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """How many."""
        return self.last - self.first + 1


@dataclasses.dataclass(frozen=True)
class Row:
    """Time of one operation, kind or part, on one device: the mean of all devices of the process.

    Attributes:
        ms: milliseconds of all profiled steps.
        count: events of all devices.
    """

    name: str
    ms: float
    count: int
    kind: str = ""
    part: str = ""


@dataclasses.dataclass(frozen=True)
class Summary:
    """A trace in numbers.

    Attributes:
        facts: see Facts.
        platform: ``cpu``, ``gpu`` or ``tpu``.
        devices: of this process.
        busy: share of the wall-clock time in which a device runs any operation, mean of the devices.
        rows: operations, most time first.
        host: milliseconds of the thread that sends the steps, by event, without nested events.
        in_flight: milliseconds of what a TPU has in flight beside its operations, by name, mean of the devices.
        named: whether the trace carries the programs, so that kinds and parts are known.
    """

    facts: Facts
    platform: str
    devices: int
    busy: float
    rows: tuple[Row, ...]
    host: Mapping[str, float]
    in_flight: Mapping[str, float]
    named: bool

    def by(self, of: Callable[[Row], str]) -> list[Row]:
        """Rows of one kind or part together, most time first."""
        ms: dict[str, float] = defaultdict(float)
        count: Counter[str] = Counter()
        for row in self.rows:
            ms[of(row)] += row.ms
            count[of(row)] += row.count
        return [Row(name, time, count[name]) for name, time in sorted(ms.items(), key=lambda item: -item[1])]


def summarise(trace: Trace, facts: Facts) -> Summary:
    """Book the time of a trace."""
    times: dict[Op, float] = defaultdict(float)
    counts: Counter[Op] = Counter()
    working = 0.0
    for lanes in trace.lanes.values():
        found = [pieces(lane) for lane in lanes]
        working += busy(piece for each in found for piece in each)
        for each in found:
            for op, time in shares(each).items():
                assert isinstance(op, Op)
                times[op] += time
        for op in (span.key for lane in lanes for span in lane):
            assert isinstance(op, Op)
            counts[op] += 1
    devices = len(trace.lanes)
    rows = [
        Row(_title(op), time / devices / 1e6, counts[op], kind(op), part(op)) for op, time in times.items()
    ]
    return Summary(
        facts=facts,
        platform=trace.platform,
        devices=devices,
        busy=working / devices / 1e9 / facts.seconds,
        rows=tuple(sorted(rows, key=lambda row: -row.ms)),
        host=_host(trace.host),
        in_flight={name: time / devices / 1e6 for name, time in trace.in_flight.items()},
        named=any(op.info is not None for op in times),
    )


def kind(op: Op) -> str:
    """``matmul``, ``kernel``, ``collective``, ``copy``, ``loop`` or ``fusion`` (everything elementwise, and sums)."""
    opcode, target, source = (op.info.opcode, op.info.target, op.info.source) if op.info else ("", "", "")
    head = opcode or op.name
    if _COLLECTIVE.search(f"{head} {op.kernel}".lower()):
        return "collective"
    if op.info is not None and op.info.product:
        return "matmul"
    words = f"{target} {op.kernel} {op.name}".lower()
    if _PRODUCT.search(words):
        return "matmul"
    if opcode in ("", "custom-call") and _KERNEL.search(f"{words} {source}"):
        return "kernel"
    if head.split(".")[0] in _CONTROL:
        return "loop"
    return "copy" if _copies(op, opcode) else "fusion"


def _copies(op: Op, opcode: str) -> bool:
    """Whether an operation moves numbers and computes none; of a fusion its name tells, which lists what is in it."""
    if opcode not in ("", "fusion"):
        return bool(_COPY.search(opcode))
    words = [word for word in re.split(r"[^a-z]+", (op.kernel or op.name).lower()) if word not in _FILLERS]
    return bool(words) and all(_COPY.match(word) for word in words)


def part(op: Op) -> str:
    """``video/stack/layers/mlp, backward``: where in the model an operation was asked for; empty where unknown."""
    if op.info is None or not op.info.source:
        return ""
    segments = op.info.source.split("/")
    named = [one for one in segments[:-1] if not _NOISE.search(one)]
    way = "forward"
    if any("rematted_computation" in one for one in segments):
        way = "again"
    elif any(one.startswith("transpose(") for one in segments):
        way = "backward"
    elif not any(one.startswith("jvp(") for one in segments):
        return "/".join(named[:_DEPTH]) or "outside of the towers"
    return f"{'/'.join(named[:_DEPTH]) or 'loss'}, {way}"


def _title(op: Op) -> str:
    return f"{op.name}: {op.kernel}" if op.kernel else op.name


def _host(events: tuple[Span, ...]) -> dict[str, float]:
    found = shares(pieces(events))
    return {str(name): time / 1e6 for name, time in found.items() if name != STEP}


def as_text(found: Summary, top: int = 25) -> str:
    """The summary for people: wall-clock, kinds, the `top` operations, parts of the model, the host."""
    return "\n".join([*_head(found), *_kinds(found), *_operations(found, top), *_parts(found), *_rest(found)])


def _head(found: Summary) -> Iterator[str]:
    facts = found.facts
    steps = f"steps {facts.first} to {facts.last}" if facts.steps > 1 else f"step {facts.first}"
    yield (
        f"profile of {steps}, process {facts.process} of {facts.processes}: {found.devices} {found.platform} "
        f"{'devices' if found.devices > 1 else 'device'}"
    )
    each = facts.seconds / facts.steps
    mfu = f", MFU {facts.ideal / each:.1%}" if facts.ideal else ""
    yield f"wall-clock: {1e3 * facts.seconds:.1f} ms, {1e3 * each:.1f} ms a step{mfu}"
    yield (
        f"busy: {found.busy:.1%} of it with operations on the device; idle: {max(1 - found.busy, 0.0):.1%} "
        "(waiting for data or for the host to send a step)"
    )
    yield from facts.notes
    if found.devices > 1:
        yield f"times below are of one device, the mean of {found.devices}; counts are of all"


def _kinds(found: Summary) -> Iterator[str]:
    yield ""
    yield f"{'kind':<12} {'total ms':>10} {'share':>7} {'ms a step':>10} {'count':>8}"
    for row in found.by(lambda row: row.kind):
        yield f"{row.name:<12} {_numbers(found, row)}"
    idle = found.facts.seconds * 1e3 * max(1 - found.busy, 0.0)
    yield f"{'idle':<12} {_numbers(found, Row('idle', idle, 0))}"


def _operations(found: Summary, top: int) -> Iterator[str]:
    yield ""
    yield f"{'total ms':>10} {'share':>7} {'ms a step':>10} {'count':>8}  {'kind':<10} operation"
    for row in found.rows[:top]:
        where = f"  ({row.part})" if row.part else ""
        yield f"{_numbers(found, row)}  {row.kind:<10} {row.name[:80]}{where}"
    rest = found.rows[top:]
    if rest:
        ms = sum(row.ms for row in rest)
        other = Row("", ms, sum(row.count for row in rest))
        yield f"{_numbers(found, other)}  {'':<10} {len(rest)} more"


def _parts(found: Summary, most: int = 20) -> Iterator[str]:
    yield ""
    if not found.named:
        yield "the trace does not carry its programs: kinds are guessed from names, and parts of the model are unknown"
        return
    yield f"{'total ms':>10} {'share':>7} {'ms a step':>10} {'count':>8}  part of the model"
    rows = found.by(lambda row: row.part or "made by the compiler")
    for row in rows[:most]:
        yield f"{_numbers(found, row)}  {row.name}"
    if len(rows) > most:
        rest = Row("", sum(row.ms for row in rows[most:]), sum(row.count for row in rows[most:]))
        yield f"{_numbers(found, rest)}  {len(rows) - most} more"


def _rest(found: Summary) -> Iterator[str]:
    beside = sorted(found.in_flight.items(), key=lambda item: -item[1])[:8]
    if beside:
        yield ""
        yield "in flight beside the operations: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in beside)
    host = sorted(found.host.items(), key=lambda item: -item[1])[:6]
    if host:
        yield ""
        yield "host thread of the loop: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in host)
    yield ""
    yield HOLDS[found.platform]


def _numbers(found: Summary, row: Row) -> str:
    share = row.ms / 1e3 / found.facts.seconds
    return f"{row.ms:>10.2f} {share:>7.1%} {row.ms / found.facts.steps:>10.3f} {row.count or '':>8}"
