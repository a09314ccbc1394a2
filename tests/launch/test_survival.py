"""Two processes of four devices under real `jax.distributed`: killed, asked to stop, and gone on with on other meshes."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest

from stvl.train.checkpoints import steps
from tests.fixtures import leaves
from tests.launch.processes import Processes, logged

STEPS, SAVE_EVERY = 12, 3
CONFIG = f"""
import os
import time

import stvl.train.loop as loop
from stvl.dist.mesh import MeshConfig
from stvl.train import evaluation
from tests.fixtures import shrunk_model, tiny_experiment

advance = loop.Run.advance


def slowly(self, number):
    time.sleep(float(os.environ.get("PAUSE", "0")))
    return advance(self, number)


loop.Run.advance = slowly
if os.environ.get("SLOW_COMPILE"):
    # What a compiler does to Python: the main thread is away for minutes.
    make_step = loop.make_step
    loop.make_step = lambda starter: lambda *_: print("compiling", flush=True) or time.sleep(600)


def experiment(world: str = "", fsdp: int = 8, evals: bool = False):
    from stvl.eval.protocols.epic_mir import EpicMIR

    protocol = EpicMIR(
        csv=f"{{world}}/EPIC_100_retrieval_test.csv",
        sentences=f"{{world}}/EPIC_100_retrieval_test_sentence.csv",
        videos=f"{{world}}/videos",
        batch=4,
    )
    mesh = MeshConfig(data=-1, fsdp=fsdp)
    model = shrunk_model(width=48)
    changes = dict(steps={STEPS}, save_every={SAVE_EVERY}, model=model, mesh=mesh)
    return tiny_experiment(world, evals=(protocol,) if evals else (), **changes)
"""


@pytest.fixture
def words(tmp_path: Path, tiny_world: Path) -> list[str]:
    """What comes after ``stvl train``, without the run folder."""
    (tmp_path / "tiny.py").write_text(CONFIG)
    return [str(tmp_path / "tiny.py"), f"world={tiny_world}"]


def arrays(run: Path) -> dict[str, bytes]:
    """Every parameter of the newest checkpoint, as bytes."""
    from stvl.train.encoders import load_run

    return {name: leaf.tobytes() for name, leaf in leaves(load_run(run).params).items()}


def finished(words: list[str], run: Path, count: int, devices: int) -> str:
    """Train to the end, and what process 0 said."""
    program = Processes([*words, f"run={run}"], count, devices, run.parent / f"{run.name}-logs")
    assert program.codes() == [0] * count, program.everything()
    return program.said()


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_any_layout_goes_on(words, tmp_path):
    run, alone = tmp_path / "run", tmp_path / "alone"
    finished(words, alone, 2, 4)
    program = Processes([*words, f"run={run}"], 2, 4, tmp_path / "logs", {"PAUSE": "0.2"})
    program.until(lambda: len(logged(run)) >= 7)
    begin = time.monotonic()
    program.each[1].send_signal(signal.SIGKILL)
    codes = program.codes(30)
    taken = time.monotonic() - begin
    assert codes == [76, -9] and taken < 10, program.everything()
    assert "process 1 (" in program.said() and "is gone (end of stream): killed" in program.said()
    saved = max(steps(run))
    assert saved >= 3 and saved % SAVE_EVERY == 0
    expected = logged(alone)
    for count, devices, fsdp in ((2, 4, 8), (1, 8, 8), (2, 2, 4)):
        copy = shutil.copytree(run, tmp_path / f"{count}x{devices}")
        said = finished([*words, f"fsdp={fsdp}"], copy, count, devices)
        assert f"resumed from step {saved} in" in said
        found = logged(copy)
        assert {step: row["ids_crc"] for step, row in found.items()} == {
            step: row["ids_crc"] for step, row in expected.items()
        }
        worst = max(abs(found[step]["loss"] - expected[step]["loss"]) for step in range(saved + 1, STEPS + 1))
        print(f"killed at step {max(logged(run))}, on from {saved} on {count} x {devices}: {worst:.1e}")
        assert worst < 1e-5
        if (count, devices) == (2, 4):
            assert arrays(copy) == arrays(alone)


@pytest.mark.slow
def test_sigterm_to_one_stops_both_after_the_same_step(words, tmp_path):
    run = tmp_path / "run"
    program = Processes(
        [*words, f"run={run}", "steps=400", "save_every=1000"], 2, 4, tmp_path / "logs", {"PAUSE": "0.05"}
    )
    program.until(lambda: len(logged(run)) >= 3)
    at = max(logged(run))
    program.each[1].send_signal(signal.SIGTERM)
    assert program.codes(120) == [75, 75], program.everything()
    (saved,) = steps(run)
    assert all(f"SIGTERM: saved step {saved}" in program.said(number) for number in (0, 1))
    # The step under way when the signal came, the one that was sent after it, and the one that all agree on.
    assert saved == max(logged(run)) <= at + 4


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_sigterm_while_one_compiles_ends_both_at_once(words, tmp_path, asked):
    program = Processes([*words, f"run={tmp_path / 'run'}"], 2, 4, tmp_path / "logs", {"SLOW_COMPILE": "1"})
    program.until(lambda: all("compiling" in program.said(number) for number in (0, 1)))
    begin = time.monotonic()
    program.each[asked].send_signal(signal.SIGTERM)
    assert program.codes(60) == [75, 75], program.everything()
    taken = time.monotonic() - begin
    print(f"asked process {asked}: both had ended after {taken:.1f} s")
    assert taken < 10
    assert all("SIGTERM before the first step of this start" in program.said(number) for number in (0, 1))


@pytest.mark.slow
def test_two_processes_evaluate_as_one(words, tmp_path):
    runs = {count: tmp_path / f"run{count}" for count in (1, 2)}
    for count, run in runs.items():
        finished([*words, "evals=true"], run, count, 8 // count)
    results = [(run / "results" / f"EpicMIR-{STEPS}.json").read_bytes() for run in runs.values()]
    one, two = map(json_of, results)
    assert one["metrics"].keys() == two["metrics"].keys() and len(one["metrics"]) > 8
    # Parameters agree to the last digits only, so a rank may change; the clips and texts are the same.
    assert all(abs(one["metrics"][name] - two["metrics"][name]) < 0.03 for name in one["metrics"])
    for fact in ("clips_sha256", "texts_sha256"):
        assert one["card"][fact] == two["card"][fact]


def json_of(text: bytes) -> dict:
    """A result file."""
    import json

    return json.loads(text)
