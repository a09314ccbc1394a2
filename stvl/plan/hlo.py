"""Reads the text of a compiled program (HLO): computations, instructions, shapes, loops and their trips.

Only the scheduled text that XLA prints is read (``compiled.as_text()``), since it is the one form that the CPU, GPU and TPU
compilers share. Grammar: https://openxla.org/xla/operation_semantics and the printer of ``HloModule::ToString``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from stvl.core.errors import ConfigError

#: Bits of one element by HLO's name of the type; what is not here (token, opaque) has none.
BITS = {
    **{f"{kind}{bits}": bits for kind in "su" for bits in (1, 2, 4, 8, 16, 32, 64)},
    **{"pred": 8, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128},
}

#: Arrays in a TPU's on-chip memory carry this mark in their layout; the others lie in HBM.
ON_CHIP = re.compile(r"S\([1-9]\d*\)")

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"?known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)"?')
_WHERE = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')


@dataclasses.dataclass(frozen=True)
class Piece:
    """One array of a type: element type, shape, and whether it lies outside of HBM."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool = False

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        return -(-self.size * _bits(self.dtype) // 8)


def _bits(dtype: str) -> int:
    return 8 if dtype.startswith("f8") else 4 if dtype.startswith("f4") else BITS.get(dtype, 0)


@functools.lru_cache(maxsize=65536)
def pieces(text: str) -> tuple[Piece, ...]:
    """The arrays of a type, those of a tuple in order: ``(f32[2,3]{1,0}, s32[])`` has two."""
    return tuple(
        Piece(kind, tuple(int(n) for n in sizes.split(",") if n), bool(layout and ON_CHIP.search(layout)))
        for kind, sizes, layout in _ARRAY.findall(text)
    )


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: without the percent sign.
        kind: the operation, e.g. ``all-gather-start``.
        type: text of its type.
        operands: names of its operands.
        rest: everything behind the operands: attributes, metadata, the backend's settings.
        inside: text between the brackets of the operation (a constant's value, a parameter's number).
        root: whether it is the computation's result.
    """

    name: str
    kind: str
    type: str
    operands: tuple[str, ...]
    rest: str
    inside: str = ""
    root: bool = False

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Arrays of the result."""
        return pieces(self.type)

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(piece.bytes for piece in self.pieces)

    @property
    def called(self) -> tuple[str, ...]:
        """Computations that it names: a fusion's, a loop's condition and body, a reduction's."""
        return tuple(_CALLED.findall(self.rest)) + self.branches

    @property
    def branches(self) -> tuple[str, ...]:
        """Computations of a conditional, of which one runs."""
        found = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        if found:
            return tuple(_NAME.findall(found.group(1)))
        return tuple(re.findall(r"\b(?:true|false)_computation=%?([\w.\-]+)", self.rest))

    def attribute(self, name: str) -> str | None:
        """Name of the computation behind ``name=``, or None."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found.group(1) if found else None

    @property
    def where(self) -> str:
        """The path of modules and operations that jax recorded."""
        found = _WHERE.search(self.rest)
        return found.group(1) if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order of the schedule."""

    name: str
    instructions: tuple[Instruction, ...]
    entry: bool = False

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Instruction by name."""
        return {one.name: one for one in self.instructions}

    @property
    def root(self) -> Instruction:
        """The result."""
        return next((one for one in self.instructions if one.root), self.instructions[-1])

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Name -> instructions that read it."""
        found: dict[str, list[Instruction]] = {}
        for one in self.instructions:
            for operand in dict.fromkeys(one.operands):
                found.setdefault(operand, []).append(one)
        return found

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameter by number."""
        return {int(one.inside): one for one in self.instructions if one.kind == "parameter"}


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled module.

    Attributes:
        computations: by name.
    """

    computations: dict[str, Computation]

    @property
    def entry(self) -> Computation:
        """Where it starts."""
        return next(one for one in self.computations.values() if one.entry)

    def operands(self, home: Computation, one: Instruction) -> list[Instruction]:
        """Instructions whose results `one` reads."""
        return [home.by_name[name] for name in one.operands if name in home.by_name]

    def trips(self, home: Computation, loop: Instruction) -> int | None:
        """How often a loop's body runs: what the compiler noted, else from a counter compared with a constant.

        None where neither says.
        """
        noted = _TRIPS.search(loop.rest)
        if noted:
            return int(noted.group(1))
        condition = self.computations.get(loop.attribute("condition") or "")
        body = self.computations.get(loop.attribute("body") or "")
        if condition is None or body is None:
            return None
        return _counted(self, home, loop, condition, body)


def parse(text: str) -> Program:
    """The program of an HLO text.

    Raises:
        ConfigError: no entry computation in the text.
    """
    computations: dict[str, Computation] = {}
    name, entry, found = "", False, list[Instruction]()
    for line in text.splitlines():
        if line.startswith("}"):
            if name:
                computations[name] = Computation(name, tuple(found), entry)
            name = ""
        elif not name:
            head = _HEAD.match(line)
            if head and not line.startswith("HloModule"):
                name, entry, found = head.group(2), bool(head.group(1)), []
        else:
            read = _LINE.match(line)
            if read:
                found.append(_instruction(read))
    if not any(one.entry for one in computations.values()):
        raise ConfigError("the text is no HLO program: it has no computation marked ENTRY")
    return Program(computations)


def _instruction(read: re.Match[str]) -> Instruction:
    root, name, text = read.groups()
    cut = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, after = text[:cut], text[cut:].lstrip()
    opening = after.index("(")
    end = _closing(after, opening)
    inside = after[opening + 1 : end]
    return Instruction(
        name, after[:opening], shape, tuple(_NAME.findall(inside)), after[end + 1 :], inside, bool(root)
    )


def _closing(text: str, start: int) -> int:
    """Place of the bracket that closes the one at `start`."""
    depth, place = 0, start
    for found in re.compile(r'[()]|"(?:[^"\\]|\\.)*"').finditer(text, start):
        mark, place = found.group(), found.start()
        depth += {"(": 1, ")": -1}.get(mark, 0)
        if depth == 0:
            return place
    return len(text)


def _counted(
    program: Program, home: Computation, loop: Instruction, condition: Computation, body: Computation
) -> int | None:
    """Trips of ``for (i = start; i < end; i += step)``, with `i` a place of the loop's tuple."""
    test = condition.root
    test = _through(program, condition, test)
    if test is None or len(test.operands) != 2 or not loop.operands:
        return None
    starts = home.by_name.get(loop.operands[0])
    ends = [_value(condition, name, starts, home) for name in test.operands]
    places = [_place(condition, name) for name in test.operands]
    direction = re.search(r"direction=(\w+)", test.rest)
    if direction is None:
        return None
    # `5 > i` is `i < 5`.
    flipped = places[0] is None or (
        ends[0] is not None and places[1] is not None and _step(body, places[0]) is None
    )
    place, end = (places[1], ends[0]) if flipped else (places[0], ends[1])
    way = (
        {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE"}.get(direction.group(1), "")
        if flipped
        else direction.group(1)
    )
    step = None if place is None else _step(body, place)
    start = None if place is None or starts is None else _constant(home, _element(starts, place))
    if step is None or start is None or end is None or not step:
        return None
    span = (end - start) * (1 if step > 0 else -1)
    if way in ("LE", "GE"):
        span += 1
    elif way not in ("LT", "GT", "NE"):
        return None
    return max(-(-span // abs(step)), 0)


def _through(program: Program, home: Computation, one: Instruction) -> Instruction | None:
    """The comparison, also where the compiler wrapped it in a fusion of two parameters."""
    if one.kind == "compare":
        return one
    inner = program.computations.get(one.attribute("calls") or "")
    if one.kind != "fusion" or inner is None or inner.root.kind != "compare":
        return None
    numbers = [inner.by_name[name] for name in inner.root.operands if name in inner.by_name]
    names = []
    for item in numbers:
        if item.kind == "parameter":
            names.append(one.operands[int(item.inside)])
        elif item.kind == "constant":
            return None
    return dataclasses.replace(inner.root, operands=tuple(names))


def _place(home: Computation, name: str) -> int | None:
    one = home.by_name.get(name)
    while one is not None and one.kind in ("copy", "bitcast"):
        one = home.by_name.get(one.operands[0])
    if one is None or one.kind != "get-tuple-element":
        return None
    return _index(one)


def _index(one: Instruction) -> int:
    found = re.search(r"index=(\d+)", one.rest)
    return int(found.group(1)) if found else 0


def _element(one: Instruction, place: int) -> str:
    return one.operands[place] if one.kind == "tuple" and place < len(one.operands) else one.name


def _value(condition: Computation, name: str, starts: Instruction | None, home: Computation) -> int | None:
    """A constant, or a place of the tuple that holds one at the start."""
    known = _constant(condition, name)
    place = _place(condition, name)
    if known is None and place is not None and starts is not None and starts.kind == "tuple":
        return _constant(home, _element(starts, place))
    return known


def _constant(home: Computation, name: str) -> int | None:
    one = home.by_name.get(name)
    while one is not None and one.kind in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
        one = home.by_name.get(one.operands[0]) if one.operands else None
    if one is None or one.kind != "constant" or not re.fullmatch(r"-?\d+", one.inside.strip()):
        return None
    return int(one.inside)


def _step(body: Computation, place: int) -> int | None:
    """What the body adds to a place of the tuple in each trip."""
    root = body.root
    if root.kind != "tuple" or place >= len(root.operands):
        return None
    one = body.by_name.get(root.operands[place])
    while one is not None and one.kind in ("copy", "bitcast"):
        one = body.by_name.get(one.operands[0])
    if one is None or one.kind != "add" or len(one.operands) != 2:
        return None
    for other, self_ in (one.operands, one.operands[::-1]):
        added = _constant(body, other)
        if added is not None and _place(body, self_) == place:
            return added
    return None


def walk(
    program: Program, home: Computation | None = None, times: int = 1
) -> Iterator[tuple[Computation, int]]:
    """Computations that run by themselves, entry first, and how often: bodies of loops, calls and branches.

    Computations inside fusions and reductions are not among them. A loop of unknown trips counts once.
    """
    home = program.entry if home is None else home
    yield home, times
    for one in home.instructions:
        if one.kind == "while":
            body = program.computations.get(one.attribute("body") or "")
            if body is not None:
                yield from walk(program, body, times * (program.trips(home, one) or 1))
        elif one.kind in ("call", "conditional"):
            for name in (*one.branches, one.attribute("to_apply")):
                if name in program.computations:
                    yield from walk(program, program.computations[name], times)
