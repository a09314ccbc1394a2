"""What to say when a device has run out of memory: where the bytes are, and the cheapest ways out."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax

from stvl.core.errors import ConfigError, StvlError, TrainingError
from stvl.plan.ahead import Memory, measured_memory, refused_memory
from stvl.plan.need import Need, Room, need, room, topology_of
from stvl.plan.report import size_text, state_text
from stvl.plan.shrink import Case, Remedy, remedies
from stvl.train.experiment import Experiment
from stvl.train.step import Step

#: How XLA says that a device's memory is full.
_FULL = re.compile(r"RESOURCE_EXHAUSTED|out of memory", re.IGNORECASE)
#: What is said in the same words of something else: the small memories of a kernel, and messages between processes.
_OTHER = re.compile(
    r"memory space (vmem|smem|sflag|cmem)|scoped vmem|shared memory|message larger than", re.IGNORECASE
)
#: Characters of XLA's message that are shown.
_BRIEF = 400


class OutOfMemory(TrainingError):
    """A device's memory does not hold the training step; the message says where the bytes are and what would help."""


class Memories:
    """A context around a training run that turns an error of a full device into a report, and lets all others pass.

    Args:
        experiment: the run.
        devices: jax devices that it runs on; None for all.
    """

    def __init__(self, experiment: Experiment, devices: list[Any] | None = None) -> None:
        self.experiment, self._devices = experiment, devices
        self._step: Any = None
        self._given: Any = None
        self._calls = 0
        self._returned = False

    def watch(self, step: Step) -> Step:
        """`step`, whose shapes are noted when it is called first, so that jax can be asked for the compiled step again."""
        self._step = step

        def watched(state: Any, batch: Any) -> Any:
            if self._given is None:
                self._given = jax.tree.map(_shape, (state, batch))
            self._calls += 1
            self._returned = False
            out = step(state, batch)
            self._returned = True
            return out

        return watched

    def __enter__(self) -> Memories:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is not None and is_full(value):
            raise OutOfMemory(self.report(value)) from value

    def report(self, problem: BaseException) -> str:
        """The message. Where no report can be made, what jax said and why there is none."""
        head = f"out of memory {self._when(problem)}: {_brief(problem)}"
        try:
            case, found, source = self._case(problem)
            lines = [*_where(case, found, source), *_remedies(case, remedies(case))]
        except Exception as reason:
            # A second error must not hide the first; the report is help, not the message.
            return f"{head}\nno report on it could be made: {type(reason).__name__}: {_brief(reason)}"
        return "\n".join([head, *lines])

    def _when(self, problem: BaseException) -> str:
        frames = {frame.name for frame in traceback.extract_tb(problem.__traceback__)}
        if "evaluate" in frames:
            return "in an evaluation (`evals=()` trains without; the figures below are of the training step)"
        if self._step is None or not self._calls:
            return "before the first step, when the state was made"
        if self._calls == 1 and not self._returned:
            return "in the first step (compiling or running it)"
        return f"noticed in step {self._calls} of this process"

    def _case(self, problem: BaseException) -> tuple[Case, Memory | None, str]:
        """What is too large, the compiler's figures, and where they come from."""
        devices = list(jax.devices()) if self._devices is None else self._devices
        topology, here = topology_of(devices), len(jax.local_devices())
        now = need(self.experiment, topology)
        found, source = self._compiled(problem, now)
        total, temp = (
            (now.total, now.temp) if found is None else (found.total, found.temp or found.total - now.held)
        )
        return Case(now, total, max(temp, 1), topology, room(jax.local_devices()[0], here)), found, source

    def _compiled(self, problem: BaseException, now: Need) -> tuple[Memory | None, str]:
        try:
            return refused_memory(now.state, RuntimeError(str(problem))), "the compiler refused it"
        except ConfigError:
            # Not the compiler's words: an allocation failed, and a step that was sent has been compiled.
            pass
        if self._given is None or not (self._returned or jax.process_count() == 1):
            return None, "by analysis"
        try:
            return measured_memory(
                now.state, self._step.lower(*self._given).compile()
            ), "the compiler's account"
        except jax.errors.JaxRuntimeError as reason:
            return None, f"by analysis: the compiler gave no account ({_brief(reason, 120)})"


def is_full(problem: BaseException) -> bool:
    """Whether an error says that a device's memory is full."""
    if isinstance(problem, StvlError) or not isinstance(problem, jax.errors.JaxRuntimeError):
        return False
    return bool(_FULL.search(str(problem))) and not _OTHER.search(str(problem))


def _shape(leaf: Any) -> Any:
    """An array's shape, dtype and layout; other leaves as they are."""
    if not isinstance(leaf, jax.Array):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding, weak_type=leaf.weak_type)


def _brief(problem: BaseException, most: int = _BRIEF) -> str:
    text = " ".join(str(problem).split())
    return text if len(text) <= most else f"{text[:most]} ..."


def _where(case: Case, found: Memory | None, source: str) -> Iterator[str]:
    now, place = case.now, case.room
    yield f"one device has {_limit(place)}; the step needs {size_text(case.total)} ({source}):"
    yield f"  by their shardings: {state_text(now.state)}"
    if found is not None:
        yield f"  by the compiler: temporaries (activations, gradients, loss) {size_text(case.temp)}"
    yield (
        f"  by analysis: activations {size_text(now.activations)}, gradients {size_text(now.gradients)}, "
        f"the loss {size_text(now.loss)} ({now.form})"
    )
    if place.limit and case.total <= place.limit:
        yield (
            "  by these figures it fits: look for another program on the device, or memory lost between arrays; any saving "
            "may be enough"
        )


def _limit(place: Room) -> str:
    return (
        f"{size_text(place.limit)} ({place.source})"
        if place.limit
        else f"a memory of unknown size ({place.source})"
    )


def _remedies(case: Case, found: list[Remedy]) -> Iterator[str]:
    if not found:
        yield "nothing that the planner knows makes it smaller: take more devices or a smaller model"
        return
    if not case.room.limit or any(one.fits and one.ways == 1 for one in found):
        yield "remedies, cheapest first (add the words to the command):"
    elif found[0].fits:
        yield "no remedy alone is enough, the first of these together are (add the words to the command):"
    else:
        yield (
            f"no remedy is enough, nor are all together: state, batch and gradients alone take "
            f"{size_text(case.now.held + case.now.gradients)}; take more "
            "devices or a smaller model. What helps most (add the words to the command):"
        )
    for number, one in enumerate(found, 1):
        yield f"  {number}. {' '.join(one.words)}"
        yield f"     {_effect(case, one)}"
    yield (
        "temporaries are predicted in proportion to the analysis, which comes out at 0.7 to 1.3 times what is compiled "
        "(docs/plan.md)"
    )


def _effect(case: Case, one: Remedy) -> str:
    verdict = "enough" if one.fits else "not enough alone"
    if not case.room.limit:
        verdict = "the device's limit is unknown"
    time = "no slower" if one.slower < 1.005 else f"{one.slower:.2f} times the time a sample"
    words = [f"saves {size_text(one.saves)}, leaves {size_text(one.left)}: {verdict}", time]
    return "; ".join([*words, one.price] if one.price else words)
