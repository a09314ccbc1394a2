"""launch/gpu_check.sh with a stand-in for Python: what it prints is what it runs, within its time, whatever fails."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.fixtures import ROOT

STAGES = ["doctor", "contract", "attention", "step", "memory"]

#: Stands for Python: says its words, its path, and JSON where JSON is asked for; `BAD` fails, `SLOW` sleeps.
PYTHON = """#!/bin/sh
case "$*" in
    -) echo "missing for contract: beartype"; cat >/dev/null; exit 0 ;;
    *resident*) echo '{"ratio": 1}'; echo "of memory" >&2 ;;
    *) printf '%s|' "$@"; echo; echo "path $PYTHONPATH cache $JAX_COMPILATION_CACHE_DIR" ;;
esac
case "$*" in *${BAD:-nothing}*) echo "went wrong" >&2; exit 3 ;; esac
case "$*" in *${SLOW:-nothing}*) sleep 30 ;; esac
exit 0
"""


@pytest.fixture
def python(tmp_path: Path) -> str:
    path = tmp_path / "my python"
    path.write_text(PYTHON)
    path.chmod(0o755)
    return str(path)


def check(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("STVL")}
    return subprocess.run(
        ["bash", str(ROOT / "launch/gpu_check.sh"), *words],
        cwd=ROOT.parent,
        env=variables | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def shown(text: str) -> list[list[str]]:
    return [shlex.split(line[2:]) for line in text.splitlines() if line.startswith("$ ")]


def test_dry_run_prints_and_makes_nothing(tmp_path):
    out = tmp_path / "a b"
    done = check("--dry-run", "--out", str(out), STVL_PYTHON="py", STVL_EXTRA_PATH="/more packages")
    assert done.returncode == 0 and not out.exists()
    commands = shown(done.stdout)
    assert len(commands) == len(STAGES)
    assert all(words[:2] == ["env", f"PYTHONPATH={ROOT}:/more packages"] for words in commands)
    doctor, contract, attention, step, memory = (words[2:] for words in commands)
    assert doctor[:4] == ["py", "-m", "stvl", "doctor"] and doctor[-1] == f"{out}/doctor.json"
    assert contract[:4] == ["STVL_TEST_PLATFORM=cuda", "py", "-m", "pytest"] and "gpu" in contract
    assert attention[:5] == ["py", "-m", "stvl", "bench", "attention"] and "cudnn,gpu,xla" in attention
    assert step[:4] == ["JAX_COMPILATION_CACHE_DIR=CACHE", "py", "-m", "tests.parity.bench_step"]
    assert step[step.index("--sizes") + 1] == "b16-4f,l14-4f,b16-16f,l14-16f"
    assert step[step.index("--total") + 1] == "585"
    assert memory[1:4] == ["py", "-m", "stvl.plan.resident"] and "model.video.remat=full" in memory


def test_options_reach_the_commands():
    words = ["--stages", "step", "--sizes", "tiny-2f", "--compile", "blocks", "--budget", "100", "--dry-run"]
    (step,) = shown(check(*words).stdout)
    assert step[step.index("--sizes") + 1] == "tiny-2f" and step[step.index("--compile") + 1] == "blocks"
    assert step[step.index("--total") + 1] == "85"


def test_what_it_prints_it_runs(tmp_path, python):
    out = tmp_path / "out"
    done = check("--out", str(out), STVL_PYTHON=python, STVL_EXTRA_PATH="/more", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing for contract: beartype" in done.stdout
    commands = shown(done.stdout)
    for words in commands[:4]:
        start = words.index(python) + 1
        assert "".join(f"{word}|" for word in words[start:]) in done.stdout
    assert f"path {ROOT}:/more cache \n" in done.stdout
    # Compiled programs lie in a folder that is gone afterwards.
    assert f"cache {tmp_path}/stvl-gpu." in done.stdout and not list(tmp_path.glob("stvl-gpu.*"))
    assert (out / "memory.json").read_text() == '{"ratio": 1}\n'
    log = (out / "log.txt").read_text()
    assert shown(log) == commands and "of memory" in log and "memory: done" in log
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "memory.json"]


def test_a_stage_that_fails_stops_no_other(tmp_path, python):
    out = str(tmp_path / "out")
    done = check("--out", out, STVL_PYTHON=python, BAD="tests/ops", TMPDIR=str(tmp_path))
    assert done.returncode == 1 and "failed: contract\n" in done.stderr
    assert "contract: FAILED with status 3" in done.stdout and "step: done in" in done.stdout
    assert "went wrong" in (tmp_path / "out/log.txt").read_text()


def test_the_budget_is_kept(tmp_path, python):
    out = str(tmp_path / "out")
    words = ["--out", out, "--budget", "12", "--stages", "doctor,attention,step"]
    done = check(*words, STVL_PYTHON=python, SLOW="bench attention", TMPDIR=str(tmp_path))
    assert done.returncode == 1 and "failed: attention step\n" in done.stderr
    assert "doctor: done" in done.stdout and "attention: stopped after" in done.stdout
    assert "step: not begun, the budget of 12 s is spent" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nosuch"], "unknown argument --nosuch"),
        (["--budget"], "--budget needs a value"),
        (["--budget", "ten"], "--budget is a whole number of seconds above 0, found ten"),
        (
            ["--stages", "doctor,dcotor"],
            "--stages knows doctor, contract, attention, step and memory, found dcotor",
        ),
        (["--compile", "all"], "--compile is model, blocks or off, found all"),
    ],
)
def test_mistakes(words, said):
    done = check(*words)
    assert (
        done.returncode == 2 and said in done.stderr and "bash launch/gpu_check.sh [options]" in done.stderr
    )


def test_help():
    done = check("--help")
    assert done.returncode == 0 and done.stdout.startswith("bash launch/gpu_check.sh")
    assert all(f"\n  {stage} " in done.stdout for stage in STAGES)
