"""Is a program of several processes fit to train? Devices, a sum over all of them, and the folder of checkpoints."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

from stvl.core.paths import AnyPath, make_folder, reach, to_path
from stvl.dist.hub import Hub
from stvl.dist.peers import Peers, PeersError, disagreements
from stvl.dist.place import Distributed, Place, find_place
from stvl.dist.start import own_facts, start

#: Seconds that process 0 waits for answers beyond the time that each process gives itself.
_SLACK = 5.0


@dataclasses.dataclass(frozen=True)
class Health:
    """What process 0 found out.

    Attributes:
        processes: how many there should be, and where the number comes from.
        source: what said so: options, SLURM, GKE, TPU VM metadata; ``one process`` where there is no other.
        start_seconds: from the first call to the last arrival, jax's own connections included; None when not all came.
        rows: per process its facts and the outcome of each stage.
        versions: of process 0.
        problems: what is wrong, each in a sentence; empty where all is well.
    """

    processes: int
    source: str
    start_seconds: float | None
    rows: tuple[dict[str, Any], ...]
    versions: dict[str, str]
    problems: tuple[str, ...]


def examine(options: Distributed, checkpoint: str = "", timeout: float = 120.0) -> Health | bool:
    """Start, look at everything, and bring it together on process 0; the others say whether their own checks passed.

    Neither a process that is missing nor a device that hangs makes it wait longer than about ``start_timeout + timeout``.
    A thread may be left hanging, so the caller should end the process when it has printed what it wants.

    Args:
        options: how the processes come together.
        checkpoint: folder to write to from every process: a path, or ``gs://BUCKET/...``; empty for none.
        timeout: seconds for everything after the start.

    Raises:
        PeersError: on processes other than 0, when the start fails.
        ConfigError: options that do not fit each other.
    """
    place = find_place(options)
    try:
        started = start(options, strict=False)
    except PeersError as problem:
        if place is None or place.process:
            raise
        return _not_started(place, problem)
    peers, place = started.peers, started.place or Place("", 1, 0, "one process")
    own = _stages(peers, place, checkpoint, time.monotonic() + timeout)
    answers = peers.gather("health", own, timeout + _SLACK)
    if place.process:
        peers.leave()
        return all(outcome["ok"] for outcome in own.values())
    facts = peers.facts if isinstance(peers, Hub) else {0: own_facts()}
    rows = [_row(n, facts.get(n, {}), answers.values.get(n)) for n in range(place.processes)]
    if isinstance(peers, Hub):
        # jax's coordinator lives in this process: the others go first.
        peers.await_others(_SLACK)
        peers.leave()
    return Health(
        place.processes,
        place.source,
        started.seconds,
        tuple(rows),
        facts[0]["same"],
        tuple([*disagreements(facts), *_problems(rows, place.processes, bool(checkpoint))]),
    )


def _not_started(place: Place, problem: PeersError) -> Health:
    facts: dict[int, dict[str, Any]] = problem.facts
    rows = tuple(_row(number, facts.get(number, {}), None) for number in range(place.processes))
    versions = facts.get(0, own_facts())["same"]
    told = (str(problem), *disagreements(facts))
    return Health(place.processes, place.source, None, rows, versions, told)


def _row(number: int, facts: dict[str, Any], outcome: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "process": number,
        "host": facts.get("host"),
        "arrived": bool(facts),
        "versions": facts.get("same", {}),
        "stages": outcome or {},
    }


def _stages(peers: Peers, place: Place, checkpoint: str, deadline: float) -> dict[str, Any]:
    """Run the stages of this process; each outcome is ``{"ok", "seconds", "value" or "error"}``."""
    done: dict[str, Any] = {}

    def left() -> float:
        return max(deadline - time.monotonic(), 0.0)

    def run(name: str, work: Callable[[], Any]) -> None:
        done[name] = bounded(work, left())

    def everyone(name: str) -> None:
        peers.gather(f"health/{name}", None, left() + _SLACK)

    run("devices", _devices)
    run("psum", _psum)
    if checkpoint:
        probe = Probe(checkpoint, peers.token, place.process)
        run("write", probe.write)
        everyone("written")
        if done["write"]["ok"]:
            run("see", probe.see_first)
        everyone("seen")
        if done["write"]["ok"]:
            run("clean", probe.clean)
    return done


def bounded(work: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Run `work` in a thread for at most `seconds`; its value or its error, and how long it took."""
    found: dict[str, Any] = {}
    begin = time.monotonic()

    def run() -> None:
        try:
            found["value"] = work()
        except Exception as problem:  # every error of a check is a finding
            found["error"] = f"{type(problem).__name__}: {problem}".strip().splitlines()[0]

    thread = threading.Thread(target=run, name="stvl-health", daemon=True)
    thread.start()
    thread.join(seconds)
    taken = round(time.monotonic() - begin, 3)
    if thread.is_alive():
        return {"ok": False, "seconds": taken, "error": f"no answer within {seconds:.0f} s"}
    return {"ok": "error" not in found, "seconds": taken, **found}


def _devices() -> dict[str, Any]:
    import jax

    local = jax.local_devices()
    return {
        "local": len(local),
        "all": jax.device_count(),
        "processes": jax.process_count(),
        "kind": local[0].device_kind,
        "platform": local[0].platform,
    }


def _psum() -> float:
    """``sum of 1 ... n`` over n devices, each of which brings one number; every process reads the sum.

    Raises:
        ValueError: another sum.
    """
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    count = jax.device_count()
    mesh = Mesh(np.asarray(jax.devices()), ("all",))
    numbers = np.arange(1, count + 1, dtype=np.float32)
    rows = NamedSharding(mesh, PartitionSpec("all"))
    array = jax.make_array_from_callback((count,), rows, lambda index: numbers[index])
    add = jax.shard_map(
        lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=PartitionSpec("all"), out_specs=PartitionSpec()
    )
    found = float(np.asarray(jax.jit(add)(array).addressable_data(0))[0])
    if found != numbers.sum():
        raise ValueError(f"the sum over {count} devices is {found}, expected {numbers.sum()}")
    return found


class Probe:
    """Small files in a folder of checkpoints, one a process.

    Args:
        folder: a path, or ``gs://BUCKET/...``.
        token: the same on every process of this start, and on no other.
        process: number of this process.
    """

    def __init__(self, folder: str, token: str, process: int) -> None:
        self.folder, self.token, self.process = folder, token, process

    def _path(self, process: int) -> AnyPath:
        return reach(to_path(self.folder)) / f".stvl-probe-{self.token}-{process}"

    def write(self) -> str:
        """Write this process's file and read it back.

        Raises:
            OSError: what the file system says, or another text than was written.
            ConfigError: no such bucket, or gcsfs is missing.
        """
        path, text = self._path(self.process), f"{self.token} {self.process}"
        make_folder(path.parent)
        path.write_text(text)
        found = path.read_text()
        if found != text:
            raise OSError(f"{path} was written as {text!r} and reads {found!r}")
        return str(path.parent)

    def see_first(self) -> bool:
        """Read process 0's file.

        Raises:
            OSError: it is not there: the folder is another one on each machine.
        """
        found = self._path(0).read_text()
        if found != f"{self.token} 0":
            raise OSError(f"process 0's file reads {found!r}")
        return True

    def clean(self) -> None:
        """Remove this process's file; the folder stays."""
        self._path(self.process).unlink(missing_ok=True)


def _problems(rows: list[dict[str, Any]], processes: int, probed: bool) -> list[str]:
    told = []
    for row in rows:
        who = f"process {row['process']} ({row['host']})"
        stages = row["stages"]
        if not stages:
            told.append(f"{who} did not report what it found")
        for name, outcome in stages.items():
            if not outcome["ok"]:
                told.append(f"{who}, {_WORDS[name]}: {outcome['error']}")
    counts = {row["process"]: _value(row, "devices") for row in rows}
    counts = {number: value for number, value in counts.items() if value is not None}
    total = sum(value["local"] for value in counts.values())
    if len(counts) == len(rows):
        for number, value in counts.items():
            if (value["all"], value["processes"]) != (total, processes):
                told.append(
                    f"process {number} sees {value['all']} devices of {value['processes']} processes; the processes "
                    f"have {total} devices together and are {processes}"
                )
        locals_ = {value["local"] for value in counts.values()}
        if len(locals_) > 1:
            each = ", ".join(f"{value['local']} on process {number}" for number, value in counts.items())
            told.append(f"the processes have different numbers of devices: {each}")
    if probed and any("see" in row["stages"] and not row["stages"]["see"]["ok"] for row in rows):
        told.append("checkpoints need one folder that every process sees: a shared file system, or gs://")
    return told


_WORDS = {
    "devices": "devices",
    "psum": "a sum over all devices",
    "write": "writing to the checkpoint folder",
    "see": "reading process 0's file",
    "clean": "removing its file from the checkpoint folder",
}


def _value(row: dict[str, Any], stage: str) -> Any:
    return row["stages"].get(stage, {}).get("value")
