"""``stvl bench`` on a tiny shape."""

from __future__ import annotations

import importlib.util
import json

import pytest

from stvl.cli import bench as command
from stvl.cli.main import main
from stvl.ops.attention import BACKENDS, Causal
from stvl.ops.attention.backends import Backend
from stvl.ops.attention.shapes import SHAPES, AttentionShape
from stvl.ops.bench import ahead
from stvl.ops.bench import run as running
from stvl.ops.bench.ahead import Compiled
from stvl.ops.bench.run import Plan, read_report
from stvl.ops.bench.schedule import Block, KernelSchedule
from stvl.plan import measure
from stvl.plan.measure import StepRow, read_step_report
from stvl.plan.steps import StepPlan


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", AttentionShape(1, 8, 8, 2, 2, 8, mask=Causal()))
    monkeypatch.setattr(running, "matmul_ceiling", lambda dtype: 1e9)
    monkeypatch.setattr(running, "copy_ceiling", lambda: 1e6)


def test_table_and_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(BACKENDS, "zeros", Backend(lambda q, *rest: 0 * q))
    monkeypatch.setitem(BACKENDS, "shy", Backend(lambda *rest: None, lambda case: "not today"))
    path = tmp_path / "bench.json"
    words = ["bench", "attention", "--shapes", "tiny", "--impls", "xla, zeros,shy", "--json", str(path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "tiny zeros forward: wrong: error 1, at most 0.002 is timed" in out
    assert "tiny shy: declines: not today" in out
    assert "matmul 0.001 TFLOP/s" in out and "versions: python" in out
    report = read_report(path)
    assert [(row.impl, row.seconds is None) for row in report.rows] == [
        ("xla", False),
        ("zeros", True),
        ("shy", True),
    ]
    assert f"tiny xla forward {1e3 * (report.rows[0].seconds or 0):.2f} ms" in out
    assert report.dtype == "float32"


def test_list(capsys):
    assert main(["bench", "pairwise", "--list"]) == 0
    out = capsys.readouterr().out
    assert "backends dense" in out and "pod-16k" in out and "rows=16384" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["attention", "--shapes", "tinny"], "unknown attention shape 'tinny' (did you mean 'tiny'?)"),
        (["attention", "--impls", "xlaa"], "unknown attention backend 'xlaa' (did you mean 'xla'?)"),
        (["rotary", "--impls", "xla"], "unknown rotary backend 'xla'"),
        (["pairwise", "--shapes", "pod-16"], "unknown pairwise shape 'pod-16' (did you mean 'pod-16k"),
        (["attention", "--shapes", "tiny", "--blocks", "8"], "block sizes read QUERIESxSOURCES"),
        (["attention", "--shapes", "tiny", "--batch", "0"], "at least one sample"),
    ],
)
def test_unknown_names(words, message, capsys):
    assert main(["bench", *words]) == 1
    assert message in capsys.readouterr().err


def test_what_cannot_be_parsed_exits_with_2(capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "atention"])
    assert end.value.code == 2
    assert "attention" in capsys.readouterr().err


def test_ahead_needs_libtpu(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "attention", "--aot", "v5e"]) == 1
    assert "pip install 'stvl[tpu]'" in capsys.readouterr().err


def kernel(name: str, bundles: int, **fields: int) -> KernelSchedule:
    """A schedule with one block."""
    numbers = {"spills": 5000, "fills": 0, "vmem": 3 * 2**20, "assumed": 0, "unknown": 0} | fields
    return KernelSchedule(
        name=name, pallas=True, static=bundles, bundles=bundles, waits=2 * bundles, slots={"MATMUL": 0.5},
        capacity={"MATMUL": 4}, blocks=(Block(0, 10, 7, 0.5),), loops=(), **numbers,
    )  # fmt: skip


def test_schedule_table(monkeypatch, tmp_path, capsys):
    def pretend(op, plan: Plan, chip: str, progress) -> list[Compiled]:
        assert (plan.dtype, plan.direction, plan.batch, chip) == ("bf16", "both", 1, "v5p")
        ours = (kernel("transpose_jvp_ours_backward__.1", 2_000_000), kernel("jvp_ours_.2", 1_000_000))
        theirs = (kernel("theirs.1", 4_500_000, assumed=3),)
        done = [
            Compiled("tiny", "tpu", "", "both", chip, 1, kernels=ours, others=1000),
            Compiled("tiny", "splash", "8x8", "both", chip, 1, kernels=theirs),
            Compiled("tiny", "xla", "", "both", chip, 1, reason="declines: too long"),
        ]
        for one in done:
            progress(one)
        return done

    monkeypatch.setattr(ahead, "bench_ahead", pretend)
    path = tmp_path / "aot.json"
    words = ["--shapes", "tiny", "--impls", "tpu,splash,xla", "--aot", "v5p", "--batch", "1"]
    assert main(["bench", "attention", *words, "--direction", "both", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "ours_backward" in out and "jvp" not in out.split("shape, backend, kernel")[1]
    assert "1.50 x the first backend" in out and "4.500*" in out and "10 x 7" in out
    assert "* some regions depend on memory" in out and "!" not in out.split("main x runs")[1]
    assert "tiny xla: declines: too long" in out
    assert json.loads(path.read_text())["compiled"][0]["kernels"][1]["bundles"] == 1_000_000


def test_short_names():
    names = {
        "transpose_jvp_stvl_attention_backward__.1": "stvl_attention_backward",
        "splash_mha_fwd_residuals.1 512x512": "splash_mha_fwd_residuals 512x512",
        "jvp_rotary_tpu_": "rotary_tpu",
    }
    assert {name: command._short(name) for name in names} == names


def test_step_table_and_file(monkeypatch, tmp_path, capsys):
    facts = {"versions": {"jax": "1.2", "grain": None}, "devices": 8, "device": "H", "platform": "gpu"}
    row = StepRow(
        "tiny-2f", "eva02-at/tiny", 2, 4, dtype="bfloat16", parameters=4131280, backends=("33 x 33: xla",),
        features=1e-3, gradient=2e-2, checked=("33 x 33: chunked",), compile_seconds=7.0, seconds=0.5,
        fastest=0.4, spread=0.1, clips_per_second=8.0, model_flops=10**12, peak=4e12, peak_source="a sheet",
        mfu=0.5, matmul=3e12, share=0.667, predicted=2**30, measured=2**31, ratio=0.5,
        environment={**facts, "processor": "P"},
    )  # fmt: skip
    bad = StepRow("b16-4f", "eva02-at/b16", 4, 64, reason="fails: no result after 3 s")
    plans = []

    def run(name: str, plan: StepPlan) -> StepRow:
        plans.append(plan)
        return row if name == "tiny-2f" else bad

    monkeypatch.setattr(measure, "_in_a_process", run)
    path = tmp_path / "step.json"
    words = ["--shapes", "tiny-2f,b16-4f", "--dtype", "bf16", "--batch", "4", "--remat", "full", "--no-check"]
    assert main(["bench", "step", *words, "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "tiny-2f: 500.00 ms" in out and "b16-4f: fails: no result after 3 s" in out
    line = next(line for line in out.splitlines() if line.startswith("│ tiny-2f"))
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == [
        *(
            "tiny-2f",
            "4",
            "bfloat16",
            "none",
            "500.00",
            "10%",
            "8.0",
            "50.0%",
            "66.7%",
            "1.000",
            "2.000",
            "0.50",
        )
    ]
    assert (
        "4,131,280 parameters, 1e+12 FLOPs a step by formula, compiled in 7.0 s; attention: 33 x 33: xla"
        in out
    )
    assert "features 1.0e-03, gradient 2.0e-02" in out
    assert "the comparison took other backends than the step: 33 x 33: chunked" in out
    assert "MFU of 4 TFLOP/s (a sheet); ceiling: a matrix product in bfloat16, 3 TFLOP/s in this run" in out
    assert "device: 1 of 8 x H (gpu); host: P" in out and "versions: jax 1.2\n" in out
    assert read_step_report(path).rows == (row, bad)
    assert plans == [StepPlan(("tiny-2f", "b16-4f"), "bf16", "full", 4, False)] * 2


def test_step_list(capsys):
    assert main(["bench", "step", "--list"]) == 0
    assert "b16-16f   eva02-at/b16, 16 frames, batch 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["step", "--impls", "xla"], "--impls belongs to the ops, not to a step"),
        (["step", "--aot", "v5e"], "--aot belongs to the ops"),
        (["step", "--direction", "both"], "--direction belongs to the ops"),
        (["step", "--shapes", "b16-4"], "unknown step 'b16-4' (did you mean 'b16-4f'?)"),
        (["step", "--remat", "ful"], "unknown remat policy 'ful' (did you mean 'full'?)"),
        (["rotary", "--remat", "full"], "--remat and --no-check belong to `stvl bench step`, not to rotary"),
        (["attention", "--no-check"], "--remat and --no-check belong to"),
    ],
)
def test_what_belongs_to_steps_and_to_ops(words, message, capsys):
    assert main(["bench", *words]) == 1
    assert message in capsys.readouterr().err
