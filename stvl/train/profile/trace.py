"""Reads what jax's profiler wrote: which planes and lines of a trace hold operations, on CPUs, GPUs and TPUs.

All that depends on jax's version, or on how a platform lays its trace out, is in this file and in `programs`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from stvl.core.errors import TrainingError
from stvl.train.profile.programs import Operation, Programs, programs
from stvl.train.profile.times import Span

#: What the loop's annotation of a step is called in the trace.
STEP = "train"

#: Planes of devices: ``/device:TPU:0``. A CPU's operations lie among the events of the host's threads.
_DEVICE = re.compile(r"/device:(TPU|GPU):(\d+)")
_HOST = "/host:CPU"
#: Planes that hold no events, by their beginning.
_QUIET = ("/host:metadata", "Task Environment", "/host:python-tracer", "#", "/host:CUPTI")
#: The line of operations on a TPU's plane; those in flight beside them, as a DMA is, have one of their own.
_TPU_LINE, _TPU_ASYNC = "XLA Ops", "Async XLA Ops"
#: Lines of a GPU's plane.
_STREAM = re.compile(r"Stream #")
#: What the CPU's executor writes when an operation that it only started has ended: under the number of its start.
_END, _BEGAN, _ENDED = "end: ", "_p", "_c"
#: The name at the head of an instruction's text: ``%fusion.3 = bf16[8,128] fusion(...)``.
_INSTRUCTION = re.compile(r"%?([\w.\-]+) = ")
#: These last as long as what they call, on any thread.
_CALLERS = frozenset({"while", "conditional", "call"})


class UnknownTrace(TrainingError):
    """A trace whose layout this version of stvl does not know, or that holds no operation."""


@dataclasses.dataclass(frozen=True)
class Op:
    """What events are booked under.

    Attributes:
        name: of the instruction.
        program: in which it was compiled, ``jit_step``; empty where unknown.
        kernel: what ran for it, where that has a name of its own (GPUs).
        info: the instruction; None where the trace does not carry its program.
    """

    name: str
    program: str = ""
    kernel: str = ""
    info: Operation | None = None


@dataclasses.dataclass(frozen=True)
class Trace:
    """The events of a few steps in one process.

    Attributes:
        platform: ``cpu``, ``gpu`` or ``tpu``.
        lanes: events by device, each list of which shares the device's time: all threads of a CPU, one stream of a GPU.
        host: events of the thread that sends the steps.
        in_flight: nanoseconds of a TPU's operations that run beside the others, by name, of all devices.
    """

    platform: str
    lanes: Mapping[str, tuple[tuple[Span, ...], ...]]
    host: tuple[Span, ...]
    in_flight: Mapping[str, float]


def start(folder: Path) -> None:
    """Start a trace whose files go below `folder`."""
    options = jax.profiler.ProfileOptions()
    # Python's own calls would slow the steps down and fill the trace.
    options.python_tracer_level = 0
    jax.profiler.start_trace(str(folder), profiler_options=options)


def annotated(step: int) -> jax.profiler.StepTraceAnnotation:
    """A context that marks a step in the trace."""
    return jax.profiler.StepTraceAnnotation(STEP, step_num=step)


def stop() -> None:
    """End the trace and write it."""
    jax.profiler.stop_trace()


def unsafe() -> str:
    """Why jax's profiler would end this process instead of tracing it; empty where nothing is known against it.

    With libtpu installed and no TPU, jax still hands the trace to libtpu's own profiler; one of another version than jax
    was built with ends the process (seen with jax 0.10.2 and libtpu 0.0.52: a segmentation fault).
    """
    platforms = getattr(jax.config, "jax_platforms", None)
    if jax.default_backend() == "tpu" or (platforms and "tpu" not in platforms):
        return ""
    try:
        found = importlib.metadata.version("libtpu")
        needs = importlib.metadata.requires("jax") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    wanted = next((each.group(1) for line in needs if (each := re.match(r"libtpu==([\d.]+)", line))), "")
    if not wanted or found.startswith(wanted):
        return ""
    return (
        f"libtpu {found} is installed, jax {jax.__version__} was built with {wanted}*, and its profiler would end this "
        f"process: set JAX_PLATFORMS={jax.default_backend().replace('gpu', 'cuda')}, or install that libtpu"
    )


def read(path: Path) -> Trace:
    """The events of a trace file (``*.xplane.pb``).

    Raises:
        UnknownTrace: no operations in it, with the planes and lines that there are.
        ValueError: a file that is no trace.
    """
    return of_data(jax.profiler.ProfileData.from_file(str(path)), programs(path))


def of_data(data: Any, known: Programs) -> Trace:
    """The same of a `jax.profiler.ProfileData` that is read already."""
    look = _Names(known)
    planes = {plane.name: list(plane.lines) for plane in data.planes}
    devices = {name: found for name in planes if (found := _DEVICE.fullmatch(name))}
    lanes: dict[str, tuple[tuple[Span, ...], ...]] = {}
    in_flight: dict[str, float] = defaultdict(float)
    for name, found in devices.items():
        for line in planes[name]:
            if found.group(1) == "TPU" and line.name == _TPU_ASYNC:
                for event in line.events:
                    in_flight[_head(event.name)] += event.duration_ns
        wanted = _TPU_LINE.__eq__ if found.group(1) == "TPU" else _STREAM.match
        chosen = [line for line in planes[name] if wanted(line.name)]
        spans = (tuple(_span(event, line.name, look) for event in line.events) for line in chosen)
        lanes[f"{found.group(1)} {found.group(2)}"] = tuple(each for each in spans if each)
    threads = planes.get(_HOST, [])
    platform = next((found.group(1).lower() for found in devices.values()), "cpu")
    if not devices:
        lanes = _cpu(threads, look)
    if not any(lanes.values()):
        raise UnknownTrace(f"the trace holds no operation of a device; there are: {_listed(planes)}")
    host = next((spans for line in threads if (spans := _loop(line))), ())
    return Trace(platform, lanes, host, dict(in_flight))


def _cpu(threads: Iterable[Any], look: _Names) -> dict[str, tuple[tuple[Span, ...], ...]]:
    """Operations by device. A thread that starts a large product goes on at once; the end is marked by another thread."""
    found: dict[str, list[tuple[Span, Any]]] = defaultdict(list)
    ends: dict[Any, float] = {}
    for line in threads:
        for event in line.events:
            if event.name.startswith(_END):
                ends[dict(event.stats).get(_ENDED)] = event.start_ns
            elif "::" not in event.name and "hlo_op" in (stats := dict(event.stats)):
                span = Span(look.op(event.name, stats), event.start_ns, event.end_ns, line.name)
                found[f"CPU {stats.get('device_ordinal', 0)}"].append((span, stats.get(_BEGAN)))
    lanes = {}
    for device, each in sorted(found.items()):
        spans = (
            span if _calls(span.key) else dataclasses.replace(span, done=ends.get(number, 0.0))
            for span, number in each
        )
        lanes[device] = (tuple(spans),)
    return lanes


def _calls(op: Any) -> bool:
    return (op.info.opcode if op.info else op.name.split(".")[0]) in _CALLERS


def _span(event: Any, line: str, look: _Names) -> Span:
    return Span(look.op(event.name, dict(event.stats)), event.start_ns, event.end_ns, line)


def _loop(line: Any) -> tuple[Span, ...]:
    """The events of a thread, if it is the one that the loop runs in."""
    events = list(line.events)
    if not any(event.name == STEP for event in events):
        return ()
    return tuple(Span(event.name, event.start_ns, event.end_ns, line.name) for event in events)


def _head(text: str) -> str:
    found = _INSTRUCTION.match(text)
    return found.group(1) if found else text


def _listed(planes: Mapping[str, list[Any]]) -> str:
    told = []
    for name, lines in planes.items():
        if not name.startswith(_QUIET):
            names = [line.name for line in lines]
            told.append(f"{name} ({', '.join(names[:6]) or 'no lines'}{', ...' if len(names) > 6 else ''})")
    return "; ".join(told) or "no planes"


class _Names:
    """Finds the instruction behind an event; each is made once."""

    def __init__(self, known: Programs) -> None:
        self._known, self._made = known, {}

    def op(self, event: str, stats: Mapping[str, Any]) -> Op:
        """The operation of an event with this name and these statistics."""
        name = str(stats.get("hlo_op") or _head(event))
        module, number = str(stats.get("hlo_module") or ""), stats.get("program_id")
        key = (event, name, module, number)
        if key not in self._made:
            program = self._program(name, module, number)
            info = self._known.get(program, {}).get(name)
            kernel = "" if event == name or _INSTRUCTION.match(event) else event
            self._made[key] = Op(name, program.partition("(")[0] or module, kernel, info)
        return self._made[key]

    def _program(self, name: str, module: str, number: Any) -> str:
        """The program that the event names, else the largest of those that hold the instruction."""
        exact = f"{module}({number})"
        if exact in self._known:
            return exact
        fitting = [
            program
            for program, held in self._known.items()
            if name in held and (not module or program.partition("(")[0] == module)
        ]
        return max(fitting, key=lambda program: len(self._known[program]), default="")
