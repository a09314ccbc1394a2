"""A full device: what is said of it through the command, and that nothing else is touched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

import stvl.train.loop as loop
from stvl.cli.main import main
from stvl.core.errors import ConfigError
from stvl.dist.peers import Peers
from stvl.dist.place import Place
from stvl.dist.start import Started
from stvl.plan import oom
from stvl.plan.oom import Memories, OutOfMemory, is_full
from tests.fixtures import ROOT, tiny_experiment

FULL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123456789 bytes."

CONFIG = """
from tests.fixtures import tiny_experiment


def experiment(world: str = "no"):
    return tiny_experiment(world)
"""


def error(text: str = FULL) -> Exception:
    return jax.errors.JaxRuntimeError(text)


@pytest.mark.parametrize(
    ("problem", "full"),
    [
        (error(), True),
        (error("INTERNAL: Error dispatching computation: Out of memory allocating 5 bytes."), True),
        (error("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17G of 15.75G hbm."), True),
        (
            error("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. It should not be possible"),
            False,
        ),
        (error("RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 300000"), False),
        (error("RESOURCE_EXHAUSTED: Received message larger than max"), False),
        (error("INTERNAL: nothing"), False),
        (RuntimeError(FULL), False),
        (ConfigError(FULL), False),
    ],
)
def test_what_counts_as_a_full_device(problem, full, monkeypatch):
    monkeypatch.setattr(Memories, "report", lambda self, problem: "the report")
    assert is_full(problem) == full
    caught: Any = OutOfMemory if full else type(problem)
    with pytest.raises(caught) as found, Memories(tiny_experiment("no")):
        raise problem
    assert full or found.value is problem


def test_the_compilers_words_are_read():
    text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded by 1.75G"
    memories = Memories(tiny_experiment("no"))
    found, total, source = memories._case(error(text))
    assert found.total == total.total == int(17.5 * 2**30) and source == "the compiler refused it"
    assert found.temp == found.total - found.now.held


class Refuses:
    """The real step, whose run fails as one of a full device does."""

    def __init__(self, step: Any, problem: Exception, at: int) -> None:
        self.step, self.problem, self.at, self.calls = step, problem, at, 0

    def lower(self, *given: Any) -> Any:
        return self.step.lower(*given)

    def __call__(self, *given: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise self.problem
        return self.step(*given)


@pytest.fixture
def command(tmp_path: Path, tiny_world: Path, shared_compiles: None) -> list[str]:
    (tmp_path / "tiny.py").write_text(CONFIG)
    return ["train", str(tmp_path / "tiny.py"), f"world={tiny_world}", f"run={tmp_path / 'run'}"]


def fail(monkeypatch: pytest.MonkeyPatch, problem: Exception, at: int = 3) -> None:
    make = loop.make_step
    monkeypatch.setattr(loop, "make_step", lambda starter: Refuses(make(starter), problem, at))


@pytest.mark.slow
def test_a_run_that_runs_out_of_memory_ends_with_a_report(command, monkeypatch, capsys):
    fail(monkeypatch, error())
    assert main(command) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: out of memory noticed in step 3 of this process: {FULL}\n")
    assert "(the compiler's account):" in err
    assert re.search(
        r"by their shardings: parameters [\d.]+ MiB, optimizer [\d.]+ MiB, average [\d.]+ MiB, batch", err
    )
    assert re.search(r"by the compiler: temporaries \(activations, gradients, loss\) [\d.]+ MiB", err)
    assert "the loss 96 B (dense, 1 x 8 in f32)" in err
    assert re.findall(r"^  (\d)\. \S", err, re.MULTILINE) == ["1", "2", "3"]
    assert err.count("saves ") == 3 and "by these figures it fits" in err


def test_the_first_step_says_so(command, monkeypatch, capsys):
    monkeypatch.setattr(oom, "remedies", lambda case: [])
    fail(monkeypatch, error(), at=1)
    assert main(command) == 1
    err = capsys.readouterr().err
    assert "error: out of memory in the first step (compiling or running it): " in err
    assert err.endswith(
        "nothing that the planner knows makes it smaller: take more devices or a smaller model\n"
    )


@pytest.mark.slow
def test_a_state_that_does_not_fit(command, monkeypatch, capsys):
    def begin(self: Any) -> Any:
        raise error()

    monkeypatch.setattr(loop.Run, "_begin", begin)
    assert main(command) == 1
    err = capsys.readouterr().err
    assert "out of memory before the first step, when the state was made" in err and "(by analysis):" in err
    assert err.count("saves ") == 3


def test_an_evaluation_that_does_not_fit(command, monkeypatch, capsys):
    def evaluate(self: Any, number: int) -> Any:
        raise error()

    monkeypatch.setattr(loop.Run, "evaluate", evaluate)
    monkeypatch.setattr(oom, "remedies", lambda case: [])
    assert main(command) == 1
    assert "error: out of memory in an evaluation (`evals=()` trains without" in capsys.readouterr().err


def test_an_ordinary_error_passes_as_it_is(command, monkeypatch):
    problem = error("INTERNAL: a kernel failed")
    fail(monkeypatch, problem)
    with pytest.raises(jax.errors.JaxRuntimeError) as found:
        main(command)
    assert found.value is problem


def test_where_no_report_can_be_made_both_errors_are_shown(command, monkeypatch, capsys):
    def broken(*given: Any) -> Any:
        raise KeyError("a device that nobody knows")

    fail(monkeypatch, error())
    monkeypatch.setattr(oom, "topology_of", broken)
    assert main(command) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: out of memory noticed in step 3 of this process: {FULL}\n")
    assert "no report on it could be made: KeyError: 'a device that nobody knows'" in err


def test_a_compiler_that_fails_too_leaves_the_analysis(monkeypatch):
    memories = Memories(tiny_experiment("no"))

    class Step:
        def lower(self, *given: Any) -> Any:
            raise error("RESOURCE_EXHAUSTED: again")

        def __call__(self, *given: Any) -> Any:
            return given

    memories.watch(Step())({}, {})
    assert "by analysis: the compiler gave no account (RESOURCE_EXHAUSTED: again)" in memories.report(error())


def test_the_others_hear_the_report_and_end():
    class Said(Peers):
        def leave(self, code: int = 0, text: str = "") -> None:
            left.append((code, text.splitlines()[0]))

    left: list[tuple[int, str]] = []
    ends: list[int] = []
    place = Place("a:1", 2, 1, "options")
    started = Started(place, Said(place), 0.0, lambda text, code: ends.append(code))
    with pytest.raises(OutOfMemory), started, Memories(tiny_experiment("no")):
        raise error()
    told = f"out of memory before the first step, when the state was made: {FULL}"
    assert left == [(1, told)] and ends == [1]


@pytest.mark.slow
def test_a_real_one(tiny_world, tmp_path):
    """A projection of 2 to the 40 columns: no machine gives so much, and nothing is touched."""
    (tmp_path / "tiny.py").write_text(CONFIG)
    words = [f"world={tiny_world}", f"run={tmp_path / 'run'}", f"model.embedding={2**40}"]
    program = [sys.executable, "-m", "stvl", "train"]
    done = subprocess.run(
        # Should it ever be given after all, the shell's limit stops it.
        ["bash", "-c", 'ulimit -v 41943040; exec "$@"', "bash", *program, str(tmp_path / "tiny.py"), *words],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert "error: out of memory " in done.stderr and "Out of memory allocating" in done.stderr
    assert "no remedy is enough, nor are all together" in done.stderr
    assert "Traceback" not in done.stderr
