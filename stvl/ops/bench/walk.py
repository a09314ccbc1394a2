"""Runs the scalar program of a TPU kernel, to count how often each of its bundles is executed.

Grid loops, inner loops and regions under a condition on the grid index are decided by integers that the kernel counts
itself, so they can be followed without a device. What depends on memory or on data is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from stvl.core.errors import DataError
from stvl.ops.bench.bundles import DELAY, Instruction, Program, reads

#: Branches after which a walk is given up.
LIMIT = 2_000_000

Value = int | bool | None


class Loop(NamedTuple):
    """One loop of a kernel.

    Attributes:
        first: bundle at which its body starts.
        last: its last bundle.
        entries: how often it is entered.
        trips: how often its body runs, over all entries.
    """

    first: int
    last: int
    entries: int
    trips: int


class Walk(NamedTuple):
    """How often each bundle runs.

    Attributes:
        counts: executions, one a bundle.
        loops: the loops, in the order of the text.
        assumed: bundles of branches around a region whose condition is not known here; the region is taken to run.
        unknown: bundles of loop ends whose condition is not known here and for which no trips were given.
    """

    counts: Int[np.ndarray, " bundles"]
    loops: tuple[Loop, ...]
    assumed: tuple[int, ...]
    unknown: tuple[int, ...]


def walk(program: Program, trips: Sequence[int] = ()) -> Walk:
    """Follow the branches of a program from its first bundle to its last.

    Args:
        program: the bundles.
        trips: of the loops whose end depends on memory, in the order of the text, a number for each entry. A loop for
            which there is none runs once.

    Raises:
        DataError: the program does not come to an end within `LIMIT` branches.
    """
    state = _State(program)
    own_trips = _given(program, state, trips)
    edges = np.zeros(program.length + 1, np.int64)  # how often a straight run starts here, minus ends
    taken = {address: 0 for address in program.branches}
    passed = dict.fromkeys(program.branches, 0)
    left: dict[int, int] = {}
    assumed, unknown = set(), set()
    ends = sorted(program.branches)
    position, came_back = 0, False
    for _ in range(LIMIT):
        branch_at = ends[int(np.searchsorted(ends, position))] if ends and ends[-1] >= position else None
        stop = program.length if branch_at is None else min(branch_at + 1 + DELAY, program.length)
        go = state.run(position, stop, branch_at, came_back)
        edges[position] += 1
        edges[stop] -= 1
        if branch_at is None:
            break
        branch = program.branches[branch_at]
        back = branch.to <= branch_at
        if go is None and back:
            if branch_at not in own_trips:
                unknown.add(branch_at)
            left.setdefault(branch_at, own_trips.get(branch_at, 1) - 1)
            go = left[branch_at] > 0
            left[branch_at] -= 1
            if not go:
                del left[branch_at]
        elif go is None:
            assumed.add(branch_at)
            go = False
        if go:
            taken[branch_at] += 1
        else:
            passed[branch_at] += 1
        position, came_back = (branch.to, back) if go else (stop, False)
    else:
        raise DataError(
            f"the program does not end within {LIMIT} branches: compile it for fewer heads or samples"
        )
    loops = tuple(
        Loop(branch.to, min(at + DELAY, program.length - 1), passed[at], taken[at] + passed[at])
        for at, branch in sorted(program.branches.items(), key=lambda item: item[1].to)
        if branch.to <= at
    )
    counts = np.cumsum(edges[:-1])
    return Walk(counts, loops, tuple(sorted(assumed)), tuple(sorted(unknown)))


def _given(program: Program, state: _State, trips: Sequence[int]) -> dict[int, int]:
    """The given trips by the branch that ends the loop; only loops whose guard nothing here can decide take one."""
    ends = [
        at for at, branch in sorted(program.branches.items(), key=lambda item: item[1].to) if branch.to <= at
    ]
    open_ends = [at for at in ends if not state.decidable(program.branches[at].guard)]
    return dict(zip(open_ends, trips, strict=False))


class _State:
    """The values of the scalars that branches depend on."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.values: dict[str, Value] = {}
        self.memory: dict[str, Value] = {}
        self.makers: dict[str, list[Instruction]] = {}
        self.stores: dict[str, list[Instruction]] = {}
        self.quotients: dict[str, tuple[Value, ...]] = {}
        self.pops: dict[int, int] = {}
        popped: dict[str, int] = {}
        for instructions in program.scalars.values():
            for one in instructions:
                if one.op == "spop.drf":
                    unit = str(one.args[0]) if one.args else ""
                    self.pops[id(one)] = popped.get(unit, 0)
                    popped[unit] = self.pops[id(one)] + 1
                if one.op == "sst":
                    self.stores.setdefault(str(one.args[0]), []).append(one)
                elif one.target:
                    self.makers.setdefault(one.target, []).append(one)
        self.headers = frozenset(branch.to for at, branch in program.branches.items() if branch.to <= at)
        needed = self._needed()
        self.kept = {
            at: tuple(one for one in instructions if id(one) in needed)
            for at, instructions in program.scalars.items()
        }
        self.busy = sorted(at for at, instructions in self.kept.items() if instructions)

    def _needed(self) -> set[int]:
        """Instructions on which a branch depends."""
        found: set[int] = set()
        todo = [branch.guard for branch in self.program.branches.values() if branch.guard]
        seen = set(todo)
        while todo:
            name = todo.pop()
            for one in self.makers.get(name, []) + self.stores.get(name, []):
                found.add(id(one))
                names = reads(one)
                if one.op == "sld":
                    names.append(str(one.args[0]))
                todo += [item for item in names if item not in seen]
                seen.update(names)
        return found

    def decidable(self, name: str) -> bool:
        """Whether a value follows from constants alone."""
        seen, todo = {name}, [name]
        while todo:
            item = todo.pop()
            makers = self.makers.get(item, []) + self.stores.get(item, [])
            if not makers:
                return False
            for one in makers:
                if one.op not in _OPS and one.op not in _HANDLED and not one.op.startswith("sdivrem"):
                    return False
                names = reads(one)
                if one.op == "sld" and not _is_core(one):
                    names.append(str(one.args[0]))
                todo += [other for other in names if other not in seen]
                seen.update(names)
        return True

    def run(self, first: int, stop: int, branch_at: int | None, came_back: bool) -> bool | None:
        """Evaluate the bundles ``first .. stop - 1``; whether the branch at `branch_at` is taken, None if not known."""
        answer: bool | None = None
        low = int(np.searchsorted(self.busy, first))
        bundles = self.busy[low : int(np.searchsorted(self.busy, stop))]
        if branch_at is not None and branch_at not in bundles:
            bundles = sorted([*bundles, branch_at])
        for at in bundles:
            instructions = self.kept.get(at, ())
            joins = [one for one in instructions if one.op in ("sphi", "pphi")]
            if joins:
                chosen = [self._joined(one, at, came_back and at == first) for one in joins]
                self.values.update(zip([one.target for one in joins], chosen, strict=True))
            for one in instructions[len(joins) :]:
                self._evaluate(one)
            if at == branch_at:
                branch = self.program.branches[at]
                known = self.value(branch.guard) if branch.guard else branch.wanted
                answer = None if known is None else bool(known) == branch.wanted
        return answer

    def _joined(self, one: Instruction, at: int, came_back: bool) -> Value:
        """What a join takes: at the start of a loop its first operand on entry and its last one after each trip."""
        values = [self.value(arg) for arg in one.args]
        if at in self.headers:
            return values[-1 if came_back else 0]
        # After a region under a condition the text does not say which operand belongs to which way.
        return values[0] if len(set(values)) == 1 else None

    def value(self, arg: str | int) -> Value:
        """An operand's value."""
        return arg if isinstance(arg, int) else self.values.get(arg)

    def _evaluate(self, one: Instruction) -> None:
        if one.guard:
            known = self.values.get(one.guard)
            holds = None if known is None else bool(known) == one.wanted
            if holds is not True and one.passed is not None:
                self.values[one.target] = self.value(one.passed) if holds is False else None
                return
            if holds is False:
                return
        if one.op == "sst":
            address, *stored = one.args
            self.memory[str(address)] = self.value(stored[0]) if stored else None
        elif one.op == "sld":
            self.values[one.target] = 0 if _is_core(one) else self.memory.get(str(one.args[0]))
        elif one.op.startswith("sdivrem"):
            self.quotients[one.target] = _divided(one, [self.value(arg) for arg in one.args])
        elif one.op == "spop.drf":
            results: tuple[Value, ...] = self.quotients.get(str(one.args[0]) if one.args else "", ())
            index = self.pops[id(one)]
            self.values[one.target] = results[index] if index < len(results) else None
        else:
            run = _OPS.get(one.op)
            self.values[one.target] = run([self.value(arg) for arg in one.args]) if run else None


def _is_core(one: Instruction) -> bool:
    """Whether a load reads the number of the core, which is 0 here: on two-core chips the counts are those of one core."""
    return "core id" in one.note and "_spill" not in str(one.args[0])


def _divided(one: Instruction, args: list[Value]) -> tuple[Value, ...]:
    """What the divider gives back, in order: the quotient, the remainder, or both."""
    if len(args) != 2 or args[0] is None or not args[1]:
        return ()
    number, by = (_signed(int(arg or 0)) for arg in args)
    if one.op.endswith("u32"):
        number, by = number & 0xFFFFFFFF, by & 0xFFFFFFFF
    quotient = abs(number) // abs(by) * (1 if (number < 0) == (by < 0) else -1)
    both = (_signed(quotient), _signed(number - quotient * by))
    return both if "kDivAndRem" in one.note else both[1:] if "kRem" in one.note else both[:1]


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def _numbers(run: Callable[[int, int], Value]) -> Callable[[list[Value]], Value]:
    """An op of two numbers; the sum of two s32 stays an s32."""

    def both(args: list[Value]) -> Value:
        if len(args) != 2 or args[0] is None or args[1] is None:
            return None
        value = run(_signed(int(args[0])), _signed(int(args[1])))
        return value if isinstance(value, bool) or value is None else _signed(value)

    return both


def _logic(any_of: bool, negate: bool = False) -> Callable[[list[Value]], Value]:
    """``or`` (any_of) or ``and`` of predicates of which some may not be known."""

    def combine(args: list[Value]) -> Value:
        decisive = any(arg is not None and bool(arg) == any_of for arg in args)
        if not decisive and None in args:
            return None
        return (any_of if decisive else not any_of) != negate

    return combine


def _select(args: list[Value]) -> Value:
    if args[0] is None:
        return args[1] if args[1] == args[2] else None
    return args[1] if args[0] else args[2]


def _unsigned(run: Callable[[int, int], bool]) -> Callable[[list[Value]], Value]:
    return _numbers(lambda x, y: run(x & 0xFFFFFFFF, y & 0xFFFFFFFF))


_HANDLED = ("sphi", "pphi", "sst", "sld", "spop.drf")

_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
}

_OPS: dict[str, Callable[[list[Value]], Value]] = {
    "smov.u32": lambda args: args[0],
    "pmov": lambda args: args[0],
    "pneg": lambda args: None if args[0] is None else not args[0],
    "por": _logic(True),
    "pnor": _logic(True, negate=True),
    "pand": _logic(False),
    "pnand": _logic(False, negate=True),
    "pxor": _numbers(lambda x, y: x != y),
    "scalar_select": _select,
    **{f"sadd.{kind}": _numbers(lambda x, y: x + y) for kind in ("s32", "u32")},
    **{f"ssub.{kind}": _numbers(lambda x, y: x - y) for kind in ("s32", "u32")},
    **{f"smul.{kind}": _numbers(lambda x, y: x * y) for kind in ("s32", "u32")},
    "smulhi.u32": _numbers(lambda x, y: ((x & 0xFFFFFFFF) * (y & 0xFFFFFFFF)) >> 32),
    "smulhi.s32": _numbers(lambda x, y: (x * y) >> 32),
    "smin.u32": _numbers(lambda x, y: min(x & 0xFFFFFFFF, y & 0xFFFFFFFF)),
    "smax.u32": _numbers(lambda x, y: max(x & 0xFFFFFFFF, y & 0xFFFFFFFF)),
    "sand.u32": _numbers(lambda x, y: x & y),
    "sor.u32": _numbers(lambda x, y: x | y),
    "sxor.u32": _numbers(lambda x, y: x ^ y),
    "sshll.u32": _numbers(lambda x, y: x << (y & 31)),
    "sshra.s32": _numbers(lambda x, y: x >> (y & 31)),
    "sshrl.u32": _numbers(lambda x, y: (x & 0xFFFFFFFF) >> (y & 31)),
    **{f"scmp.{name}.s32.totalorder": _numbers(run) for name, run in _COMPARE.items()},
    **{f"scmp.{name}.u32.totalorder": _unsigned(run) for name, run in _COMPARE.items()},
}
