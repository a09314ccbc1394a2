"""Which process of which job this is: read from options, from variables of a cluster, or from a TPU VM's metadata."""

from __future__ import annotations

import dataclasses
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from stvl.core.errors import ConfigError

#: Port of the coordinator on TPU slices, the one that jax itself takes there.
TPU_PORT = 8482
#: PCI device numbers of TPU chips (v2 and v3, v4, v5p, v5e, v6e, v7x); Google's network cards have the same vendor.
_TPU_CHIPS = frozenset({"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"})
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"

Cluster = Literal["auto", "none", "slurm", "gke", "tpu-vm"]
Metadata = Callable[[str], str | None]


@dataclasses.dataclass(frozen=True)
class Distributed:
    """How a program of several processes comes together.

    Attributes:
        coordinator: HOST:PORT of process 0, the same on every process; empty reads STVL_COORDINATOR, then the cluster.
        processes: how many there are (STVL_PROCESSES).
        process: number of this one, from 0 (STVL_PROCESS).
        cluster: where the three come from when they are not given; `none` starts a program of one process anywhere.
        start_timeout: seconds within which all processes have to arrive.
        peer_timeout: seconds of silence after which a process counts as lost.
    """

    coordinator: str = ""
    processes: int | None = None
    process: int | None = None
    cluster: Cluster = "auto"
    start_timeout: float = 300.0
    peer_timeout: float = 60.0


@dataclasses.dataclass(frozen=True)
class Place:
    """Process `process` of `processes`, whose number 0 listens at `coordinator`.

    Attributes:
        coordinator: HOST:PORT.
        processes, process: how many, and which.
        source: what said so, for messages.
        hosts: names of the machines by process number, where the cluster tells them; else empty.
        local_devices: the accelerators of this machine that belong to this process; None for all.
    """

    coordinator: str
    processes: int
    process: int
    source: str
    hosts: tuple[str, ...] = ()
    local_devices: tuple[int, ...] | None = None

    def name(self, process: int) -> str:
        """``process 3 (host-3)``, or without the host where it is not known."""
        return f"process {process}" + (f" ({self.hosts[process]})" if process < len(self.hosts) else "")


#: The place of the only process of a program.
ALONE = Place("", 1, 0, "alone")


def find_place(
    options: Distributed, variables: Mapping[str, str] | None = None, metadata: Metadata | None = None
) -> Place | None:
    """The place of this process, or None where the program has one process only.

    Options come first, then STVL_COORDINATOR, STVL_PROCESSES and STVL_PROCESS, then SLURM, then a TPU slice on GKE, then
    a TPU VM. Nothing is asked over the network but a TPU VM's metadata server, and only where TPU chips are present.

    Args:
        options: what the user said.
        variables: environment variables; None for those of this process.
        metadata: attribute name -> value of a TPU VM; None asks the metadata server.

    Raises:
        ConfigError: some of the three values are given and others are not, or they do not fit each other.
    """
    found = os.environ if variables is None else variables
    if options.start_timeout <= 0 or options.peer_timeout <= 0:
        raise ConfigError(
            f"timeouts are above 0 seconds, found start {options.start_timeout:g}, peer {options.peer_timeout:g}"
        )
    place = _plain(options, found)
    if place is None and options.cluster in ("auto", "slurm"):
        place = _slurm(found)
    if place is None and options.cluster in ("auto", "gke"):
        place = _gke(found)
    if place is None and options.cluster in ("auto", "tpu-vm"):
        ask = metadata or (_ask if options.cluster == "tpu-vm" or has_tpu() else None)
        place = None if ask is None else _tpu_vm(ask, found)
    if place is None and options.cluster not in ("auto", "none"):
        raise ConfigError(f"--cluster {options.cluster}: {_MISSING[options.cluster]}")
    if place is None or (place.processes == 1 and place.source != "options"):
        return None
    return _checked(place)


_MISSING = {
    "slurm": "SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_NTASKS and SLURM_PROCID are not all set: start the program with srun",
    "gke": "TPU_WORKER_ID and TPU_WORKER_HOSTNAMES are not both set: GKE sets them in pods that ask for google.com/tpu",
    "tpu-vm": "the metadata server does not tell agent-worker-number and worker-network-endpoints",
}


def _checked(place: Place) -> Place:
    host, colon, port = place.coordinator.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(
            f"the coordinator reads HOST:PORT, found {place.coordinator!r} (from {place.source})"
        )
    if place.processes < 1 or not 0 <= place.process < place.processes:
        raise ConfigError(
            f"processes are numbered from 0 to processes - 1: found process {place.process} of {place.processes} "
            f"(from {place.source})"
        )
    return place


def _plain(options: Distributed, variables: Mapping[str, str]) -> Place | None:
    given: dict[str, str | int] = {}
    for name in ("coordinator", "processes", "process"):
        value = getattr(options, name)
        if value not in ("", None):
            given[name] = value
        elif options.cluster == "auto" and variables.get(f"STVL_{name.upper()}"):
            given[name] = variables[f"STVL_{name.upper()}"]
    if not given:
        return None
    missing = [name for name in ("coordinator", "processes", "process") if name not in given]
    if missing:
        words = ", ".join(f"--{name} (or STVL_{name.upper()})" for name in missing)
        raise ConfigError(
            f"a program of several processes needs all three of coordinator, processes and process; found "
            f"{', '.join(given)}; missing: {words}"
        )
    numbers = {name: _whole(name, given[name]) for name in ("processes", "process")}
    return Place(str(given["coordinator"]), numbers["processes"], numbers["process"], "options")


def _whole(name: str, value: str | int) -> int:
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{name} is a whole number, found {value!r}") from None


def _slurm(variables: Mapping[str, str]) -> Place | None:
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
    if not all(variables.get(name) for name in names):
        return None
    # `srun -n 1` inside a larger allocation keeps the allocation's SLURM_NTASKS.
    processes = int(variables.get("SLURM_STEP_NUM_TASKS") or variables["SLURM_NTASKS"])
    nodes = tuple(expand_nodes(variables["SLURM_STEP_NODELIST"]))
    # The upper 4,096 ports: jobs that share a node take different ones.
    port = 65536 - 4096 + int(variables["SLURM_JOB_ID"]) % 4096
    hosts = nodes if len(nodes) == processes else ()
    return Place(
        f"{nodes[0]}:{port}",
        processes,
        int(variables["SLURM_PROCID"]),
        "SLURM",
        hosts,
        _slurm_devices(variables, processes, len(nodes)),
    )


def _slurm_devices(variables: Mapping[str, str], processes: int, nodes: int) -> tuple[int, ...] | None:
    """One accelerator a task where a node has several tasks and SLURM has not divided the accelerators itself."""
    visible = [name for name in variables.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    divided = variables.get("SLURM_GPUS_PER_TASK") or len(visible) == 1
    local = variables.get("SLURM_LOCALID", "")
    return (int(local),) if processes > nodes and local and visible and not divided else None


def expand_nodes(text: str) -> Iterator[str]:
    """SLURM's short form of host names, spelt out: ``n[01-03,7],gpu2`` gives n01, n02, n03, n7, gpu2."""
    for prefix, ranges, suffix in re.findall(r"([^,\[\]]+)(?:\[([^\]]*)\])?([^,\[\]]*)", text):
        for part in ranges.split(",") if ranges else [""]:
            first, dash, last = part.partition("-")
            if not dash:
                yield f"{prefix}{part}{suffix}"
                continue
            for number in range(int(first), int(last) + 1):
                yield f"{prefix}{number:0{len(first)}d}{suffix}"


def _gke(variables: Mapping[str, str]) -> Place | None:
    hosts = _words(variables.get("TPU_WORKER_HOSTNAMES", ""))
    if not hosts or not variables.get("TPU_WORKER_ID", "").isdigit():
        return None
    return _slice_place(hosts, int(variables["TPU_WORKER_ID"]), variables.get, "GKE")


def _tpu_vm(metadata: Metadata, variables: Mapping[str, str]) -> Place | None:
    worker, endpoints = metadata("agent-worker-number"), metadata("worker-network-endpoints")
    if worker is None or endpoints is None:
        return None
    # An endpoint is a host name, or NAME:ID:ADDRESS on older images.
    hosts = [endpoint.split(":")[-1] for endpoint in _words(endpoints)]
    lines = (line.partition(":") for line in (metadata("tpu-env") or "").splitlines())
    told = {name.strip(): value.strip().strip("'\"") for name, _, value in lines}
    return _slice_place(
        hosts, int(worker), lambda name: variables.get(name) or told.get(name), "TPU VM metadata"
    )


def _slice_place(hosts: list[str], worker: int, read: Callable[[str], str | None], source: str) -> Place:
    """Workers of all slices in one row: slice 0 first. The coordinator is worker 0 of slice 0."""
    slices, number = int(read("MEGASCALE_NUM_SLICES") or 1), int(read("MEGASCALE_SLICE_ID") or 0)
    head = (read("MEGASCALE_COORDINATOR_ADDRESS") or "").split(":")[0] if slices > 1 else hosts[0]
    if not head:
        raise ConfigError(f"{slices} slices ({source}), but MEGASCALE_COORDINATOR_ADDRESS is not set")
    return Place(
        f"{head}:{TPU_PORT}",
        len(hosts) * slices,
        worker + number * len(hosts),
        source,
        tuple(hosts) if slices == 1 else (),
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def has_tpu(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether a TPU chip sits on the PCI bus of this machine."""
    for device in devices.glob("*"):
        try:
            vendor, number = (
                (device / name).read_text(encoding="ascii").strip() for name in ("vendor", "device")
            )
        except OSError:
            continue
        if vendor == "0x1ae0" and number in _TPU_CHIPS:
            return True
    return False


def _ask(name: str) -> str | None:
    request = urllib.request.Request(_METADATA + name, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return None
