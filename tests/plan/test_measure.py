"""`stvl bench step`: a tiny step measured in this process, one in its own, and what leaves a row without a time."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from stvl.core.errors import ConfigError, DataError
from stvl.dist.mesh import make_mesh
from stvl.models.flops import train_flops
from stvl.ops.attention import BACKENDS
from stvl.ops.attention.backends import Backend
from stvl.plan import measure, steps
from stvl.plan.agreement import Agreement, agreement
from stvl.plan.ahead import decided
from stvl.plan.measure import StepReport, StepRow, bench_step, measured_step, read_step_report
from stvl.plan.resident import CompiledStep
from stvl.plan.steps import STEPS, StepPlan, StepSize, default_shapes, step_experiment
from stvl.train.state import Starter, abstract_batch
from tests.fixtures import CONTEXT, shrunk_model

QUICK = StepPlan(batch=4, budget=0.1)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A step called `tiny-small`, of a model that compiles in a second, and no wait for a large product."""
    monkeypatch.setattr(steps, "STEPS", {**STEPS, "tiny-small": StepSize("shrunk", 2, 8)})
    found = steps.preset
    monkeypatch.setattr(steps, "preset", lambda name: shrunk_model() if name == "shrunk" else found(name))
    monkeypatch.setattr(measure, "matmul_ceiling", lambda dtype: 1e9)
    monkeypatch.setattr(measure, "peak_flops", lambda device: (2e9, "made up"))


@pytest.mark.slow
def test_a_row_is_consistent():
    row = measured_step("tiny-small", QUICK)
    assert (
        row.reason == ""
        and row.dtype == "float32"
        and (row.batch, row.frames, row.context) == (4, 2, CONTEXT)
    )
    assert row.model_flops == train_flops(shrunk_model(), 2, CONTEXT, 4)
    assert row.seconds is not None and row.mfu is not None and row.share is not None
    assert row.mfu == pytest.approx(row.model_flops / row.seconds / 2e9)
    assert row.share == pytest.approx(2 * row.mfu) and row.clips_per_second == pytest.approx(4 / row.seconds)
    assert row.measurements is not None and row.measurements >= 5 and row.fastest <= row.seconds
    assert row.backends == (
        "9 x 9 tokens, 2 heads, full: xla",
        f"{CONTEXT} x {CONTEXT} tokens, 2 heads, causal: xla",
    )
    assert row.checked == row.backends
    assert row.features < 1e-5 and row.gradient < 1e-5
    assert row.parameters == 49408 * 16 + _without_words()
    assert row.predicted > 12 * row.parameters and row.measured is not None
    assert row.ratio == pytest.approx(row.predicted / row.measured)
    # Random weights: four pairs are told apart by chance.
    assert 0.1 < row.loss < 20
    assert row.environment["device"] == jax.local_devices()[0].device_kind


def _without_words() -> int:
    """Parameters of the shrunk model but the table of words, counted by hand: w wide, MLPs h wide."""
    w, h, t = 32, int(32 * 8 / 3), 16
    block = 2 * 2 * w + (3 * w + 3) * w - w + 2 * w + (w + 1) * w + 2 * (w + 1) * h + 2 * h + (h + 1) * w
    video = (8 * 8 * 3 + 1) * w + 2 * 2 * w + 2 * w + 2 * w + 2 * block + 2 * w + w * 16
    text_block = 2 * 2 * t + 4 * (t + 1) * t + (t + 1) * 4 * t + (4 * t + 1) * t
    return video + CONTEXT * t + text_block + 2 * t + t * 16


@pytest.mark.slow
def test_a_wrong_backend_is_found(monkeypatch):
    monkeypatch.setitem(BACKENDS, "xla", Backend(lambda q, *rest: 0 * q))
    experiment = decided(step_experiment("tiny-small", QUICK), "cpu")
    starter = Starter(experiment, make_mesh(experiment.mesh, jax.devices()[:1]))
    step = CompiledStep(starter, dict(abstract_batch(experiment, 4)), None, (), 0.0)
    found = agreement(step, starter.start().params)
    assert found.features > 0.1 and found.gradient > 0.1 and found.clips == 2
    assert found.reason.startswith("wrong: features differ by") and "at most 0.002 is timed" in found.reason


def test_what_is_wrong_is_not_timed(monkeypatch):
    def never(*what):
        raise AssertionError("timed")

    state = SimpleNamespace(params={}, start=lambda: state)
    step = SimpleNamespace(starter=state, predicted=30)
    bad = Agreement(2, 0.5, 0.5, ("a: xla",), "wrong: features differ")
    for name, value in {
        "compile_step": lambda experiment, devices: step,
        "_described": lambda row, step: row,
        "taken_by": lambda step: (20, 1.0),
        "agreement": lambda step, params: bad,
        "_timed": never,
    }.items():
        monkeypatch.setattr(measure, name, value)
    row = measured_step("tiny-small", QUICK)
    assert (row.reason, row.features, row.checked) == ("wrong: features differ", 0.5, ("a: xla",))
    assert (row.measured, row.ratio, row.seconds) == (20, 1.5, None)


def test_out_of_memory_is_a_row(monkeypatch):
    def refuse(experiment, devices):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand more")

    monkeypatch.setattr(measure, "compile_step", refuse)
    row = measured_step("tiny-small", QUICK)
    assert row.reason == "fails: RESOURCE_EXHAUSTED: Out of memory" and row.seconds is None


def test_a_loss_that_is_no_number_is_not_timed(monkeypatch):
    step = object.__new__(CompiledStep)
    object.__setattr__(step, "program", lambda state, batch: (state, {"loss": jnp.float32(jnp.nan)}))
    monkeypatch.setattr(measure, "random_batch", lambda step, seed: {})
    row = measure._timed(StepRow("tiny-small", "shrunk", 2, 4), step, None, QUICK)
    assert row.reason == "wrong: the loss is nan after the timed steps" and row.seconds is None


def test_processes_that_fail(monkeypatch):
    def too_long(words, limit, text=""):
        raise subprocess.TimeoutExpired(words, limit)

    def breaks(words, limit, text=""):
        return subprocess.CompletedProcess(words, 137, "", "one\nkilled\n")

    told = []
    for run, said in ((too_long, "no result after 3 s"), (breaks, "exit code 137: killed")):
        monkeypatch.setattr(measure, "_python", run)
        plan = dataclasses.replace(QUICK, shapes=("tiny-small",), limit=3.0)
        (row,) = bench_step(plan, told.append)
        assert row.reason == f"fails: {said}" and row.batch == 4
    assert len(told) == 2
    with pytest.raises(ConfigError, match=r"jax starts no device: exit code 137: killed"):
        bench_step(StepPlan())


def test_each_step_has_a_process_of_its_own(monkeypatch):
    seen = []

    def run(words, limit, text=""):
        seen.append((words, json.loads(text) if text else None))
        out = json.dumps(dataclasses.asdict(StepRow(words[-1], "m", 2, 4, seconds=0.5)))
        return subprocess.CompletedProcess(words, 0, f"noise\n{out}\n" if text else "gpu\n", "")

    monkeypatch.setattr(measure, "_python", run)
    rows = bench_step(StepPlan(dtype="bf16"))
    names = ["b16-4f", "b16-16f", "l14-4f", "l14-16f"]
    assert [row.shape for row in rows] == names and [row.seconds for row in rows] == [0.5] * 4
    assert [words for words, plan in seen[1:]] == [["-m", "stvl.plan.measure", name] for name in names]
    assert seen[1][1]["dtype"] == "bf16" and seen[1][1]["batch"] is None


@pytest.mark.slow
def test_a_real_process():
    (row,) = bench_step(StepPlan(("tiny-2f",), batch=2, budget=0.2, check=False))
    assert row.reason == "" and row.seconds is not None and row.features is None
    # A process grows by tens of MiB of its own beside the arrays of so small a step.
    assert row.ratio is not None and 0.4 < row.ratio < 1.1
    assert row.peak_source and row.matmul is not None and row.matmul > 1e9


def test_report_reads_back(tmp_path):
    row = StepRow("tiny-small", "m", 2, 4, backends=("a: xla",), seconds=0.5, environment={"device": "cpu"})
    report = StepReport("stvl bench step", QUICK, (row,))
    path = tmp_path / "step.json"
    report.to_json(path)
    assert read_step_report(path) == report
    path.write_text("{}")
    with pytest.raises(DataError, match=r"is no report of `stvl bench step`"):
        read_step_report(path)


def test_names():
    assert default_shapes("cpu") == ("tiny-2f",)
    assert default_shapes("gpu") == ("b16-4f", "b16-16f", "l14-4f", "l14-16f")
    for fields, said in (
        ({"shapes": ("b16-4",)}, r"unknown step 'b16-4' \(did you mean 'b16-4f'\?\)"),
        ({"dtype": "bf61"}, r"unknown dtype 'bf61' \(did you mean 'bf16'\?\)"),
        ({"remat": "ful"}, r"unknown remat policy 'ful' \(did you mean 'full'\?\)"),
        ({"batch": 1}, "at least two clips, found batch = 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            StepPlan(**fields)
    with pytest.raises(ConfigError, match="takes the name of one step"):
        measure.main([])


@pytest.mark.parametrize("name", STEPS)
def test_every_step_is_an_experiment(name):
    experiment = step_experiment(name, StepPlan(remat="full"))
    size = STEPS[name]
    assert (experiment.loader.batch, experiment.loader.frames) == (size.batch, size.frames)
    assert experiment.model.video.frames == size.frames
    assert (experiment.model.video.remat, experiment.model.text.remat) == ("full", "full")
    assert experiment.grad_cache == 1 and experiment.ema is None
