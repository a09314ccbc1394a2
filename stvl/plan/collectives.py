"""The collectives of a compiled program: what travels, between whom, how often, and whether work hides it."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator

from stvl.plan.count import cost
from stvl.plan.groups import first_group, hops
from stvl.plan.hlo import Computation, Instruction, Program

#: Operations in which devices exchange data.
KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

#: How the TPU compiler calls the fusion in which a collective starts.
_STARTS = "async-collective-start"

_CHAIN = re.compile(r'chain_id="?(\d+)')
#: How exchanges between slices look on TPUs: a device sends to the host's runtime, and receives what that has made of it.
_MEGASCALE = re.compile(r'_xla_host_transfer_rendezvous="([^"]+)".*?_xla_megascale_transfer_type="(\w+)"')

_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
        kind: one of `KINDS`; an all-reduce of which each device keeps its part is a reduce-scatter.
        bytes: of the whole array on one device: the result of an all-gather, what goes into the others.
        group: devices that take part, by number, as far as the one of device 0 goes.
        hops: sender and receiver of a collective-permute.
        times: how often it runs in a step.
        asynchronous: whether other work is scheduled between its start and its end.
        hidden: index range of the work between start and end, in its computation; equal where there is none.
        loop: path of the loop that it runs in; empty outside of loops.
        where: path of the operation that it belongs to.
        name: of the instruction.
        home: of the computation.
        far: whether it goes over the network between slices; `bytes` are then those that a device sends.
        chain: what the parts of one collective share that the TPU compiler spread over several fusions; else empty.
    """

    kind: str
    bytes: int
    group: tuple[int, ...]
    hops: tuple[tuple[int, int], ...]
    times: int
    asynchronous: bool
    hidden: tuple[int, int]
    loop: str
    where: str
    name: str
    home: str
    chain: str = ""
    far: bool = False


def base(kind: str) -> str | None:
    """``all-gather`` for all-gather and all-gather-start; None for what is no collective, and for ends."""
    plain = kind.removesuffix("-start")
    return plain if plain in KINDS else None


def inside(program: Program, home: Computation, depth: int = 0) -> list[Instruction]:
    """Collectives in a fused computation and in what it calls."""
    found = []
    for one in home.instructions:
        if base(one.kind):
            found.append(one)
        for name in one.called if depth < 8 and one.kind in ("fusion", "call", "async-start") else ():
            if name in program.computations:
                found += inside(program, program.computations[name], depth + 1)
    return found


def collectives(
    program: Program, home: Computation, times: int, loop: str, devices: int
) -> Iterator[Collective]:
    """Those that run in one computation, `times` a step."""
    order = {one.name: number for number, one in enumerate(home.instructions)}
    fused: dict[str, list[tuple[int, Instruction, Instruction]]] = {}
    for number, one in enumerate(home.instructions):
        kind = base(one.kind)
        sent = _MEGASCALE.search(one.rest) if one.kind == "send" else None
        if sent:
            yield _between_slices(
                program, home, one, sent, (number, _received(home, sent, order), times, loop)
            )
        elif kind is not None:
            end = _end(home, one, order) if one.kind.endswith("-start") else number
            yield _made(program, home, one, one, (number, end, times, loop, devices))
        elif one.kind == "async-start" or one.kind == "fusion":
            inner = program.computations.get(one.attribute("calls") or "")
            for found in inside(program, inner) if inner is not None else ():
                fused.setdefault(_key(found, one), []).append((number, one, found))
    for parts in fused.values():
        first, outer, found = parts[0]
        end = max(number for number, _, _ in parts)
        if outer.kind == "async-start":
            end = _end(home, outer, order)
        yield _made(program, home, outer, found, (first, end, times, loop, devices))


def _key(found: Instruction, outer: Instruction) -> str:
    """Parts of one collective that the TPU compiler spread over several fusions share channel and chain."""
    chain, channel = _CHAIN.search(found.rest), _CHANNEL.search(found.rest)
    if chain is None or channel is None:
        return f"{outer.name}/{found.name}"
    return f"{channel.group(1)}/{chain.group(1)}"


def _end(home: Computation, start: Instruction, order: dict[str, int]) -> int:
    """Place of the instruction that waits for `start`."""
    for user in home.users.get(start.name, []):
        if user.kind.endswith("-done"):
            return order[user.name]
        if user.kind.endswith("-update"):
            return _end(home, user, order)
    return order[start.name]


def _made(
    program: Program,
    home: Computation,
    outer: Instruction,
    one: Instruction,
    place: tuple[int, int, int, str, int],
) -> Collective:
    first, end, times, loop, devices = place
    kind = base(one.kind) or one.kind
    scattered = outer.kind == "fusion" and "all-reduce-scatter" in (outer.attribute("calls") or "")
    # Where a collective is spread over several fusions, those carry the work that hides it.
    between = home.instructions[first + 1 : end + (outer.kind == "fusion")]
    works = sum(cost(program, home, other).flops for other in between) > 0
    return Collective(
        kind="reduce-scatter" if scattered and kind == "all-reduce" else kind,
        bytes=_payload(one),
        group=() if kind == "collective-permute" else first_group(one, devices),
        hops=hops(one),
        times=times,
        asynchronous=end > first and works,
        hidden=(first + 1, max(end + (outer.kind == "fusion"), first + 1)),
        loop=loop,
        where=short(one.where or outer.where),
        name=outer.name,
        home=home.name,
        chain=_key(one, outer) if outer is not one and _CHAIN.search(one.rest) else "",
    )


def _received(home: Computation, sent: re.Match[str], order: dict[str, int]) -> int:
    """Place at which what the slices make of the sent array is waited for."""
    ends = [0]
    for one in home.instructions:
        if one.kind == "recv" and f'rendezvous="{sent.group(1)}"' in one.rest:
            ends += [order[user.name] for user in home.users.get(one.name, []) if user.kind == "recv-done"]
    return max(ends)


def _between_slices(
    program: Program,
    home: Computation,
    one: Instruction,
    sent: re.Match[str],
    place: tuple[int, int, int, str],
) -> Collective:
    first, end, times, loop = place
    works = any(cost(program, home, other).flops for other in home.instructions[first + 1 : end])
    return Collective(
        kind=sent.group(2).lower().replace("_", "-"),
        bytes=one.pieces[0].bytes,
        group=(),
        hops=(),
        times=times,
        asynchronous=works,
        hidden=(first + 1, max(end, first + 1)),
        loop=loop,
        where=short(one.where) or sent.group(1),
        name=one.name,
        home=home.name,
        far=True,
    )


def _payload(one: Instruction) -> int:
    """Bytes of the whole array: the larger of what goes in and what comes out (a start's type holds both)."""
    sizes = [piece.bytes for piece in one.pieces]
    if not one.kind.endswith("-start"):
        kind = base(one.kind)
        return sum(sizes) * _parts(one) if kind == "reduce-scatter" else sum(sizes)
    if one.kind in ("all-gather-start", "collective-permute-start") and len(sizes) > 1:
        marks = [
            size
            for size, piece in zip(sizes, one.pieces, strict=True)
            if piece.dtype == "u32" and not piece.shape
        ]
        rest = sizes[: len(sizes) - len(marks)]
        return sum(rest[len(rest) // 2 :])
    return sum(sizes)


def _parts(one: Instruction) -> int:
    return len(first_group(one, 1))


def short(path: str) -> str:
    """The path that jax recorded without wrappers: ``backward video/stack mlp/up/dot_general``."""
    backward = "transpose(" in path
    again = "rematted_computation" in path
    parts = [
        part
        for part in path.split("/")
        if not re.match(r"(p?jit|jvp|transpose|vmap|remat|checkpoint)\b", part)
    ]
    drop = {
        "while",
        "body",
        "cond",
        "closed_call",
        "checkpoint",
        "rematted_computation",
        "layers",
        "shard_map",
    }
    parts = [part for part in parts if part not in drop and not part.startswith("DualEncoder")]
    words = (
        re.sub(r"\\?'\]\[\\?'", "/", "/".join(parts)).replace("\\", "").replace("['", " ").replace("']", "")
    )
    return ("again " if again else "backward " if backward else "") + words


def loop_name(program: Program, one: Instruction) -> str:
    """What a loop is called in reports: the module that it belongs to, and its direction.

    A loop that the compiler made of another (its last trip peeled off, say) has no path; it takes that of its body's work.
    """
    if one.where:
        name = short(one.where)
        return name if name.strip() not in ("", "backward", "again") else f"{name.strip()} loss".strip()
    body = program.computations.get(one.attribute("body") or "")
    paths = (
        [other.where for other in body.instructions if "/while/" in other.where] if body is not None else []
    )
    found = collections.Counter(short(path[: path.rindex("/while/")]) for path in paths)
    return found.most_common(1)[0][0] if found else one.name


def all_of(program: Program, devices: int) -> list[Collective]:
    """Every collective of a step."""
    found: list[Collective] = []
    for home, times, loop in loops(program):
        found += collectives(program, home, times, loop, devices)
    # One that starts before a loop may travel on inside of it: its parts there are no collectives of their own.
    begun = {one.chain: one.times for one in reversed(found) if one.chain and one.name.startswith(_STARTS)}
    return [
        one
        for one in found
        if not one.chain or one.name.startswith(_STARTS) or begun.get(one.chain, one.times) >= one.times
    ]


def loops(program: Program) -> Iterator[tuple[Computation, int, str]]:
    """Computations that run by themselves, how often, and the path of the innermost loop around them."""
    yield from _loops(program, program.entry, 1, "")


def _loops(
    program: Program, home: Computation, times: int, loop: str
) -> Iterator[tuple[Computation, int, str]]:
    yield home, times, loop
    for one in home.instructions:
        if one.kind == "while":
            body = program.computations.get(one.attribute("body") or "")
            if body is not None:
                yield from _loops(
                    program, body, times * (program.trips(home, one) or 1), loop_name(program, one)
                )
        elif one.kind in ("call", "conditional"):
            for name in (*one.branches, one.attribute("to_apply")):
                if name in program.computations:
                    yield from _loops(program, program.computations[name], times, loop)


def in_layers(loop: str) -> bool:
    """Whether a loop goes over the layers of a tower (`stvl.nn.stack.Stack`)."""
    return loop.rstrip("/").endswith("stack")


def blocking(found: Iterable[Collective], limit: int = 2**20) -> list[Collective]:
    """Collectives over `limit` bytes in a loop over layers with no work between start and end."""
    return [one for one in found if in_layers(one.loop) and not one.asynchronous and one.bytes > limit]
