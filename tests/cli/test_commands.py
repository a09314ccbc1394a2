"""Every command on a small trained run, in this process."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stvl.train.loop as loop
from stvl.cli.main import main
from stvl.train.checkpoints import steps
from tests.fixtures import TrainedRun

CONFIG = '''
"""The tiny run."""

from tests.fixtures import tiny_experiment


def experiment(world: str):
    return tiny_experiment(world)
'''


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "tiny.py").write_text(CONFIG)
    return str(tmp_path / "tiny.py")


@pytest.mark.usefixtures("shared_compiles")
def test_train_then_preempted_then_finished(config, tiny_world, tmp_path, monkeypatch, capsys):
    command = ["train", config, f"world={tiny_world}", f"run={tmp_path / 'run'}"]
    advance = loop.Run.advance

    def advance_and_send(self: Any, number: int) -> Any:
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "advance", advance_and_send)
        assert main(command) == 75
    assert "error: SIGTERM: saved step 3 in" in capsys.readouterr().err
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "resumed from step 3 in" in out
    assert "step 6/6  loss" in out
    assert steps(tmp_path / "run")[-1] == 6


@pytest.mark.slow
@pytest.mark.usefixtures("shared_compiles")
def test_train_that_leaves_the_finite_numbers_exits_with_4(config, tiny_world, tmp_path, capsys):
    rate = ["optimizer.schedule.peak=1e30", "optimizer.schedule.warmup=0", "optimizer.clip=none"]
    rate += ["max_nonfinite=1"]
    assert main(["train", config, f"world={tiny_world}", f"run={tmp_path / 'run'}", *rate]) == 4
    err = capsys.readouterr().err
    assert "is nan; ids of its batch: P01_0" in err
    assert steps(tmp_path / "run") in ([], [2])


def test_train_dry_run_prints_the_experiment_and_the_counts(config, capsys):
    assert main(["train", config, "world=w", "model.video.depth=3", "--dry-run"]) == 0
    out = capsys.readouterr().out
    made, end = json.JSONDecoder().raw_decode(out)
    assert made["model"]["video"]["depth"] == 3
    assert out[end:].split() == ["video:", "0.05", "M", "parameters", "text:", "0.79", "M", "parameters"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.video.widht=3", "EVA02ATConfig has no field 'widht' (did you mean 'width'?)"),
        ("steps=many", "steps is a whole number, found 'many'"),
        ("mesh.data=3", "needs 3 devices, found 8"),
        ("loader.batch=26", "cuts a batch into 8 slices: set loader.batch to 24 or 32, or another mesh"),
        ("loader.batch=4", "set loader.batch to 8, or another mesh"),
        ("model.video.heads=3", "width 32 cannot be divided into 3 heads"),
        ("model.video.width=36", "divisible by 4, found 18 (nearest: 16 or 20)"),
        ("source.csv=none.csv", "none.csv"),
    ],
)
def test_train_refuses_what_cannot_be_used(config, tiny_world, tmp_path, override, message, capsys):
    run = tmp_path / "run"
    assert main(["train", config, f"world={tiny_world}", f"run={run}", override]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert not run.exists()


def test_eval_prints_scores_beside_chance_and_writes_them(tiny_run: TrainedRun, tmp_path, capsys):
    run = shutil.copytree(tiny_run.folder, tmp_path / "copy")
    assert main(["eval", str(run), "--protocols", "EgoMCQ"]) == 0
    assert "EgoMCQ" in capsys.readouterr().out
    result = json.loads((run / "results" / "EgoMCQ.json").read_text())
    assert result["metrics"]["mcq.intra"] == pytest.approx(tiny_run.scores["EgoMCQ/mcq.intra"])
    assert result["baseline"] == {"mcq.inter": 0.2, "mcq.intra": 0.2}
    assert result["card"]["positions"] == "both"


def test_eval_of_several_runs_is_side_by_side(tiny_run: TrainedRun, tmp_path, capsys):
    runs = [str(shutil.copytree(tiny_run.folder, tmp_path / name)) for name in ("one", "two")]
    assert main(["eval", *runs, "--protocols", "Opposites", "--frames", "3"]) == 0
    out = capsys.readouterr().out
    assert "side by side" in out
    assert all(word in out for word in ("one", "two", "chance", "Opposites opposites.mean"))
    assert (Path(runs[0]) / "results" / "Opposites-3f.json").is_file()


def test_eval_of_an_unknown_protocol_or_folder(tiny_run: TrainedRun, tmp_path, monkeypatch, capsys):
    assert main(["eval", str(tiny_run.folder), "--protocols", "EgoMCK"]) == 1
    assert "(did you mean 'EgoMCQ'?)" in capsys.readouterr().err
    assert main(["eval", str(tmp_path)]) == 1
    assert "holds no finished checkpoint" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["eval"]) == 1
    assert "train one with `stvl train CONFIG`" in capsys.readouterr().err


def test_embed_texts_clips_and_videos(tiny_run: TrainedRun, tiny_world, tmp_path, monkeypatch, capsys):
    # Without --run, the newest run under runs/ is taken.
    shutil.copytree(tiny_run.folder, tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert main(["embed", "--out", "text.npz", "--text", "red ball", "blue square"]) == 0
    assert main(["embed", "--out", "clips.npz", "--manifest", str(tiny_world / "manifest_train.csv")]) == 0
    videos = sorted(map(str, (tiny_world / "videos/P02").glob("*.mp4")))[:3]
    assert main(["embed", "--out", "videos.npz", "--videos", *videos, "--frames", "3"]) == 0
    assert "3 embeddings of width 16: videos.npz" in capsys.readouterr().out
    for name, count in (("text", 2), ("clips", 24), ("videos", 3)):
        with np.load(tmp_path / f"{name}.npz") as data:
            assert data["embeddings"].shape == (count, 16)
            np.testing.assert_allclose(np.linalg.norm(data["embeddings"], axis=1), 1, atol=1e-5)


def test_embed_takes_one_kind_of_input(capsys):
    assert main(["embed", "--out", "x.npz"]) == 1
    assert main(["embed", "--out", "x.npz", "--text", "a", "--manifest", "b.csv"]) == 1
    assert (
        capsys.readouterr().err.count(
            "error: give one of --videos FILE ..., --images FILE ..., --manifest CSV and --text"
        )
        == 2
    )


def test_search_builds_an_index_and_reads_it_again(tiny_run: TrainedRun, tiny_world, tmp_path, capsys):
    run, index, sheet = ["--run", str(tiny_run.folder)], tmp_path / "index.npz", tmp_path / "hits.png"
    build = ["--build", str(tiny_world / "videos/P02"), "--window", "0.6", "--stride", "0.6"]
    query = "red ball grows"
    assert (
        main(["search", query, *run, *build, "--index", str(index), "--top", "3", "--sheet", str(sheet)]) == 0
    )
    built = capsys.readouterr().out
    assert built.count("P02_0") == 3
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert main(["search", query, *run, "--index", str(index), "--top", "3"]) == 0
    again = capsys.readouterr().out
    hits = [[line for line in out.splitlines() if "P02_0" in line] for out in (built, again)]
    assert hits[0] == hits[1]


def test_search_without_anything_to_search(capsys):
    assert main(["search", "a query"]) == 1
    assert "give --build FOLDER to index videos, or --index FILE" in capsys.readouterr().err


def test_data_toy_then_check_then_damage(tmp_path, capsys):
    world = tmp_path / "world"
    small = [
        "--world.train-videos",
        "1",
        "--world.test-videos",
        "5",
        "--world.size",
        "32",
        "--world.seconds",
        "0.5",
        "0.6",
    ]
    assert main(["data", "toy", "--out", str(world), *small]) == 0
    assert "1 train videos" in capsys.readouterr().out
    with open(world / "manifest_train.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    assert main(["data", "check", str(world)]) == 0
    assert "6 files are good, 0 are damaged" in capsys.readouterr().out
    (world / "videos/P02/P02_03.mp4").write_bytes(b"no video")
    assert main(["data", "check", str(world)]) == 3
    out = capsys.readouterr().out
    assert "P02_03.mp4" in out.splitlines()[0]
    assert "5 files are good, 1 are damaged" in out
    assert main(["data", "check", str(world / "manifest_train.csv")]) == 0
    assert "1 files are good, 0 are damaged" in capsys.readouterr().out
    (world / "videos/P01/P01_01.mp4").unlink()
    assert main(["data", "check", str(world / "manifest_train.csv")]) == 1
    assert "manifest_train.csv, row 1: no video file" in capsys.readouterr().err
    assert main(["data", "toy", "--out", str(world), "--world.seed", "5"]) == 1
    assert "holds a toy world of other options" in capsys.readouterr().err
