"""Peak memory, measured in a process of its own: tensors go through one at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20

#: Reads VmHWM, the most memory that this process ever had in RAM; writing 5 to clear_refs sets it back.
PRELUDE = """
import json, sys
import numpy as np
from stvl.weights.source import Entry, open_source
from stvl.weights.load import Target, plan_load
from stvl.weights.rules import Layout, Linear, Rule
from stvl.weights.writer import write_safetensors

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))

def grown(action):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    action()
    return status("VmHWM") - before

path = sys.argv[1]
"""

WRITE = """
def block(value):
    return lambda: np.full((1024, 1024, 5), value, "f4")

entry = Entry((1024, 1024, 5), np.dtype("f4"))
items = [(f"blocks.{i}.w", entry, block(i)) for i in range(10)]
print(json.dumps(grown(lambda: write_safetensors(path, items))))
"""

READ = """
source = open_source(path)

def read():
    for name in source.entries:
        assert source.read(name)[0, 0, 0] == int(name.split(".")[1])

print(json.dumps([grown(read), grown(source.sha256)]))
"""

CONVERT = """
source = open_source(path)
shape = (10, 1024, 1024, 5)
rules = tuple(Rule(f"blocks.{i}.w", (f"w{i}",)) for i in range(10))
plan = plan_load(Layout("toy", rules), source, {f"w{i}": Target(shape[1:], np.dtype("f4")) for i in range(10)})
items = [(name, Entry(shape[1:], np.dtype("f4")), lambda name=name: plan.read(name)) for name in plan.targets]
print(json.dumps(grown(lambda: write_safetensors(path + ".out", items))))
"""


def child(code: str, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is a number of Linux")
def test_reading_writing_and_converting_hold_one_tensor(tmp_path: Path):
    """Ten tensors of 20 MiB, a file of 200 MiB."""
    path, largest = tmp_path / "big.safetensors", 20 * MIB
    written = json.loads(child(WRITE, path))
    assert path.stat().st_size > 10 * largest
    assert 0.5 * largest < written < 1.3 * largest
    read, hashed = json.loads(child(READ, path))
    assert 0.5 * largest < read < 1.3 * largest
    assert hashed < 4 * MIB
    converted = json.loads(child(CONVERT, path))
    assert 0.5 * largest < converted < 1.3 * largest
    (tmp_path / "big.safetensors.out").unlink()
    path.unlink()
