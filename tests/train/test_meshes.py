"""The losses of a run do not depend on how the devices are laid out, nor on how many processes hold them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import stvl.train.loop as loop
from stvl.dist.mesh import MeshConfig, make_mesh
from tests.fixtures import ROOT, shrunk_model, tiny_experiment

STEPS = 20
CHANGES: dict[str, Any] = {"steps": STEPS, "save_every": STEPS, "dtype": "float32"}
CONFIG = """
from tests.train.test_meshes import experiment_on


def experiment(world: str = "", fsdp: int = 1):
    return experiment_on(world, "", data=-1, fsdp=fsdp)
"""


def experiment_on(world: Path | str, folder: Path | str, **sizes: int) -> Any:
    """The run of this file on a mesh of these sizes: width 48 leaves head width 24 for rotation in three axes."""
    model = shrunk_model(width=48, temporal_positions="both")
    return tiny_experiment(world, folder, model=model, mesh=MeshConfig(**sizes), **CHANGES)


def curve(folder: Path) -> list[tuple[float, float]]:
    """(loss, ids drawn) of each step."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = [(row["loss"], row["ids_crc"]) for row in rows if "loss" in row]
    assert len(found) == STEPS
    return found


def alike(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> None:
    """Same clips, and losses within 1e-5 of each other in every step."""
    assert [ids for _, ids in one] == [ids for _, ids in other]
    worst = max(abs(left - right) for (left, _), (right, _) in zip(one, other, strict=True))
    print(f"largest difference of the losses over {STEPS} steps: {worst:.1e}")
    assert worst < 1e-5


@pytest.fixture(scope="module")
def on_one_device(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, float]]:
    """The losses on one device."""
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", lambda sizes: make_mesh(sizes, jax.devices()[:1]))
        loop.train(experiment_on(tiny_world, folder, data=1))
    found = curve(folder)
    # It learns something, so that equal losses say something.
    assert np.ptp([loss for loss, _ in found]) > 0.1
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [{"data": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"fsdp": 2, "context": 4}],
    ids=lambda sizes: "-".join(f"{name}{size}" for name, size in sizes.items()),
)
def test_eight_devices_train_as_one(sizes, on_one_device, tiny_world, tmp_path):
    loop.train(experiment_on(tiny_world, tmp_path, **({"data": 1} | sizes)))
    alike(curve(tmp_path), on_one_device)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 8])
def test_two_processes_of_four_devices_train_as_one(fsdp, on_one_device, tiny_world, tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    program = tmp_path / "stvl"
    program.write_text(f'#!/bin/sh\ncd "{ROOT}"\nexec "{sys.executable}" -u -m stvl "$@"\n')
    program.chmod(0o755)
    command = ["bash", str(ROOT / "launch/local.sh"), "-n", "2", "--fake", "4", "--logs", str(tmp_path), "--"]
    words = ["train", str(tmp_path / "tiny.py"), f"world={tiny_world}", f"run={tmp_path / 'run'}"]
    env = os.environ | {"STVL": str(program), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        [*command, *words, f"fsdp={fsdp}"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes arrived in" in done.stdout
    alike(curve(tmp_path / "run"), on_one_device)
