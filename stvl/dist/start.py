"""The start of a program of several processes, and its end: bounded in time, with names where something is missing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import signal
import socket
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from stvl.core.errors import StvlError
from stvl.dist.hub import Hub
from stvl.dist.peers import CLEAN, End, Peers, end_process, listed
from stvl.dist.place import ALONE, Distributed, Place, find_place
from stvl.dist.spoke import Spoke

#: Packages whose versions have to be the same on all processes.
PACKAGES = ("stvl", "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint")
#: Seconds that jax may take to connect processes that have all arrived.
_CONNECT = 120


class Started:
    """A program that has started: use it as a context, so that the end of one process ends the others in bounded time.

    Attributes:
        place: which process this is; None where there is only one.
        peers: the other processes.
        seconds: what the start took.
    """

    def __init__(self, place: Place | None, peers: Peers, seconds: float, end: End = end_process) -> None:
        self.place, self.peers, self.seconds, self._end = place, peers, seconds, end

    def describe(self) -> str:
        """``4 processes arrived in 2.1 s (SLURM): n1, n2, n3, n4``, for process 0 to print; else empty."""
        if not isinstance(self.peers, Hub) or self.place is None:
            return ""
        hosts = [str(facts.get("host")) for _, facts in sorted(self.peers.facts.items())]
        return (
            f"{self.place.processes} processes arrived in {self.seconds:.1f} s ({self.place.source}): "
            f"{listed(list(dict.fromkeys(hosts)))}"
        )

    def __enter__(self) -> Started:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.place is None:
            return
        code = exit_code(value)
        if code in CLEAN:
            # Waits for the others: the coordinator must not go away while they still save.
            _shutdown()
            self.peers.leave(code, "" if value is None else str(value))
            return
        self._fail(value, code)

    def _fail(self, value: BaseException | None, code: int) -> None:
        """End the others and then this process, without waiting for jax, whose own end would wait for the others."""
        known = isinstance(value, (StvlError, SystemExit, KeyboardInterrupt))
        # A collective that breaks is the other side of a process that died, of which the peers hear in the same moment.
        if not known and self.peers.is_ending(2.0):
            time.sleep(2 * self.peers.grace)
        if not known and value is not None:
            traceback.print_exception(value)
        text = str(value) if isinstance(value, StvlError) else f"{type(value).__name__}: {value}"
        self.peers.leave(code, text.strip() or "no message")
        self._end(text, code)


def exit_code(value: BaseException | None) -> int:
    """The exit code that an exception stands for; 0 where there is none."""
    if value is None:
        return 0
    if isinstance(value, SystemExit):
        return value.code if isinstance(value.code, int) else int(value.code is not None)
    if isinstance(value, KeyboardInterrupt):
        return 130
    return int(getattr(value, "exit_code", 1))


def start(
    options: Distributed | None = None, job: str = "", strict: bool = True, end: End = end_process
) -> Started:
    """Bring the processes of a program together and start `jax.distributed`; nothing happens where there is only one.

    To be called before anything that asks jax for its devices. All processes first meet on the coordinator's port
    without jax, which would end them after its timeout without a name; then jax takes that port.

    Args:
        options: see `Distributed`; None for its defaults.
        job: what the processes have to agree on besides versions, such as `digest` of the config.
        strict: refuse versions that differ; `stvl doctor` shows them instead.
        end: what ends this process when another one is gone.

    Raises:
        PeersError: naming the processes that did not arrive, or the versions in which they differ.
        ConfigError: options or variables that do not fit each other, or a port that is taken.
    """
    options = options or Distributed()
    place = find_place(options)
    if place is None:
        return Started(None, Peers(ALONE, end=end), 0.0)
    begin = time.monotonic()
    if place.process == 0:
        peers: Hub | Spoke = Hub(place, options.peer_timeout, end)
        peers.meet(own_facts(job), options.start_timeout, strict)
    else:
        peers = Spoke(place, options.peer_timeout, end)
        peers.meet(own_facts(job), options.start_timeout)
    _initialise(place, options.peer_timeout)
    return Started(place, peers, time.monotonic() - begin, end)


def own_facts(job: str = "") -> dict[str, Any]:
    """What a process tells of itself; entries of ``same`` have to be equal on all processes."""
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "-"
    from stvl import __version__

    # Run from a checkout, the package may not be installed, or in an older version.
    versions["stvl"] = __version__
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "same": versions | ({"job": job} if job else {}),
    }


def digest(config: str, overrides: tuple[str, ...]) -> str:
    """Twelve hex digits of a config's text and the overrides: processes that train different things have different ones."""
    found = hashlib.sha256()
    path = Path(config)
    found.update(path.read_bytes() if path.is_file() else config.encode())
    for text in overrides:
        found.update(b"\0" + text.encode())
    return found.hexdigest()[:12]


def _initialise(place: Place, peer_timeout: float) -> None:
    import jax

    if not os.environ.get("JAX_CPU_COLLECTIVES_IMPLEMENTATION"):
        # Without one, programs over several processes do not run on CPUs; accelerators ignore it.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    before = signal.getsignal(signal.SIGTERM)
    if "jax_enable_preemption_service" in jax.config.values:
        # It would take SIGTERM away from the run's own handler, which knows what can be lost.
        jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process,
        local_device_ids=None if place.local_devices is None else list(place.local_devices),
        cluster_detection_method="deactivate",
        initialization_timeout=_CONNECT,
        # The peers notice first, and say who; jax's own check is there if they do not.
        heartbeat_timeout_seconds=max(10, int(2 * peer_timeout)),
    )
    if threading.current_thread() is threading.main_thread() and before is not None:
        # Where jax has no such setting, it has taken SIGTERM all the same, and nothing would end this process any more.
        signal.signal(signal.SIGTERM, before)


def _shutdown() -> None:
    import jax

    jax.distributed.shutdown()
