"""Reads the bundles that the TPU compiler dumps: one line a bundle, a bundle being what the core starts in one cycle.

The text has one line a bundle: its address, a label (``LB`` starts a loop body, ``PF`` follows a branch around a
region), the depth of loops as a row of ``>``, and the instructions, apart by ``;;``. A branch takes effect after four
more bundles. Registers are written once (SSA) before they are given a place, and both names are printed:
``%s4457_s22`` is value 4457 in place 22.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from stvl.core.errors import DataError

#: Bundles after a branch that run before it takes effect, on every generation from v5e on.
DELAY = 4

_BUNDLE = re.compile(r"^\s*(?:0x([0-9a-f]+)|0)\s+(?:LB|LH|LE|PB|PF|CT)?\s*:[ >]*\{")
_LABEL = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+PF")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
_TARGET = re.compile(r"target (?:= \$region(\d+)|bundleno = (\d+))")
_GUARD = re.compile(r"\((!?)%(p\d+)\w*\)")
_BEFORE = re.compile(r"^\((!?)%(p\d+)\w*(?:, (%?\w+))?\), ")
_NAME = re.compile(r"^%([sp]\d+)")
_ANY_NAME = re.compile(r"[sp]\d+|%\d+")


class Instruction(NamedTuple):
    """One instruction of the scalar unit.

    Attributes:
        target: the value that it makes, ``s12`` or ``p3``, ``%7`` for a division; empty for a store.
        op: e.g. ``sadd.s32``.
        args: names of values, or integers; an address keeps its text.
        guard: name of the predicate under which it runs, empty for always.
        wanted: the value of the predicate with which it runs.
        passed: for a guarded move, what the target holds if the guard fails.
        note: the compiler's comment.
    """

    target: str
    op: str
    args: tuple[str | int, ...]
    guard: str = ""
    wanted: bool = True
    passed: str | int | None = None
    note: str = ""


class Branch(NamedTuple):
    """A branch to the bundle `to`, taken if `guard` is `wanted`; an empty guard is always taken."""

    to: int
    guard: str
    wanted: bool


class Program(NamedTuple):
    """The bundles of one kernel, as far as they decide what runs.

    Attributes:
        length: number of bundles.
        scalars: bundle -> its scalar instructions, joins of values (``sphi``) first.
        branches: bundle -> the branch that it starts.
    """

    length: int
    scalars: dict[int, tuple[Instruction, ...]]
    branches: dict[int, Branch]


def parse(text: str) -> Program:
    """Read a dump of ``final_bundles`` or ``packed-bundles-post-ra``.

    Raises:
        DataError: no bundles in the text, or a branch to a region that does not start anywhere.
    """
    pieces = _pieces(text)
    if not pieces:
        raise DataError("no bundle in the text; expected lines like `0x1a   : > { %s1 = ... }`")
    regions: dict[int, int] = {}
    for address, piece in enumerate(pieces):
        for region in _REGION.findall(piece):
            regions.setdefault(int(region), address)
    scalars: dict[int, tuple[Instruction, ...]] = {}
    branches: dict[int, Branch] = {}
    bare = [at for at, piece in enumerate(pieces) if _LABEL.match(piece) and not _REGION.search(piece)]
    for address, piece in enumerate(pieces):
        found = []
        for item in piece[piece.index("{") + 1 :].split(";;"):
            if "sbr." in item:
                # The last region of a program may end in a bundle that does not name it.
                after = [at for at in bare if at > address]
                branches[address] = _branch(item, regions, after, len(pieces))
            else:
                instruction = _instruction(item)
                if instruction is not None:
                    found.append(instruction)
        if found:
            scalars[address] = tuple(_in_order(found))
    return Program(len(pieces), scalars, branches)


def _pieces(text: str) -> list[str]:
    """The text of every bundle; a comment may go on over lines."""
    pieces: list[str] = []
    for line in text.splitlines():
        match = _BUNDLE.match(line)
        if match:
            address = int(match.group(1) or "0", 16)
            if address != len(pieces):
                raise DataError(
                    f"bundle {address:#x} follows bundle {len(pieces) - 1:#x}: the dump is not whole"
                )
            pieces.append(line)
        elif pieces:
            pieces[-1] += f"\n{line}"
    return pieces


def _branch(item: str, regions: dict[int, int], bare: list[int], length: int) -> Branch:
    code = _COMMENT.sub("", item)
    target, guard = _TARGET.search(code), _GUARD.search(code)
    if target is None:
        raise DataError(f"a branch without a target: {code.strip()[:100]}")
    if target.group(2) is not None:
        to = int(target.group(2))
    elif int(target.group(1)) in regions:
        to = regions[int(target.group(1))]
    elif len(bare) == 1:
        to = bare[0]
    else:
        raise DataError(f"a branch to region {target.group(1)}, which starts nowhere")
    if not 0 <= to < length:
        raise DataError(f"a branch to bundle {to} of {length}")
    return Branch(to, guard.group(2) if guard else "", not (guard and guard.group(1)))


def _instruction(item: str) -> Instruction | None:
    """The scalar instruction in `item`; None for what the vector units and the DMA engine do."""
    notes = " ".join(_COMMENT.findall(item))
    code = " ".join(_COMMENT.sub("", item).replace("}", " ").split())
    left, equals, right = code.partition(" = ")
    name = _NAME.match(left)
    op, _, rest = right.partition(" ")
    dividing = op.startswith("sdivrem")
    if not equals or not (name or dividing or op == "sst"):
        return None
    target = name.group(1) if name else left if dividing else ""
    guard = wanted = passed = None
    before = _BEFORE.match(rest)
    if before:
        wanted, guard = not before.group(1), before.group(2)
        passed = _operand(before.group(3)) if before.group(3) else None
        rest = rest[before.end() :]
    else:
        after = _GUARD.search(rest)
        if after:
            wanted, guard = not after.group(1), after.group(2)
            rest = rest[: after.start()]
    if op in ("sld", "sst"):
        address, _, stored = rest.partition("]]")
        words = [address + "]]", *stored.split()]
    else:
        words = rest.split(", ")
    args = tuple(_operand(word.strip()) for word in words if word.strip())
    return Instruction(target, op, args, guard or "", wanted is not False, passed, notes)


def _operand(word: str) -> str | int:
    name = _NAME.match(word)
    if name:
        return name.group(1)
    return int(word) if re.fullmatch(r"-?\d+", word) else word


def _in_order(found: list[Instruction]) -> list[Instruction]:
    """Joins first, then loads, then each after what it reads: a bundle's text is in no order, its values are."""
    joins = [one for one in found if one.op in ("sphi", "pphi")]
    rest = [one for one in found if one.op not in ("sphi", "pphi")]
    rest.sort(key=lambda one: {"sld": 0, "sst": 2}.get(one.op, 1))
    done: list[Instruction] = []
    while rest:
        open_names = {one.target for one in rest if one.target}
        ready = [one for one in rest if not (set(reads(one)) - {one.target}) & open_names] or rest[:1]
        done += ready
        rest = [one for one in rest if one not in ready]
    return joins + done


def reads(one: Instruction) -> list[str]:
    """Names of the values that an instruction reads."""
    names = [arg for arg in (*one.args, one.passed, one.guard or None) if isinstance(arg, str)]
    return [name for name in names if _ANY_NAME.fullmatch(name)]
