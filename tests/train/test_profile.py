"""Steps of a real run in a trace and a summary, and that nothing which goes wrong with them reaches the run."""

from __future__ import annotations

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import stvl.train.loop as loop
from stvl.cli.main import main
from stvl.core.errors import ConfigError
from stvl.train.checkpoints import steps
from stvl.train.loop import train
from stvl.train.profile import profiler as module
from stvl.train.profile import trace as reading
from stvl.train.profile.profiler import Profiler, Steps, parse_steps
from stvl.train.profile.summary import Facts, summarise
from stvl.train.profile.trace import read
from tests.fixtures import tiny_experiment

pytestmark = pytest.mark.usefixtures("shared_compiles")


@pytest.mark.parametrize(
    ("text", "found"), [("", None), ("10:15", Steps(10, 15)), ("3:3", Steps(3, 3)), ("7", Steps(7, 7))]
)
def test_steps_are_read(text, found):
    assert parse_steps(text) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("15:10", "--profile 15:10: the last step comes before the first; write 10:15?"),
        ("0:3", "--profile 0:3: steps are numbered from 1; 2:3 leaves out the compilation"),
        ("a:b", "--profile reads FIRST:LAST, two step numbers as in 10:15, found 'a:b'"),
        ("1:2:3", "--profile reads FIRST:LAST"),
        ("-1:3", "--profile reads FIRST:LAST"),
    ],
)
def test_bad_steps_are_refused_before_anything_starts(text, message, monkeypatch, capsys):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_steps(text)
    monkeypatch.setattr(loop, "train", lambda *given: pytest.fail("it started"))
    assert main(["train", "configs/quickstart.py", f"--profile={text}"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_traced_and_summarised(tiny_world, tmp_path, capsys):
    run = tmp_path / "run"
    train(tiny_experiment(tiny_world, run), profile=Steps(3, 4))
    out = capsys.readouterr().out
    assert "profile of steps 3 to 4, process 0 of 1: 8 cpu devices" in out
    assert "A CPU trace holds" in out and "step 6/6" in out
    text = (run / "profile" / "summary-3-4.txt").read_text()
    assert text in out
    # Tracing costs the run nothing in its own figures: every row is there, and none is absurd.
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    session = run / "profile" / "plugins" / "profile" / "steps-3-4"
    assert sorted(path.name for path in session.iterdir()) == [
        "process-0.trace.json.gz",
        "process-0.xplane.pb",
    ]
    seconds = float(re.search(r"wall-clock: ([\d.]+) ms", text).group(1)) / 1e3
    found = summarise(read(session / "process-0.xplane.pb"), Facts(3, 4, seconds))
    # Products of both towers, forward and backward, counted with every trip through the layers.
    parts = {row.part for row in found.rows if row.kind == "matmul"}
    for tower in ("video", "text"):
        for way in ("forward", "backward"):
            assert f"{tower}/stack/layers/mlp, {way}" in parts
    assert all(row.ms >= 0 and row.count > 0 for row in found.rows)
    assert sum(row.ms for row in found.rows) == pytest.approx(1e3 * found.busy * seconds)
    # What is booked on all devices fits into the time that there was; the fake devices share the cores.
    assert 0 < found.busy < 1
    # The loss and the optimizer run once a step on every device.
    assert {row.kind for row in found.rows} >= {"matmul", "collective", "fusion", "copy"}
    assert found.rows[0].ms == max(row.ms for row in found.rows)


@pytest.mark.slow
def test_a_run_that_ends_within_the_steps_shows_those_that_it_made(tiny_world, tmp_path, capsys):
    train(tiny_experiment(tiny_world, tmp_path), profile=Steps(6, 9))
    assert "steps 6-9 were asked for; this process made 6-6 of them" in capsys.readouterr().out
    assert "profile of step 6, process 0" in (tmp_path / "profile" / "summary-6-6.txt").read_text()


def test_steps_that_never_come_are_told_at_the_end(tiny_world, tmp_path, capsys):
    train(tiny_experiment(tiny_world, tmp_path), profile=Steps(8, 9))
    assert "--profile 8:9: no step was traced: the run ended before step 8" in capsys.readouterr().err
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ((), "--profile 1:2: no step was traced: this process made no step"),
        ((3,), "--profile 1:2: no step was traced: the run went on from step 2, so name steps from 3 on"),
    ],
)
def test_steps_that_lie_behind_the_process_are_told_too(made, told, tmp_path, capsys):
    profiler = Profiler(Steps(1, 2), tmp_path)
    for step in made:
        profiler.before(step)
        assert profiler.after(step, {}) == 0
    profiler.close()
    assert capsys.readouterr().err == f"{told}\n"


def break_(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, problem: Exception) -> None:
    def fail(*given: Any, **named: Any) -> Any:
        raise problem

    monkeypatch.setattr(owner, name, fail)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("start", "--profile: cannot start the trace: RuntimeError: broken"),
        ("stop", "--profile: cannot write the trace: RuntimeError: broken"),
        ("read", "--profile: cannot read "),
        ("summarise", "--profile: cannot read "),
    ],
)
def test_a_trace_that_fails_does_not_stop_the_run(name, told, tiny_world, tmp_path, monkeypatch, capsys):
    break_(monkeypatch, module, name, RuntimeError("broken"))
    train(tiny_experiment(tiny_world, tmp_path), profile=Steps(2, 3))
    err = capsys.readouterr().err
    assert told in err and "RuntimeError: broken; training goes on without it" in err
    assert steps(tmp_path)[-1] == 6
    if name == "stop":
        jax.profiler.stop_trace()


def test_an_error_of_the_step_is_not_taken_for_one_of_the_trace(tmp_path, monkeypatch):
    profiler = Profiler(Steps(2, 2), tmp_path)
    monkeypatch.setattr(module, "start", lambda folder: None)
    monkeypatch.setattr(module, "stop", lambda: None)
    profiler.before(1)
    profiler.after(1, {})
    profiler.before(2)
    break_(monkeypatch, jax, "block_until_ready", MemoryError("the step"))
    with pytest.raises(MemoryError, match="the step"):
        profiler.after(2, {"loss": jnp.zeros(())})


@pytest.mark.slow
def test_processes_do_not_write_over_each_other(tmp_path, monkeypatch, capsys):
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        profiler = Profiler(Steps(1, 1), tmp_path, lambda text: None)
        profiler.before(1)
        out = jax.jit(lambda x: x @ x)(jnp.ones((64, 64)))
        assert profiler.after(1, out) > 0
        profiler.close()
        text = (tmp_path / "profile" / f"summary-1-1-process-{process}.txt").read_text()
        assert f"profile of step 1, process {process} of 2" in text
        assert "step 1 was the first of this process: its time holds tracing and compiling" in text
    names = {path.name for path in (tmp_path / "profile").rglob("*") if path.is_file()}
    assert names == {
        *(f"process-{number}.{end}" for number in (0, 1) for end in ("xplane.pb", "trace.json.gz")),
        *(f"summary-1-1-process-{number}.txt" for number in (0, 1)),
    }
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("platforms", "libtpu", "backend", "told"),
    [
        (
            None,
            "0.0.52",
            "cpu",
            "libtpu 0.0.52 is installed, jax .* was built with 0.0.42.*set JAX_PLATFORMS=cpu",
        ),
        ("tpu,cpu", "0.0.52", "gpu", "set JAX_PLATFORMS=cuda"),
        ("cpu", "0.0.52", "cpu", "^$"),
        (None, "0.0.42.1", "cpu", "^$"),
        (None, "0.0.52", "tpu", "^$"),
        (None, "", "cpu", "^$"),
    ],
)
def test_a_libtpu_that_would_end_the_process(platforms, libtpu, backend, told, monkeypatch):
    def version(name: str) -> str:
        if not libtpu:
            raise reading.importlib.metadata.PackageNotFoundError(name)
        return libtpu

    class Config:
        jax_platforms = platforms

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "config", Config)
    needs = ["numpy>=2", 'libtpu==0.0.42.*; extra == "tpu"']
    monkeypatch.setattr(reading.importlib.metadata, "version", version)
    monkeypatch.setattr(reading.importlib.metadata, "requires", lambda name: needs)
    assert re.search(told, reading.unsafe())


@pytest.mark.slow
def test_a_run_in_a_bucket_has_its_traces_there(gcs, bucket, tiny_world, capsys):
    train(tiny_experiment(tiny_world, f"gs://{bucket}/run"), profile=Steps(3, 4))
    assert "profile of steps 3 to 4, process 0 of 1" in capsys.readouterr().out
    assert gcs.names(bucket, "run/profile/") == [
        "run/profile/plugins/profile/steps-3-4/process-0.trace.json.gz",
        "run/profile/plugins/profile/steps-3-4/process-0.xplane.pb",
        "run/profile/summary-3-4.txt",
    ]
