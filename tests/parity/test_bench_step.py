"""The table of ratios: turns in their order, what has no ratio and why; and torch's side on a tiny step."""

from __future__ import annotations

import dataclasses
import json
import subprocess

import pytest

from stvl.core.errors import ConfigError
from stvl.plan.measure import StepRow

from . import bench_step, bench_torch
from .bench_step import Asked, asked_for, main, summary, table, torch_words, turns

OURS = {
    **dataclasses.asdict(StepRow("tiny-2f", "m", 2, 8, 32, "float32")),
    **{"parameters": 100, "seconds": 0.2, "model_flops": 10**12, "peak": 2e13, "matmul": 1e13},
    **{"measured": 2**30, "predicted": 2**29, "ratio": 0.5, "side": "jax"},
}
THEIRS = {
    **dataclasses.asdict(bench_torch.TorchRow("tiny-2f", 2, 8, "float32", "own", "off")),
    **{"parameters": 100, "seconds": 0.5, "model_flops": 10**12, "allocated": 2**31, "side": "torch"},
}


def test_ratio_of_medians():
    done = [{**OURS, "seconds": 0.2}, {**THEIRS, "seconds": 0.6}, {**OURS, "seconds": 0.4}]
    row = summary("tiny-2f", done)
    assert row["reason"] == "" and row["turns"] == {"jax": 2, "torch": 1}
    assert row["ratio"] == pytest.approx(0.6 / 0.3)
    assert (row["low"], row["high"]) == (pytest.approx(1.5), pytest.approx(3.0))
    assert row["jax_mfu"] == pytest.approx(1 / 0.3 / 20) and row["torch_share"] == pytest.approx(1 / 0.6 / 10)
    assert (row["jax_bytes"], row["torch_bytes"], row["memory_ratio"]) == (2**30, 2**31, 0.5)
    cells = [cell.strip() for cell in table([row]).splitlines()[2].strip("|").split("|")]
    assert cells == [
        *("tiny-2f", "8", "300.0", "600.0", "2.00 (1.50 to 3.00)", "16.7 %", "8.3 %", "33.3 %", "16.7 %"),
        *("1.00", "2.00"),
    ]


@pytest.mark.parametrize(
    ("done", "said"),
    [
        ([OURS, {**THEIRS, "parameters": 101}], "not the same step: parameters is 100 in stvl, 101 in torch"),
        ([OURS, {**THEIRS, "dtype": "bfloat16"}], "not the same step: dtype is float32 in stvl, bfloat16 in"),
        ([OURS, {**THEIRS, "model_flops": 1}], "not the same step: model_flops is"),
        ([OURS], "torch: it had no turn"),
        (
            [OURS, {**THEIRS, "seconds": None, "reason": "fails: out of memory"}],
            "torch: fails: out of memory",
        ),
        ([{**OURS, "seconds": None, "reason": "wrong: a"}, THEIRS, OURS], "jax: wrong: a"),
    ],
)
def test_no_ratio(done, said):
    row = summary("tiny-2f", done)
    assert row["reason"].startswith(said) and "ratio" not in row
    assert said in table([row])


def test_turns_and_file(monkeypatch, tmp_path, capsys):
    plans, seen = [], []

    def ours(plan):
        plans.append(plan)
        return (StepRow(**{name: value for name, value in OURS.items() if name != "side"}),)

    def theirs(words, **how):
        seen.append((words, how["env"]["JAX_PLATFORMS"], how["timeout"]))
        row = {name: value for name, value in THEIRS.items() if name != "side"}
        return subprocess.CompletedProcess(words, 0, f"noise\n{json.dumps(row)}\n", "")

    monkeypatch.setattr(bench_step, "bench_step", ours)
    monkeypatch.setattr(subprocess, "run", theirs)
    path = tmp_path / "r.json"
    words = ["--sizes", "tiny-2f", "--limit", "9", "--compile", "off", "--batch", "8", "--json", str(path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("$ stvl")] == [
        "$ stvl bench step --shapes tiny-2f --dtype auto --batch 8",
        "$ stvl bench step --shapes tiny-2f --dtype auto --batch 8 --no-check",
    ]
    assert "tiny-2f torch: 500.00 ms" in out and "| 2.50 (2.50 to 2.50) |" in out
    assert [(plan.shapes, plan.check, plan.limit) for plan in plans] == [
        (("tiny-2f",), True, 9.0),
        (("tiny-2f",), False, 9.0),
    ]
    ((command, platform, limit),) = seen
    assert command[1:4] == ["-m", "tests.parity.bench_torch", "tiny-2f"] and (platform, limit) == ("cpu", 9.0)
    assert command[-6:] == ["--compile", "off", "--sdpa", "best", "--blocks", "auto"]
    found = json.loads(path.read_text())
    assert [row["side"] for row in found["turns"]] == ["jax", "torch", "jax"]
    assert found["sizes"][0]["ratio"] == pytest.approx(2.5)
    assert found["command"].startswith("python -m tests.parity.bench_step --sizes tiny-2f")


def test_turns_that_fail(monkeypatch):
    asked = Asked(("tiny-2f",), order=("torch",), limit=2.0)

    def too_long(words, **how):
        raise subprocess.TimeoutExpired(words, how["timeout"])

    monkeypatch.setattr(subprocess, "run", too_long)
    (row,) = turns(asked, lambda done: None)
    assert row["reason"] == "fails: no result after 2 s"
    monkeypatch.setattr(
        subprocess, "run", lambda words, **how: subprocess.CompletedProcess(words, 1, "", "a\nno torch\n")
    )
    (row,) = turns(asked, lambda done: None)
    assert row["reason"] == "fails: exit code 1: no torch"
    (row,) = turns(dataclasses.replace(asked, total=-1.0), lambda done: None)
    assert row["reason"].startswith("not begun")


def test_words():
    asked, path = asked_for(["--sizes", "b16-4f,l14-4f", "--order", "jax,torch", "--total", "60"])
    assert (asked.sizes, asked.order, asked.total, path) == (
        ("b16-4f", "l14-4f"),
        ("jax", "torch"),
        60.0,
        None,
    )
    assert torch_words("b16-4f", asked)[2:6] == ["tests.parity.bench_torch", "b16-4f", "--dtype", "auto"]
    with pytest.raises(ConfigError, match=r"unknown step 'b16-4' \(did you mean 'b16-4f'\?\)"):
        asked_for(["--sizes", "b16-4"])
    with pytest.raises(ConfigError, match=r"--order names jax and torch, found 'tourch'"):
        asked_for(["--order", "jax,tourch"])


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.usefixtures("torch_installed")
def test_torch_is_measured(capsys):
    words = ["tiny-2f", "--batch", "2", "--compile", "off", "--budget", "0.1", "--blocks", "own"]
    assert bench_torch.main([*words, "--dtype", "f32"]) == 0
    row = bench_torch.TorchRow(**json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert row.reason == "" and row.parameters == 4131280 and (row.batch, row.frames) == (2, 2)
    assert row.seconds is not None and row.matmul is not None and row.share is not None
    assert row.share == pytest.approx(row.model_flops / row.seconds / row.matmul)
    assert row.versions["torch"] and row.blocks == "own" and row.measurements >= 3


@pytest.mark.torch
@pytest.mark.usefixtures("torch_installed")
def test_torch_that_fails_is_a_row(monkeypatch):
    def refuse(plan, row):
        raise RuntimeError("CUDA out of memory\nand more")

    monkeypatch.setattr(bench_torch, "_measured", refuse)
    row = bench_torch.measured(bench_torch.TorchPlan("tiny-2f", blocks="own"))
    assert row.reason == "fails: CUDA out of memory" and row.seconds is None


@pytest.mark.torch
@pytest.mark.usefixtures("torch_installed")
def test_switches_of_attention_are_put_back():
    import torch

    switches = torch.backends.cuda
    with bench_torch.only("flash", math=False):
        assert switches.flash_sdp_enabled() and not switches.cudnn_sdp_enabled()
        assert not switches.mem_efficient_sdp_enabled() and not switches.math_sdp_enabled()
    assert switches.cudnn_sdp_enabled() and switches.math_sdp_enabled()
