"""Which devices take part in a collective: the three ways in which HLO writes replica groups."""

from __future__ import annotations

import math
import re

import numpy as np

from stvl.plan.hlo import Instruction

_LIST = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\([^)]*\))?\s*\{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


def first_group(one: Instruction, devices: int) -> tuple[int, ...]:
    """Devices (numbers in the order of the program's devices) of the group that device 0 is in; all where none is named."""
    listed = _LIST.search(one.rest)
    if listed:
        groups = [
            tuple(int(n) for n in part.split(",") if n)
            for part in re.findall(r"\{([\d,]*)\}", listed.group(1))
        ]
        return next((group for group in groups if 0 in group), groups[0] if groups else ()) or _all(devices)
    iota = _IOTA.search(one.rest)
    if iota:
        shape, sizes = _numbers(iota.group(1)), _numbers(iota.group(2))
        ids = np.arange(math.prod(sizes)).reshape(sizes)
        if iota.group(3):
            ids = ids.transpose(_numbers(iota.group(3)))
        return _row_with_zero(ids.reshape(shape[0], -1) if len(shape) > 1 else ids.reshape(1, -1))
    mesh = _MESH.search(one.rest)
    if mesh:
        return _mesh_group(mesh.group(1), mesh.group(2))
    return _all(devices)


def hops(one: Instruction) -> tuple[tuple[int, int], ...]:
    """Pairs of sender and receiver of a collective-permute."""
    found = _PAIRS.search(one.rest)
    pairs = re.findall(r"\{(\d+),(\d+)\}", found.group(1)) if found else []
    return tuple((int(a), int(b)) for a, b in pairs)


def _mesh_group(axes: str, used: str) -> tuple[int, ...]:
    """``mesh['a'=4,'b'=8] {'b'}``: devices that differ along `used` only; ``'b':(2)4`` is a part of an axis."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    parts = [
        (name, before, size) for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", used)
    ]
    cut = {name: (int(before), int(size)) for name, before, size in parts if size}
    shape: list[int] = []
    moving: list[int] = []
    for name, size in sizes.items():
        pieces = [size]
        at = 0
        if name in cut:
            before, middle = cut[name]
            pieces, at = [before, middle, size // (before * middle)], 1
        if any(part[0] == name for part in parts):
            moving.append(len(shape) + at)
        shape += pieces
    ids = np.arange(math.prod(shape)).reshape(shape)
    order = [axis for axis in range(len(shape)) if axis not in moving] + moving
    width = math.prod(shape[axis] for axis in moving)
    return _row_with_zero(ids.transpose(order).reshape(-1, width))


def _row_with_zero(rows: np.ndarray) -> tuple[int, ...]:
    found = np.argwhere(rows == 0)
    return tuple(int(n) for n in rows[int(found[0][0]) if len(found) else 0])


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def _all(devices: int) -> tuple[int, ...]:
    return tuple(range(devices))
