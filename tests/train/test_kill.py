"""`kill -9` at random moments loses nothing: the run that goes on ends with the same bits as one that was left alone.

STVL_KILLS=30 pytest tests/train/test_kill.py -s        # 30 kills instead of the few of an ordinary test run
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from stvl.core.paths import AnyPath
from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.train.checkpoints import Checkpoints, saved_experiment, steps
from stvl.train.state import Starter, TrainState
from tests.fixtures import ROOT, same

KILLS = int(os.environ.get("STVL_KILLS", "6"))
SAVE_EVERY = 3

# A step takes milliseconds; the pause gives a signal time to arrive in the step that it was meant for. The rate is
# constant, so that runs of different lengths are alike as far as both go.
MODULE = f'''
"""The tiny run, with a pause in each step."""

import os
import time

import stvl.train.loop as loop
from stvl.train.optimizers import AdamW, Schedule
from tests.fixtures import tiny_experiment

advance = loop.Run.advance


def slowly(self, number):
    time.sleep(float(os.environ["PAUSE"]))
    return advance(self, number)


loop.Run.advance = slowly


def experiment(world: str):
    rate = AdamW(schedule=Schedule(peak=1e-3, shape="constant"))
    return tiny_experiment(world, save_every={SAVE_EVERY}, optimizer=rate, compile_cache="on")
'''


class Trained:
    """``stvl train`` in a process of its own, on one device, its output in a file."""

    def __init__(self, config: Path, world: Path, run: Path, length: int, pause: float = 0.0) -> None:
        env = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "PAUSE": str(pause),
        }
        words = ["train", str(config), f"world={world}", f"run={run}", f"steps={length}"]
        self.run, self.log = run, run.parent / "out.txt"
        with open(self.log, "w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-m", "stvl", *words],
                cwd=ROOT,
                env=env,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()

    def until(self, happened: Callable[[], bool], seconds: float = 120) -> None:
        """Wait; fail where the process ends first."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.002)

    def finish(self) -> str:
        """Wait for a good end."""
        assert self.process.wait(240) == 0, self.said
        return self.said

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait(60) == -signal.SIGKILL


def ids(run: Path) -> dict[int, float]:
    """Step -> fingerprint of the ids drawn; a step that was run twice must have drawn the same."""
    found: dict[int, float] = {}
    for line in (run / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert found.setdefault(row["step"], row["ids_crc"]) == row["ids_crc"]
    return found


def last_state(run: AnyPath, length: int) -> TrainState:
    """Everything that the newest checkpoint holds: parameters, moments, average."""
    experiment = saved_experiment(run)
    starter = Starter(experiment, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    found = Checkpoints(run, experiment, read_only=True).restore(starter.target())
    assert found.step == length
    assert found.data["position"] == length
    return found.state


def resumed_from(said: str) -> int:
    """The step that a start went on from; 0 where there was no checkpoint."""
    found = re.search(r"resumed from step (\d+) in", said)
    return int(found[1]) if found else 0


def saving(run: Path) -> bool:
    """Whether a save is under way; what an earlier start left behind is cleared away before the first step."""
    return any((run / "checkpoints").glob("*tmp*"))


def wait_for(moment: str, process: Trained, rng: random.Random) -> None:
    """Wait until it is time to kill."""
    if moment == "at the start":
        time.sleep(rng.uniform(0.0, 8.0))
        return
    process.until(lambda: re.search(r"^step \d+/", process.said, re.MULTILINE) is not None)
    if moment == "in a save":
        process.until(lambda: saving(process.run))
        time.sleep(rng.uniform(0.0, 0.02))
    else:
        time.sleep(rng.uniform(0.0, 1.0))


@pytest.mark.slow
def test_every_kill_loses_at_most_the_steps_since_the_last_finished_save(tiny_world, tmp_path):
    config, killed = tmp_path / "killed.py", tmp_path / "killed" / "run"
    config.write_text(MODULE)
    killed.parent.mkdir()
    seed = random.randrange(1 << 30)
    rng, moments = random.Random(seed), []
    for number in range(KILLS):
        before = steps(killed)
        process = Trained(config, tiny_world, killed, 100_000, pause=0.05)
        moment = ("in a save", "between steps", "in a save", "at the start")[number % 4]
        wait_for(moment, process, rng)
        process.kill()
        if "M parameters" in process.said:
            assert resumed_from(process.said) == max(before, default=0)
        # Saves that finished stay, and the log shows how far it came since.
        reached = max([*ids(killed), 0]) if (killed / "log.jsonl").exists() else 0
        kept = max(steps(killed), default=0)
        assert kept >= max(before, default=0)
        torn = [item.name for item in (killed / "checkpoints").glob("*tmp*")]
        moments.append(f"{moment}: step {reached}, saved {kept}{', a torn save' if torn else ''}")
    print(f"seed {seed}; kills: " + "; ".join(moments))
    length = max(steps(killed), default=0) + SAVE_EVERY + 1
    said = Trained(config, tiny_world, killed, length).finish()
    assert resumed_from(said) == length - SAVE_EVERY - 1
    alone = tmp_path / "alone" / "run"
    alone.parent.mkdir()
    Trained(config, tiny_world, alone, length).finish()
    same(last_state(killed, length), last_state(alone, length))
    drawn = ids(alone)
    assert {step: crc for step, crc in ids(killed).items() if step <= length} == drawn
    assert sorted(drawn) == list(range(1, length + 1))
    # 24 clips in batches of 8: an epoch is three steps, each order is new, and the fingerprints tell them apart.
    assert len(set(drawn.values())) == length
