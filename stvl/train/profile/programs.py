"""Reads the compiled programs that a trace carries: what each operation is, and which part of the model asked for it.

`jax.profiler.ProfileData` shows events but not the programs, which lie in the trace as protocol buffers. Their wire format
is read here, a few fields of it: a field of a published message never changes its number.
Source: protobuf.dev, "Encoding"; the messages XSpace (tsl) and HloProto (xla).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

#: Fields of the messages on the way from a trace to an instruction.
_PLANES, _PLANE_NAME, _EVENT_METADATA = 1, 2, 4
_MAP_VALUE, _METADATA_NAME, _METADATA_STATS, _STAT_BYTES = 2, 2, 5, 6
_MODULE, _COMPUTATIONS, _INSTRUCTIONS, _COMPUTATION_ID = 1, 3, 2, 5
_NAME, _OPCODE, _OP_METADATA, _TARGET, _CALLED, _OP_NAME = 1, 2, 7, 28, 38, 2

#: Number and value: an integer, or the bytes of everything else.
Field = tuple[int, int | memoryview]

#: The plane that holds the programs.
_PLANE = b"/host:metadata"


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction of a compiled program.

    Attributes:
        opcode: ``dot``, ``fusion``, ``custom-call`` ...
        source: path of the operation in the traced Python code (``jit(step)/.../video/stack/layers/mlp/dot_general``).
        target: of a custom call.
        product: whether it, or what it calls, is a matrix product or a convolution.
    """

    opcode: str
    source: str = ""
    target: str = ""
    product: bool = False


#: Operations by name; programs by the name and number that the trace gives them: ``jit_step(6)``.
Programs = Mapping[str, Mapping[str, Operation]]


def programs(path: Path) -> Programs:
    """The programs of a trace file; none where it carries none.

    Raises:
        ValueError: bytes that are no protocol buffer.
    """
    found: dict[str, dict[str, Operation]] = {}
    for plane in _messages(memoryview(path.read_bytes()), _PLANES):
        if b"".join(bytes(name) for name in _messages(plane, _PLANE_NAME)) != _PLANE:
            continue
        for entry in _messages(plane, _EVENT_METADATA):
            for metadata in _messages(entry, _MAP_VALUE):
                name = _last(_fields(metadata), _METADATA_NAME)
                for stat in _messages(metadata, _METADATA_STATS):
                    for proto in _messages(stat, _STAT_BYTES):
                        for module in _messages(proto, _MODULE):
                            found[name] = _operations(module)
    return found


def _operations(module: memoryview) -> dict[str, Operation]:
    """Every instruction of all computations of a module, by name."""
    known: dict[str, tuple[Operation, tuple[int, ...]]] = {}
    inside: dict[int, list[str]] = {}
    for computation in _messages(module, _COMPUTATIONS):
        number = next(_integers(_fields(computation), _COMPUTATION_ID), -1)
        names = inside.setdefault(number, [])
        for instruction in _messages(computation, _INSTRUCTIONS):
            fields = list(_fields(instruction))
            name = _last(fields, _NAME)
            source = "".join(_last(_fields(each), _OP_NAME) for each in _bytes(fields, _OP_METADATA))
            made = Operation(_last(fields, _OPCODE), source, _last(fields, _TARGET))
            known[name] = made, tuple(_integers(fields, _CALLED))
            names.append(name)
    multiplies: dict[int, bool] = {}

    def product(name: str) -> bool:
        one, called = known[name]
        return one.opcode in ("dot", "convolution") or any(map(holds, called))

    def holds(number: int) -> bool:
        if number not in multiplies:
            multiplies[number] = False
            multiplies[number] = any(map(product, inside.get(number, ())))
        return multiplies[number]

    return {name: dataclasses.replace(one, product=product(name)) for name, (one, _) in known.items()}


def _messages(data: memoryview, number: int) -> Iterator[memoryview]:
    """Every length-delimited field with this number."""
    return _bytes(_fields(data), number)


def _bytes(fields: Iterable[Field], number: int) -> Iterator[memoryview]:
    for found, value in fields:
        if found == number and isinstance(value, memoryview):
            yield value


def _integers(fields: Iterable[Field], number: int) -> Iterator[int]:
    """Every integer of a field, one by one or packed."""
    for found, value in fields:
        if found == number and isinstance(value, int):
            yield value
        elif found == number and isinstance(value, memoryview):
            place = 0
            while place < len(value):
                one, place = _varint(value, place)
                yield one


def _last(fields: Iterable[Field], number: int) -> str:
    """The last text of a field; empty where there is none."""
    text = ""
    for value in _bytes(fields, number):
        text = bytes(value).decode(errors="replace")
    return text


def _fields(data: memoryview) -> Iterator[Field]:
    """The fields of a message, in order."""
    place, end = 0, len(data)
    while place < end:
        key = data[place]
        place += 1
        if key > 127:
            key, place = _varint(data, place - 1)
        kind = key & 7
        if kind in (0, 2):
            if place < end and data[place] < 128:
                value = data[place]
                place += 1
            else:
                value, place = _varint(data, place)
            if kind == 0:
                yield key >> 3, value
                continue
        elif kind in (1, 5):
            value = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a protocol buffer has no wire type {kind} (at byte {place} of {end})")
        if place + value > end:
            raise ValueError(f"a protocol buffer ends within a field: byte {place + value} of {end}")
        yield key >> 3, data[place : place + value]
        place += value


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError(f"a protocol buffer ends within a number, at byte {place} of {len(data)}")
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
