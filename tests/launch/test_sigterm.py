"""SIGTERM to one of two processes: both stop after the same step, save, and exit with 75."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.fixtures import ROOT

CONFIG = """
from tests.fixtures import tiny_experiment


def experiment(world: str = ""):
    return tiny_experiment(world, steps=400, save_every=1000)
"""


@pytest.mark.slow
def test_sigterm_to_one_stops_both_after_the_same_step(tmp_path, tiny_world):
    (tmp_path / "tiny.py").write_text(CONFIG)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    words = [sys.executable, "-m", "stvl", "train", str(tmp_path / "tiny.py"), f"world={tiny_world}"]
    env = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    env |= {"STVL_COORDINATOR": address, "STVL_PROCESSES": "2"}
    both = [
        subprocess.Popen(
            [*words, f"run={tmp_path / 'run'}"],
            cwd=ROOT,
            env=env | {"STVL_PROCESS": str(number)},
            text=True,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for number in range(2)
    ]
    log = tmp_path / "run/log.jsonl"
    try:
        deadline = time.monotonic() + 200
        while not (log.exists() and len(log.read_text().splitlines()) >= 3):
            assert time.monotonic() < deadline and all(process.poll() is None for process in both)
            time.sleep(0.05)
        both[1].send_signal(signal.SIGTERM)
        errors = [process.communicate(timeout=120)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [75, 75]
    (saved,) = [int(item.name) for item in (tmp_path / "run/checkpoints").iterdir()]
    assert all(f"SIGTERM: saved step {saved}" in text for text in errors)
    last = json.loads(log.read_text().splitlines()[-1])["step"]
    assert saved == last < 20
