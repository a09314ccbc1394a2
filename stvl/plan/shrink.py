"""Ways to make a step need less memory: what each saves by the planner's own figures, and what it costs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from stvl.core.errors import ConfigError
from stvl.dist.mesh import AXIS_NAMES, layout
from stvl.nn.stack import REMAT
from stvl.plan.analytic import sizes_of
from stvl.plan.chips import USABLE
from stvl.plan.need import Need, Room, need
from stvl.plan.planner import with_batch
from stvl.plan.topology import Topology
from stvl.plan.whatif import mesh_words, with_remat
from stvl.train.experiment import Experiment

Change = Callable[[Experiment], Experiment]

#: Share of the need that a remedy has to save to stand before the others.
WORTH = 0.01


@dataclasses.dataclass(frozen=True)
class Way:
    """A change of the experiment that may save memory.

    Attributes:
        group: one way of a group is enough: the later ones undo the earlier.
        change: makes it.
        words: spells it, from the changed experiment.
        price: what it costs besides time, in words.
        same: whether training gives the same result, up to rounding.
    """

    group: str
    change: Change
    words: Callable[[Experiment], tuple[str, ...]]
    price: str = ""
    same: bool = True


@dataclasses.dataclass(frozen=True)
class Remedy:
    """One or several ways together, with what they are predicted to do.

    Attributes:
        words: to be added to the command.
        saves: bytes on one device.
        left: bytes that are then needed.
        fits: whether `left` is within the device's limit.
        slower: time of a step a sample over that of now; 1 where nothing changes.
        price: what it costs besides, in words.
        same: whether training gives the same result, up to rounding.
        ways: how many ways it is made of.
    """

    words: tuple[str, ...]
    saves: int
    left: int
    fits: bool
    slower: float
    price: str
    same: bool
    ways: int = 1


@dataclasses.dataclass(frozen=True)
class Case:
    """What is too large, and for what.

    Attributes:
        now: the step's need by analysis.
        total: bytes that it needs, as well as is known: what the compiler says, else the analysis.
        temp: of it, what is there during the step only.
        topology: the machine.
        room: one device of it.
    """

    now: Need
    total: int
    temp: int
    topology: Topology
    room: Room

    def left(self, after: Need) -> int:
        """Bytes needed after a change: state and batch by shardings, temporaries in proportion to the analysis."""
        return (
            self.total
            - self.now.held
            + after.held
            - self.temp
            + round(self.temp * after.temp / self.now.temp)
        )


def remedies(case: Case, count: int = 3) -> list[Remedy]:
    """The `count` cheapest remedies: those that are enough first, then the others, most bytes first.

    Cheap is what leaves the result as it is and takes the least time. Where none alone is enough, a combination of them
    that is stands first.
    """
    tried: list[tuple[Way, Remedy]] = []
    for way in ways(case.now.experiment, case.topology):
        found = predict(case, (way,))
        if found is None or found.saves <= 0:
            continue
        # Without kernels the policy "attention" is "full", and a small loss is one tile: one line is enough.
        equal = [item for item in tried if (item[0].group, item[1].left) == (way.group, found.left)]
        if equal and way.group != "remat":
            continue
        tried = [item for item in tried if item not in equal]
        tried.append((way, found))
    wider = list(allocator(case))
    alone = [*wider, *(remedy for _, remedy in tried)]
    enough = sorted((one for one in alone if one.fits), key=lambda one: _rank(case, one))
    rest = sorted((one for one in alone if not one.fits), key=lambda one: (not one.same, -one.saves))
    together = [] if enough else [combination(case, tried), *(_with(one, case, tried) for one in wider)]
    best = sorted((one for one in together if one), key=lambda one: _rank(case, one))
    return [*best[:1], *enough, *rest][:count]


def _rank(case: Case, one: Remedy) -> tuple[bool, bool, float]:
    """Smallest for the cheapest: what saves next to nothing last, then what changes the result, then what takes time."""
    return one.saves < WORTH * case.total, not one.same, round(one.slower, 3)


def _with(wider: Remedy, case: Case, tried: Sequence[tuple[Way, Remedy]]) -> Remedy | None:
    """The ways that are enough together with a larger share of the device's memory."""
    place = dataclasses.replace(case.room, limit=case.room.whole)
    found = combination(dataclasses.replace(case, room=place), tried)
    if found is None:
        return None
    return dataclasses.replace(
        found,
        words=(*wider.words, *found.words),
        saves=found.saves + wider.saves,
        left=found.left - wider.saves,
        price=f"{wider.price}; {found.price}",
        ways=found.ways + 1,
    )


def predict(case: Case, chosen: Sequence[Way]) -> Remedy | None:
    """What some ways do together; None where the experiment cannot take them."""
    experiment, words = case.now.experiment, {}
    try:
        for way in chosen:
            experiment = way.change(experiment)
            words[way.group] = way.words(experiment)
        after = need(experiment, case.topology)
    except ConfigError:
        # Sizes that do not divide, a policy that the mesh refuses: no way out, and not what the user asked about.
        return None
    left = case.left(after)
    batch = experiment.loader.batch / case.now.experiment.loader.batch
    return Remedy(
        words=tuple(word for each in words.values() for word in each),
        saves=case.total - left,
        left=left,
        fits=left <= case.room.limit,
        slower=after.cost / case.now.cost / batch,
        price="; ".join(dict.fromkeys(way.price for way in chosen if way.price)),
        same=all(way.same for way in chosen),
        ways=len(words),
    )


def combination(case: Case, tried: Sequence[tuple[Way, Remedy]]) -> Remedy | None:
    """Ways added up until they are enough, those that leave the result as it is first; None where all are not enough."""
    best: dict[str, tuple[Way, Remedy]] = {}
    for way, remedy in tried:
        if way.group not in best or remedy.saves > best[way.group][1].saves:
            best[way.group] = way, remedy
    order = sorted(best.values(), key=lambda item: (not item[1].same, -item[1].saves))
    chosen: list[Way] = []
    for way, _ in order:
        found = predict(case, [*chosen, way])
        if found is None:
            continue
        chosen.append(way)
        while not found.fits and way.group in ("parts", "batch"):
            # Halves of halves, as long as a device keeps a sample.
            more = predict(case, [*chosen, way])
            if more is None or more.left >= found.left:
                break
            chosen.append(way)
            found = more
        if found.fits:
            return found
    return None


def ways(experiment: Experiment, topology: Topology) -> Iterator[Way]:
    """Everything that may be tried on an experiment, with what it costs."""
    yield from _loss(experiment, topology)
    video = experiment.model.video.remat
    for policy, price in (
        ("attention", "blocks are computed again in the backward pass, attention kernels are not"),
        ("full", "blocks are computed again in the backward pass"),
    ):
        if policy in REMAT and video not in (policy, "full"):
            yield Way(
                "remat",
                lambda one, policy=policy: with_remat(one, policy),
                lambda one, policy=policy: (f"model.video.remat={policy}", f"model.text.remat={policy}"),
                price,
            )
    yield Way(
        "parts",
        lambda one: dataclasses.replace(one, grad_cache=one.grad_cache * 2),
        lambda one: (f"grad_cache={one.grad_cache}",),
        "towers run forward twice"
        + (", drop path falls on other samples" if getattr(experiment.model.video, "drop_path", 0.0) else ""),
    )
    mesh = experiment.mesh
    if topology.devices > 1 and (mesh.fsdp, mesh.tensor) == (1, 1):
        yield Way(
            "mesh",
            lambda one: dataclasses.replace(one, mesh=layout("fsdp", topology.devices, topology.slices)),
            mesh_words,
            "parameters travel in each layer",
        )
    elif mesh.gather == "step":
        yield Way(
            "mesh",
            lambda one: dataclasses.replace(one, mesh=dataclasses.replace(one.mesh, gather="layer")),
            lambda one: ("mesh.gather=layer",),
            "parameters travel in each layer",
        )
    yield from _changing(experiment, topology)


def _changing(experiment: Experiment, topology: Topology) -> Iterator[Way]:
    """Ways after which training gives another result."""
    if experiment.dtype == "float32" and topology.platform != "cpu":
        yield Way(
            "dtype",
            lambda one: dataclasses.replace(one, dtype="bfloat16"),
            lambda one: ("dtype=bfloat16",),
            "products in bfloat16: the result changes",
            same=False,
        )
    if experiment.ema is not None:
        yield Way(
            "ema",
            lambda one: dataclasses.replace(one, ema=None),
            lambda one: ("ema=none",),
            "no average to evaluate with",
            same=False,
        )
    yield Way(
        "batch",
        lambda one: with_batch(one, one.loader.batch // 2),
        lambda one: (f"loader.batch={one.loader.batch}",),
        "fewer negatives and other updates: the result changes",
        same=False,
    )


def _loss(experiment: Experiment, topology: Topology) -> Iterator[Way]:
    """Forms of the loss that hold a tile of the pair matrix where it is whole: a ring where the mesh splits the batch."""
    sizes = dict(zip(AXIS_NAMES, sizes_of(experiment.mesh, topology.devices), strict=True))
    impl = "ring" if sizes["data"] * sizes["fsdp"] > 1 else "chunked"

    def with_form(chunk: int | None) -> Change:
        return lambda one: dataclasses.replace(
            one, loss=dataclasses.replace(one.loss, impl=impl, chunk=chunk or one.loss.chunk)
        )

    word = f"loss.impl={impl}"
    price = "each tile of the loss is computed again"
    yield Way("loss", with_form(None), lambda one: (word,), price)
    yield Way("loss", with_form(64), lambda one: (word, "loss.chunk=64"), f"{price}, in small pieces")


def allocator(case: Case, environment: Mapping[str, str] = os.environ) -> Iterator[Remedy]:
    """On a GPU whose allocator takes much less than there is: a larger share of it."""
    more = case.room.whole - case.room.limit
    if case.topology.platform != "gpu" or more < 0.05 * case.room.whole:
        return
    share = USABLE["gpu"]
    shared = (
        ""
        if environment.get("XLA_PYTHON_CLIENT_PREALLOCATE")
        else ", XLA_PYTHON_CLIENT_PREALLOCATE=false if not all of it is free"
    )
    yield Remedy(
        words=(f"XLA_PYTHON_CLIENT_MEM_FRACTION={share:.2f}",),
        saves=more,
        left=case.total - more,
        fits=case.total <= case.room.whole,
        slower=1.0,
        price=f"set before the command; other programs on the GPU get less{shared}",
        same=True,
    )
