"""Training under real `jax.distributed`: two processes of four devices are one process of eight."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import ROOT

CONFIG = """
from tests.fixtures import tiny_experiment


def experiment(world: str = ""):
    return tiny_experiment(world, steps=4, save_every=4)
"""


def rows(folder: Path) -> dict[int, dict[str, Any]]:
    """Rows of a run's log that hold a loss, by step."""
    found = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {row["step"]: row for row in found if "loss" in row}


@pytest.fixture
def launched(tmp_path: Path, tiny_world: Path) -> tuple[Path, str]:
    """The run folder of two processes of four devices, and what process 0 printed."""
    (tmp_path / "tiny.py").write_text(CONFIG)
    program = tmp_path / "stvl"
    program.write_text(f'#!/bin/sh\ncd "{ROOT}"\nexec "{sys.executable}" -u -m stvl "$@"\n')
    program.chmod(0o755)
    command = [
        "bash",
        str(ROOT / "launch/local.sh"),
        "-n",
        "2",
        "--fake",
        "4",
        "--logs",
        str(tmp_path / "logs"),
        "--",
    ]
    words = ["train", str(tmp_path / "tiny.py"), f"world={tiny_world}", f"run={tmp_path / 'two'}"]
    env = os.environ | {"STVL": str(program), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        [*command, *words], env=env, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path / "two", done.stdout


@pytest.mark.slow
def test_two_processes_of_four_devices_are_one_of_eight(launched, tmp_path, tiny_world, shared_compiles):
    import jax

    from stvl.train.loop import train
    from tests.fixtures import tiny_experiment

    two, said = launched
    assert "2 processes arrived in" in said and "(data 8)" in said
    assert jax.device_count() == 8
    one = tiny_experiment(tiny_world, tmp_path / "one", steps=4, save_every=4)
    train(one)
    losses = [[row["loss"] for row in rows(folder).values()] for folder in (two, tmp_path / "one")]
    assert len(losses[0]) == 4
    assert max(abs(left - right) for left, right in zip(*losses, strict=True)) < 1e-5
    # Another number of processes goes on with the checkpoint, and both go on alike.
    for folder in (two, tmp_path / "one"):
        train(dataclasses.replace(one, run=str(folder), steps=6))
    ends = [rows(folder) for folder in (two, tmp_path / "one")]
    assert [ends[0][step]["ids_crc"] for step in (5, 6)] == [ends[1][step]["ids_crc"] for step in (5, 6)]
    assert max(abs(ends[0][step]["loss"] - ends[1][step]["loss"]) for step in (5, 6)) < 1e-5
