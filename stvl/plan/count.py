"""Arithmetic and memory traffic of a compiled program, loops counted by their trips.

XLA's own `cost_analysis()` counts the body of a loop once and cannot see into a Pallas kernel. Here every instruction that
runs by itself is counted as often as it runs; a kernel by the cost estimate that it was compiled with.
"""

from __future__ import annotations

import dataclasses
import math
import re

from stvl.plan.hlo import Computation, Instruction, Piece, Program


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Operations of one FLOP an element of the result.
ELEMENTWISE = _words(
    "add subtract multiply divide maximum minimum negate abs power remainder compare select and or "
    "xor not shift-left shift-right-logical shift-right-arithmetic exponential log log-plus-one "
    "exponential-minus-one tanh logistic rsqrt sqrt cbrt sine cosine tan atan2 erf floor ceil "
    "round-nearest-afz round-nearest-even sign clamp"
)

#: Instructions that move no bytes themselves: names for parts of memory, or loops and calls whose bodies are counted.
FREE = _words(
    "parameter tuple get-tuple-element bitcast constant after-all while conditional call "
    "partition-id replica-id opt-barrier add-dependency async-start async-update async-done"
)

_DIMENSIONS = re.compile(r"(\w+)=\{([\d,]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_ESTIMATE = re.compile(r'"cost_estimate":\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Cost:
    """Work of one instruction on one device.

    Attributes:
        matrix: FLOPs of products and convolutions.
        kernel: FLOPs that a Pallas kernel declares.
        vector: one FLOP an element of every elementwise operation.
        bytes: read from and written to HBM.
    """

    matrix: int = 0
    kernel: int = 0
    vector: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.matrix + other.matrix,
            self.kernel + other.kernel,
            self.vector + other.vector,
            self.bytes + other.bytes,
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(self.matrix * times, self.kernel * times, self.vector * times, self.bytes * times)

    @property
    def flops(self) -> int:
        """All three kinds of FLOPs."""
        return self.matrix + self.kernel + self.vector


def cost(program: Program, home: Computation, one: Instruction) -> Cost:
    """Work of an instruction by itself; that of loops, calls and branches is in their bodies."""
    if one.kind in FREE or one.kind.endswith("-done"):
        return Cost()
    estimate = _ESTIMATE.search(one.rest) if one.kind == "custom-call" else None
    if estimate:
        found = {name: int(number) for name, number in re.findall(r'"(\w+)":"?(\d+)"?', estimate.group(1))}
        return Cost(kernel=found.get("flops", 0), bytes=found.get("bytes_accessed", 0))
    if one.kind == "fusion":
        inner = program.computations.get(one.attribute("calls") or "")
        if inner is None:
            return Cost(bytes=_plain_bytes(program, home, one))
        inside = _inside(program, inner)
        return dataclasses.replace(inside, bytes=_fusion_bytes(program, home, one, inner))
    return dataclasses.replace(_arithmetic(program, home, one), bytes=_plain_bytes(program, home, one))


def _inside(program: Program, home: Computation) -> Cost:
    """FLOPs of a fused computation and of fusions in it."""
    total = Cost()
    for one in home.instructions:
        if one.kind == "fusion":
            inner = program.computations.get(one.attribute("calls") or "")
            total += Cost() if inner is None else _inside(program, inner)
        else:
            total += _arithmetic(program, home, one)
    return total


def _arithmetic(program: Program, home: Computation, one: Instruction) -> Cost:
    elements = sum(piece.size for piece in one.pieces)
    if one.kind == "dot":
        return Cost(matrix=_dot(program, home, one))
    if one.kind == "convolution":
        return Cost(matrix=_convolution(program, home, one))
    if one.kind in ELEMENTWISE:
        return Cost(vector=elements)
    if one.kind in ("reduce", "reduce-window"):
        return Cost(vector=sum(piece.size for x in program.operands(home, one) for piece in x.pieces))
    return Cost()


def _dot(program: Program, home: Computation, one: Instruction) -> int:
    """Two FLOPs for every element of the result and of the contracted axes."""
    left = program.operands(home, one)[0].pieces[0].shape
    axes = dict(_DIMENSIONS.findall(one.rest)).get("lhs_contracting_dims", "")
    inner = math.prod(left[int(axis)] for axis in axes.split(",") if axis)
    return 2 * one.pieces[0].size * inner


def _convolution(program: Program, home: Computation, one: Instruction) -> int:
    """``2 * batch * out * in`` for every pair of an output place and a kernel place that meets the input.

    The TPU compiler writes products as convolutions, batch axes as space with dilation and padding: places that meet only
    padding or gaps do no work and are left out, as XLA's own cost analysis leaves them out.
    """
    operands = program.operands(home, one)
    labels = _LABELS.search(one.rest)
    if labels is None or len(operands) < 2:
        return 0
    left, right, out = labels.groups()
    lhs, rhs, result = operands[0].pieces[0].shape, operands[1].pieces[0].shape, one.pieces[0].shape
    found = _WINDOW.search(one.rest)
    window = dict(item.split("=") for item in (found.group(1) if found else "").split())
    places = 1
    for axis in sorted(letter for letter in left if letter.isdigit()):
        number = int(axis)
        places *= _meetings(
            lhs[left.index(axis)],
            rhs[right.index(axis)],
            result[out.index(axis)],
            {key: _of_axis(text, number) for key, text in window.items()},
        )
    groups = re.search(r"batch_group_count=(\d+)", one.rest)
    batch = lhs[left.index("b")] // (int(groups.group(1)) if groups else 1)
    return 2 * batch * rhs[right.index("i")] * rhs[right.index("o")] * places


def _of_axis(text: str, number: int) -> str:
    parts = text.split("x")
    return parts[number] if number < len(parts) else parts[-1]


def _meetings(size: int, kernel: int, out: int, window: dict[str, str]) -> int:
    """Pairs of output and kernel places whose input place exists."""
    stride = int(window.get("stride", 1))
    low = int(window.get("pad", "0_0").split("_")[0])
    gap, spread = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    whole = (size - 1) * gap + 1 if size else 0
    if gap == 1 and low == 0 and (out - 1) * stride + (kernel - 1) * spread < whole:
        return out * kernel
    found = 0
    for place in range(kernel):
        first = place * spread - low
        for number in range(out):
            at = number * stride + first
            found += 0 <= at < whole and at % gap == 0
    return found


def _in_memory(pieces: tuple[Piece, ...]) -> int:
    return sum(piece.bytes for piece in pieces if not piece.on_chip)


def _plain_bytes(program: Program, home: Computation, one: Instruction) -> int:
    """Bytes of operands and results; slices read and write only their part."""
    read = program.operands(home, one)
    if one.kind in ("dynamic-slice", "slice", "gather"):
        return 2 * _in_memory(one.pieces)
    if one.kind == "dynamic-update-slice" and len(read) > 1:
        return 2 * _in_memory(read[1].pieces)
    if one.kind in ("broadcast", "iota", "rng-bit-generator"):
        return _in_memory(one.pieces)
    if one.kind in ("copy-start", "slice-start"):
        # Its type holds the new array, the old one and a mark.
        return (
            sum(_in_memory((piece,)) for piece in one.pieces[:2]) if one.kind == "copy-start" else _moved(one)
        )
    if one.kind.endswith("-start"):
        return 0
    return _in_memory(one.pieces) + sum(_in_memory(x.pieces) for x in read)


def _moved(one: Instruction) -> int:
    """A slice that is copied: read and written where it lies in HBM."""
    result = one.pieces[-2:-1] if len(one.pieces) > 2 else one.pieces[-1:]
    return sum(piece.bytes for piece in result) + _in_memory(result)


def _fusion_bytes(program: Program, home: Computation, one: Instruction, inner: Computation) -> int:
    """Operands read, results written; a parameter of which only slices are used counts these, an update its part."""
    total = 0
    for number, operand in enumerate(program.operands(home, one)):
        parameter = inner.parameters.get(number)
        whole = _in_memory(operand.pieces)
        if parameter is None or not whole:
            total += whole
            continue
        total += min(whole, _read(program, inner, parameter, whole))
    return total + _written(one, inner)


def _read(program: Program, inner: Computation, parameter: Instruction, whole: int) -> int:
    parts = 0
    for user in inner.users.get(parameter.name, []):
        if user.kind in ("bitcast", "get-tuple-element", "copy") and user.bytes:
            parts += _read(program, inner, user, whole)
        elif user.kind in ("dynamic-slice", "slice", "gather") and user.operands[0] == parameter.name:
            parts += user.bytes
        elif user.kind == "dynamic-update-slice" and user.operands[0] == parameter.name:
            continue
        elif user.kind == "fusion":
            deeper = program.computations.get(user.attribute("calls") or "")
            place = user.operands.index(parameter.name)
            found = deeper.parameters.get(place) if deeper else None
            parts += whole if deeper is None or found is None else _read(program, deeper, found, whole)
        else:
            return whole
    return parts


def _written(one: Instruction, inner: Computation) -> int:
    """Results of a fusion; an array that is updated in place counts its new part."""
    root = inner.root
    ends = (
        [inner.by_name[name] for name in root.operands if name in inner.by_name]
        if root.kind == "tuple"
        else [root]
    )
    if len(ends) != len(one.pieces):
        return _in_memory(one.pieces)
    total = 0
    for end, piece in zip(ends, one.pieces, strict=True):
        while end.kind == "bitcast" and end.operands[0] in inner.by_name:
            end = inner.by_name[end.operands[0]]
        update = inner.by_name.get(end.operands[1]) if end.kind == "dynamic-update-slice" else None
        if not piece.on_chip:
            total += piece.bytes if update is None else min(piece.bytes, update.bytes)
    return total
