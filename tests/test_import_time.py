"""The first second: what `import stvl` and `stvl --help` cost, and what they must not load."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(code: list[str]) -> str:
    """What a fresh process prints; its errors are shown when it fails."""
    done = subprocess.run(
        [sys.executable, *code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def best_seconds(code: list[str], limit: float, tries: int = 3) -> float:
    """Wall seconds of the fastest of a few fresh processes; stops at the first one under the limit."""
    best = float("inf")
    for _ in range(tries):
        begin = time.perf_counter()
        run(code)
        best = min(best, time.perf_counter() - begin)
        if best < limit:
            break
    return best


def loaded_after(code: str) -> set[str]:
    """Top-level packages in sys.modules of a fresh process after `code`."""
    code += "\nimport sys\nprint('\\nLOADED', *{name.split('.')[0] for name in sys.modules})"
    return set(run(["-c", code]).rpartition("LOADED")[2].split())


def test_import_takes_less_than_a_second():
    assert best_seconds(["-c", "import stvl"], limit=1.0) < 1.0


def test_import_loads_no_heavy_package():
    heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "av", "numpy", "PIL", "torch", "tensorflow"}
    assert loaded_after("import stvl") & heavy == set()


def test_help_takes_less_than_a_second_and_a_half():
    assert best_seconds(["-m", "stvl", "--help"], limit=1.5) < 1.5


def test_help_initialises_no_backend():
    code = """
import sys
sys.argv = ["stvl", "--help"]
from stvl.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    loaded = loaded_after(code)
    assert loaded & {"jax", "jaxlib", "flax", "orbax", "grain", "torch", "tensorflow"} == set()


def test_a_step_needs_no_decoder_and_no_command_line():
    # Machines with an accelerator for a quarter of an hour often bring jax, flax and optax, and nothing else of ours.
    loaded = loaded_after("import stvl.plan.measure, stvl.plan.resident")
    assert loaded & {"av", "grain", "tyro", "orbax", "torch", "tensorflow", "instant_clip_tokenizer"} == set()
