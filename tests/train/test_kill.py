"""`kill -9` at a random step loses nothing: the run that goes on ends with the same bits as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.train.checkpoints import Checkpoints, saved_experiment
from stvl.train.state import Starter, TrainState
from tests.fixtures import ROOT, same

STEPS, SAVE_EVERY = 16, 3

# A step takes milliseconds; the pause gives the signal time to arrive in the step that it was meant for.
MODULE = '''
"""The tiny run, with a pause in each step."""

import time

import stvl.train.loop as loop
from tests.fixtures import tiny_experiment

advance = loop.Run.advance


def slowly(self, number):
    time.sleep(0.08)
    return advance(self, number)


loop.Run.advance = slowly


def experiment(world: str):
    return tiny_experiment(world, steps={steps}, save_every={save_every})
'''


def start(config: Path, world: Path, run: Path) -> subprocess.Popen[str]:
    """``stvl train`` in a process of its own, on one device, its output readable line by line."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-m", "stvl", "train", str(config), f"world={world}", f"run={run}"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    return out


def ids(run: Path) -> dict[int, float]:
    """Step -> fingerprint of the ids drawn; a step that was run twice must have drawn the same."""
    found: dict[int, float] = {}
    for line in (run / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert found.setdefault(row["step"], row["ids_crc"]) == row["ids_crc"]
    return found


def last_state(run: Path) -> TrainState:
    """Everything that the newest checkpoint holds: parameters, moments, average."""
    experiment = saved_experiment(run)
    starter = Starter(experiment, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    found = Checkpoints(run, experiment, read_only=True).restore(starter.target())
    assert found.step == STEPS
    assert found.data["position"] == STEPS
    return found.state


@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical_to_left_alone(tiny_world, tmp_path):
    config = tmp_path / "killed.py"
    config.write_text(MODULE.format(steps=STEPS, save_every=SAVE_EVERY))
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    finish(start(config, tiny_world, alone))
    step = random.randrange(SAVE_EVERY + 5, STEPS - 1)
    process = start(config, tiny_world, killed)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            time.sleep(random.random() * 0.08)
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait(timeout=60) == -signal.SIGKILL
    out = finish(start(config, tiny_world, killed))
    resumed = re.search(r"resumed from step (\d+) in", out)
    assert resumed, out
    # The loop logs a step while the next one runs, and a save takes a while in the background.
    assert int(resumed[1]) in range(SAVE_EVERY, step + 3, SAVE_EVERY)
    same(last_state(killed), last_state(alone))
    assert ids(killed) == ids(alone)
    assert sorted(ids(alone)) == list(range(1, STEPS + 1))
    # 24 clips in batches of 8: an epoch is three steps, each order is new, and the fingerprints tell them apart.
    assert len(set(ids(alone).values())) == STEPS
