"""Trainings as several real processes under `jax.distributed`, for tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fixtures import ROOT


class Processes:
    """``stvl train CONFIG ...`` as `count` processes of `devices` fake devices each, with a pipe for what they print.

    Args:
        words: after ``stvl train``.
        count, devices: of the program.
        logs: folder for what each process prints.
        env: variables besides those that every test run needs.
    """

    def __init__(
        self, words: list[str], count: int, devices: int, logs: Path, env: dict[str, str] | None = None
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
        flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
        shared = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | (env or {})
        if count > 1:
            shared |= {"STVL_COORDINATOR": address, "STVL_PROCESSES": str(count)}
        self._logs = [logs / f"{number}.txt" for number in range(count)]
        self.each: list[subprocess.Popen[bytes]] = []
        for number, log in enumerate(self._logs):
            with open(log, "w") as out:
                self.each.append(
                    subprocess.Popen(
                        [sys.executable, "-u", "-m", "stvl", "train", *words],
                        cwd=ROOT,
                        env=shared | ({"STVL_PROCESS": str(number)} if count > 1 else {}),
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        stdin=subprocess.DEVNULL,
                    )
                )

    def said(self, number: int = 0) -> str:
        """What a process has printed so far."""
        return self._logs[number].read_text()

    def until(self, happened: Callable[[], bool], seconds: float = 240) -> None:
        """Wait; fail where a process ends first."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert all(process.poll() is None for process in self.each), self.everything()
            assert time.monotonic() < deadline, self.everything()
            time.sleep(0.01)

    def codes(self, seconds: float = 300) -> list[int]:
        """Wait for all to end."""
        try:
            return [process.wait(seconds) for process in self.each]
        finally:
            for process in self.each:
                process.kill()

    def everything(self) -> str:
        """What all have printed."""
        return "\n".join(f"--- process {number}\n{self.said(number)}" for number in range(len(self.each)))


def logged(run: Path) -> dict[int, dict[str, Any]]:
    """Rows of a run's log that are of a step, by step; a step that was run twice must have drawn the same clips."""
    found: dict[int, dict[str, Any]] = {}
    file = run / "log.jsonl"
    for line in file.read_text().splitlines() if file.exists() else ():
        row = json.loads(line)
        if "ids_crc" in row:
            assert found.get(row["step"], row)["ids_crc"] == row["ids_crc"]
            found[row["step"]] = row
    return found
