"""Options of the commands that run as several processes, and the table of ``stvl doctor --distributed``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from stvl.cli.main import console
from stvl.dist.health import Health, examine
from stvl.dist.peers import PeersError
from stvl.dist.place import Cluster, Distributed


@dataclasses.dataclass(kw_only=True)
class ProcessArgs:
    """How the processes of a program find each other; nothing of it is needed under SLURM, on GKE and on TPU VMs."""

    coordinator: str = ""
    """HOST:PORT of process 0, on every process (or STVL_COORDINATOR)."""
    processes: int | None = None
    """How many processes there are (or STVL_PROCESSES)."""
    process: int | None = None
    """Number of this process, from 0 (or STVL_PROCESS)."""
    cluster: Cluster = "auto"
    """Where the three come from when they are not given; `none` starts one process alone anywhere."""
    start_timeout: float = 300.0
    """Seconds within which all processes have to arrive."""
    peer_timeout: float = 60.0
    """Seconds of silence after which another process is lost and this one ends with exit code 76."""

    def options(self) -> Distributed:
        """The options as `stvl.dist.start` takes them."""
        return Distributed(
            coordinator=self.coordinator,
            processes=self.processes,
            process=self.process,
            cluster=self.cluster,
            start_timeout=self.start_timeout,
            peer_timeout=self.peer_timeout,
        )


def doctor(options: Distributed, checkpoint: str, timeout: float, file: Path | None) -> int:
    """Examine all processes; process 0 prints the table. Ends the process itself where a check may be hanging still."""
    try:
        health = examine(options, checkpoint, timeout)
    except PeersError as problem:
        # For a scheduler 76 means to start again; here it is the finding.
        problem.exit_code = 1
        raise
    if isinstance(health, bool):
        return _end(int(not health))
    print_health(health)
    if file is not None:
        text = json.dumps(dataclasses.asdict(health), indent=1) + "\n"
        file.write_text(text, encoding="utf-8")
        print(f"written: {file}")
    return _end(int(bool(health.problems)), health.processes)


def _end(code: int, processes: int = 2) -> int:
    """`code`; where there are other processes, end here: jax would wait for them, and for checks that hang."""
    if processes > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def print_health(health: Health) -> None:
    """The table and the problems."""
    from rich.table import Table

    arrived = sum(row["arrived"] for row in health.rows)
    seconds = "" if health.start_seconds is None else f", started in {health.start_seconds:.1f} s"
    print(f"processes: {arrived} of {health.processes} arrived ({health.source}){seconds}")
    print("versions:  " + ", ".join(f"{name} {number}" for name, number in health.versions.items()))
    table = Table()
    for column in ("process", "host", "devices here / all", "sum over all", "folder", "sees process 0"):
        table.add_column(column)
    for row in health.rows:
        table.add_row(*_cells(row))
    console().print(table)
    for problem in health.problems:
        print(f"problem:   {problem}")
    if not health.problems:
        print("all is well")


def _cells(row: dict[str, Any]) -> list[str]:
    stages = row["stages"]
    found = stages.get("devices", {}).get("value")
    devices = f"{found['local']} {found['kind']} / {found['all']}" if found else _outcome(stages, "devices")
    host = str(row["host"]) if row["arrived"] else "did not arrive"
    others = (_outcome(stages, name) for name in ("psum", "write", "see"))
    return [str(row["process"]), host, devices, *others]


def _outcome(stages: dict[str, Any], name: str) -> str:
    if name not in stages:
        return "-"
    return f"{'yes' if stages[name]['ok'] else 'NO'} ({stages[name]['seconds']:.1f} s)"
