"""A run folder in a bucket: killed and gone on with, evaluated, started from and converted as one on a disk is."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import jax
import numpy as np
import pytest

from stvl.cli.main import main
from stvl.core.errors import ConfigError
from stvl.core.paths import AnyPath, to_path
from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.eval.result import Result
from stvl.train.checkpoints import saved_experiment, steps
from stvl.train.encoders import load_run
from stvl.train.init import Pretrained
from stvl.train.logs import read_log
from stvl.train.loop import train
from stvl.train.state import Starter
from tests.fake_gcs import FakeGcs
from tests.fixtures import ROOT, TrainedRun, same, tiny_experiment
from tests.train.test_kill import MODULE, SAVE_EVERY, last_state

STEPS = 16

Command = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def command(gcs: FakeGcs) -> Command:
    """Starts ``stvl WORD ...`` in a process of its own, on one device, led to the fake."""
    env = {**os.environ, **gcs.environment()}
    env |= {"PAUSE": "0.08", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "stvl", *words],
            cwd=ROOT,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )

    return start


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a good end, and what was printed."""
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    return out


def ids(run: AnyPath) -> dict[int, float]:
    """Step -> fingerprint of the ids drawn; a step that was run twice must have drawn the same."""
    found: dict[int, float] = {}
    for row in read_log(run):
        assert found.setdefault(row["step"], row["ids_crc"]) == row["ids_crc"]
    return found


@pytest.mark.slow
def test_killed_in_a_bucket_and_resumed_is_bit_identical_to_left_alone_on_a_disk(
    command, gcs, bucket, tiny_world, tmp_path
):
    config = tmp_path / "killed.py"
    config.write_text(MODULE)
    alone, killed = tmp_path / "alone", to_path(f"gs://{bucket}/runs/killed")
    words = ("train", str(config), f"world={tiny_world}", f"steps={STEPS}")
    finish(command(*words, f"run={alone}"))
    process = command(*words, f"run={killed}")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"step {2 * SAVE_EVERY + 2}/"):
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait(timeout=60) == -signal.SIGKILL
    whole = steps(killed)
    assert whole and max(whole) < STEPS
    # The rows that led to a checkpoint have arrived before it.
    assert set(range(1, max(whole) + 1)) <= ids(killed).keys()
    out = finish(command(*words, f"run={killed}"))
    resumed = re.search(r"resumed from step (\d+) in (.*)", out)
    assert resumed and (int(resumed[1]), resumed[2]) == (max(whole), str(killed)), out
    same(last_state(killed, STEPS), last_state(alone, STEPS))
    assert ids(killed) == ids(alone)
    assert sorted(ids(killed)) == list(range(1, STEPS + 1))
    names = gcs.names(bucket, "runs/killed/")
    assert [name for name in names if "/log/" in name] == [f"runs/killed/log/00000{n}.jsonl" for n in (1, 2)]
    assert len([name for name in names if "/events/" in name]) == 2
    assert "runs/killed/experiment.json" in names
    assert not (ROOT / "gs:").exists()


@pytest.fixture(scope="module")
def in_bucket(gcs: FakeGcs, tiny_run: TrainedRun) -> str:
    """The tiny run once more, in a bucket. Read only, but for its results."""
    gcs.objects["shared"] = {}
    experiment = dataclasses.replace(tiny_run.experiment, run="gs://shared/runs/tiny")
    assert train(experiment) == tiny_run.scores
    return experiment.run


def test_a_run_in_a_bucket_leaves_what_one_on_a_disk_leaves(gcs, in_bucket, tiny_run):
    names = gcs.names("shared", "runs/tiny/")
    on_disk = {
        path.relative_to(tiny_run.folder).parts[0] for path in tiny_run.folder.rglob("*") if path.is_file()
    }
    assert {name.split("/")[2] for name in names} - {"log"} == on_disk - {"log.jsonl"}
    assert steps(to_path(in_bucket)) == steps(tiny_run.folder)
    assert saved_experiment(to_path(in_bucket)).run == in_bucket
    rows, expected = read_log(in_bucket), read_log(tiny_run.folder)
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    assert [row.get("loss") for row in rows] == [row.get("loss") for row in expected]
    found = Result.from_json(f"{in_bucket}/results/EpicMIR-6.json")
    assert found.metrics == Result.from_json(tiny_run.folder / "results/EpicMIR-6.json").metrics
    same(load_run(in_bucket).params, load_run(tiny_run.folder).params)
    same(load_run(in_bucket, step=4).params, load_run(tiny_run.folder, step=4).params)


def test_eval_embed_and_search_take_a_run_in_a_bucket(in_bucket, tiny_run, tiny_world, tmp_path, capsys):
    disk = shutil.copytree(tiny_run.folder, tmp_path / "disk")
    assert main(["eval", in_bucket, str(disk), "--protocols", "EgoMCQ"]) == 0
    out = capsys.readouterr().out
    assert f"written: {in_bucket}/results/EgoMCQ.json" in out and "side by side" in out
    found = Result.from_json(f"{in_bucket}/results/EgoMCQ.json")
    assert found.metrics == Result.from_json(disk / "results/EgoMCQ.json").metrics
    for name, run in (("bucket", in_bucket), ("disk", str(disk))):
        assert main(["embed", "--run", run, "--out", str(tmp_path / f"{name}.npz"), "--text", "a", "b"]) == 0
    one, two = (np.load(tmp_path / f"{name}.npz")["embeddings"] for name in ("bucket", "disk"))
    assert (one == two).all()
    assert main(["embed", "--run", in_bucket, "--out", f"{in_bucket}/texts.npz", "--text", "a", "b"]) == 0
    assert (
        main(["search", "move up", "--run", in_bucket, "--build", f"{tiny_world}/videos/P02", "--top", "2"])
        == 0
    )
    assert "move up" in capsys.readouterr().out
    assert main(["eval", "report", f"{in_bucket}/results/EgoMCQ.json"]) == 0


def test_a_run_starts_from_one_in_a_bucket(in_bucket, tiny_world, tmp_path):
    experiment = tiny_experiment(tiny_world, tmp_path / "next", init=Pretrained(folder=in_bucket))
    starter = Starter(experiment, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    start = starter.pretrained()
    assert start.init.step == 6 and start.notes[0].startswith(f"start from {in_bucket} (sha256 ")
    same(start.params, load_run(in_bucket).params)


def test_weights_come_out_of_a_run_in_a_bucket(in_bucket, tiny_run, tmp_path, capsys):
    for name, run in (("bucket", in_bucket), ("disk", str(tiny_run.folder))):
        assert main(["convert", run, "--out", str(tmp_path / name)]) == 0
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("bucket", "disk"))
    assert one == two
    capsys.readouterr()
    assert main(["inspect", in_bucket, "--verify"]) == 0
    assert "all values are finite" in capsys.readouterr().out
    assert main(["diff", in_bucket, str(tiny_run.folder), "--params"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embed", "--weights", "gs://shared/w", "--out", "x", "--text", "a"], "weights folders are read and written"),
        (["convert", "gs://shared/runs/tiny", "--out", "gs://shared/w"], "a weights folder is written on a disk"),
        (["claims", "list", "--out", "gs://shared/claims"], "records of claims are kept on a disk"),
        (["embed", "--run", "gs://shared/runs/no", "--out", "x", "--text", "a"], "holds no finished checkpoint"),
        (["inspect", "gs://shared/runs/no"], "there is no file or folder 'gs://shared/runs/no'"),
        (["inspect", "gs://shared/file.safetensors"], "files of weights are read from a disk"),
    ],
)  # fmt: skip
def test_what_stays_on_a_disk_says_so(words, message, in_bucket, gcs, capsys):
    to_path("gs://shared/file.safetensors").write_bytes(b"x")
    assert main(words) == 1
    assert message in capsys.readouterr().err


def test_a_bucket_that_is_not_there_is_named_before_anything_is_done(gcs, tiny_world):
    with pytest.raises(
        ConfigError, match=r"gs://no-such/run: the bucket no-such cannot be seen \(FileNotFound"
    ):
        train(tiny_experiment(tiny_world, "gs://no-such/run"))
    assert "no-such" not in gcs.objects
