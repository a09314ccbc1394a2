"""Two processes and one bucket: each writes its part of the checkpoints, one writes the log."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stvl.core.paths import to_path
from stvl.train.checkpoints import steps
from stvl.train.logs import read_log
from tests.fixtures import ROOT, tiny_experiment

CONFIG = """
from tests.fixtures import tiny_experiment


def experiment(world: str = ""):
    return tiny_experiment(world, steps=4, save_every=4)
"""


@pytest.mark.slow
def test_two_processes_train_in_a_bucket_and_one_goes_on(gcs, bucket, tmp_path, tiny_world, shared_compiles):
    from stvl.train.loop import train

    run = f"gs://{bucket}/two"
    (tmp_path / "tiny.py").write_text(CONFIG)
    program = tmp_path / "stvl"
    program.write_text(f'#!/bin/sh\ncd "{ROOT}"\nexec "{sys.executable}" -u -m stvl "$@"\n')
    program.chmod(0o755)
    command = [
        "bash",
        str(ROOT / "launch/local.sh"),
        "-n",
        "2",
        "--fake",
        "4",
        "--logs",
        str(tmp_path / "logs"),
    ]
    words = ["--", "train", str(tmp_path / "tiny.py"), f"world={tiny_world}", f"run={run}", "mesh.fsdp=8"]
    env = (
        os.environ
        | gcs.environment()
        | {"STVL": str(program), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    )
    done = subprocess.run(
        [*command, *words], env=env, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes arrived in" in done.stdout and "(fsdp 8)" in done.stdout
    assert steps(to_path(run)) == [4]
    for process in (0, 1):
        assert gcs.names(bucket, f"two/checkpoints/4/state/ocdbt.process_{process}/")
    assert [row["step"] for row in read_log(run)] == [1, 2, 3, 4]
    assert gcs.names(bucket, "two/log/") == ["two/log/000001.jsonl"]
    assert len(gcs.names(bucket, "two/events/")) == 1
    # The same by one process on a disk, and six steps of both by one process.
    one = str(tmp_path / "one")
    for folder, last in ((one, 4), (one, 6), (run, 6)):
        train(tiny_experiment(tiny_world, folder, steps=last, save_every=4))
    two, alone = ({row["step"]: row for row in read_log(folder)} for folder in (run, one))
    assert two.keys() == alone.keys() == set(range(1, 7))
    assert [two[step]["ids_crc"] for step in two] == [alone[step]["ids_crc"] for step in two]
    assert max(abs(two[step]["loss"] - alone[step]["loss"]) for step in two) < 1e-5
