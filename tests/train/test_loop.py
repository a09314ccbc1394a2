"""Whole runs, shrunk: what they write, how they stop, and that stopping loses nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stvl.train.loop as loop
from stvl.core.errors import ConfigError, DataError, TrainingError
from stvl.data.pipeline import LoaderOptions
from stvl.data.sources import EpicSource
from stvl.train.checkpoints import saved_experiment, steps
from stvl.train.encoders import ModelEncoders
from stvl.train.loop import NonFiniteLoss, Preempted, train
from stvl.train.signals import StopFlag
from tests.fixtures import BATCH, FRAMES, TrainedRun, shrunk_model, tiny_experiment

pytestmark = pytest.mark.usefixtures("shared_compiles")


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, tuple[float, float]]:
    """Step -> (loss, ids drawn); a step that was run twice must have given the same."""
    found: dict[int, tuple[float, float]] = {}
    for row in rows(folder):
        if "loss" in row:
            value = row["loss"], row["ids_crc"]
            assert found.setdefault(int(row["step"]), value) == value
    return found


def test_a_run_leaves_a_log_results_events_and_checkpoints(tiny_run: TrainedRun):
    log = [row for row in rows(tiny_run.folder) if "loss" in row]
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    shares = {"data_wait", "host_to_device", "compute", "checkpoint"}
    speed = {"clips_per_second", "step_seconds", "mfu", "hfu", *shares}
    for row in log:
        assert set(row) - {"compile_seconds"} == {
            *("step", "time", "loss", "accuracy", "grad_norm", "ids_crc"),
            *speed,
        }
        assert row["clips_per_second"] == pytest.approx(BATCH / row["step_seconds"])
        assert all(0 <= row[name] <= 1 for name in shares) and sum(row[name] for name in shares) <= 1
        # Nothing is computed twice without remat.
        assert 0 < row["mfu"] == row["hfu"] < 1
    assert [row["step"] for row in log if row.get("compile_seconds", 0) > 0] == [1]
    assert log[0]["loss"] > 0.5 * math.log(BATCH)
    names = {path.name for path in (tiny_run.folder / "results").iterdir()}
    assert names == {"EpicMIR-6.json", "EgoMCQ-6.json", "Opposites-6.json"}
    assert next((tiny_run.folder / "events").iterdir()).stat().st_size > 0
    assert steps(tiny_run.folder) == [4, 6]
    assert saved_experiment(tiny_run.folder) == tiny_run.experiment


def test_scores_are_named_by_protocol_and_logged(tiny_run: TrainedRun):
    assert {"EpicMIR/map.avg", "EgoMCQ/mcq.inter", "Opposites/opposites.mean"} <= set(tiny_run.scores)
    assert all(0 <= score <= 1 for score in tiny_run.scores.values())
    last = rows(tiny_run.folder)[-1]
    assert {name: last[name] for name in tiny_run.scores} == tiny_run.scores


def test_a_finished_run_says_so_and_evaluates(tiny_run: TrainedRun, tmp_path, capsys):
    folder = shutil.copytree(tiny_run.folder, tmp_path / "copy")
    evals = tiny_run.experiment.evals[1:2]
    scores = train(dataclasses.replace(tiny_run.experiment, run=str(folder), evals=evals, best=""))
    assert scores == {name: value for name, value in tiny_run.scores.items() if name.startswith("EgoMCQ")}
    assert "has reached step 6 already; raise steps to train on" in capsys.readouterr().out


def test_another_architecture_is_refused_before_anything_is_written(tiny_run: TrainedRun):
    before = sorted(path.stat().st_mtime_ns for path in tiny_run.folder.rglob("*"))
    other = dataclasses.replace(tiny_run.experiment, model=shrunk_model(depth=1))
    with pytest.raises(
        TrainingError, match=r"model\.video\.depth: the checkpoint has 2, this run asks for 1"
    ):
        train(other)
    assert sorted(path.stat().st_mtime_ns for path in tiny_run.folder.rglob("*")) == before


def test_another_data_order_is_refused(tiny_run: TrainedRun):
    loader = dataclasses.replace(tiny_run.experiment.loader, seed=5)
    with pytest.raises(DataError, match="the saved data order has seed 0, this run has 5"):
        train(dataclasses.replace(tiny_run.experiment, loader=loader))


@pytest.fixture(scope="module")
def whole(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory, shared_compiles: None) -> Path:
    """The folder of a run of six steps that nothing interrupts, without protocols."""
    folder = tmp_path_factory.mktemp("whole")
    train(tiny_experiment(tiny_world, folder))
    return folder


def arrays(folder: Path, step: int) -> dict[str, bytes]:
    """Every parameter of a checkpoint, as bytes."""
    from stvl.train.encoders import load_run
    from tests.fixtures import leaves

    return {name: leaf.tobytes() for name, leaf in leaves(load_run(folder, step=step).params).items()}


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send SIGTERM to this process when `step` is drawn."""
    advance = loop.Run.advance

    def advance_and_send(self: Any, number: int) -> Any:
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, number)

    monkeypatch.setattr(loop.Run, "advance", advance_and_send)


def test_sigterm_saves_the_step_and_the_next_start_goes_on(whole, tiny_world, tmp_path, monkeypatch, capsys):
    experiment = tiny_experiment(tiny_world, tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(
            Preempted, match=r"SIGTERM: saved step 3 in .*; the same command goes on"
        ) as problem:
            train(experiment)
    assert problem.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is handler
    assert steps(tmp_path) == [2, 3]
    train(experiment)
    assert "resumed from step 3" in capsys.readouterr().out
    assert losses(tmp_path) == losses(whole)
    assert len(losses(whole)) == 6
    assert arrays(tmp_path, 6) == arrays(whole, 6)


def test_sigterm_before_the_first_step_leaves_at_once(tiny_world, tmp_path, monkeypatch):
    left: list[tuple[str, int]] = []

    class Left(Exception):
        pass

    def leave(self: Any, text: str, code: int) -> None:
        left.append((text, code))
        raise Left

    stop = StopFlag()
    stop._asked = True
    monkeypatch.setattr(loop.Peers, "call_off", leave)
    with pytest.raises(Left):
        train(tiny_experiment(tiny_world, tmp_path), stop=stop)
    assert left == [(loop.CALLED_OFF, 75)]
    assert not (tmp_path / "checkpoints").exists()


def test_sigterm_in_an_evaluation_gives_it_up_and_saves(tiny_run: TrainedRun, tmp_path, monkeypatch, capsys):
    experiment = dataclasses.replace(tiny_run.experiment, run=str(tmp_path), eval_every=3)
    embed = ModelEncoders.video

    def embed_and_send(self: Any, frames: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return embed(self, frames)

    with monkeypatch.context() as patch:
        patch.setattr(ModelEncoders, "video", embed_and_send)
        with pytest.raises(Preempted, match="SIGTERM: saved step 3 in "):
            train(experiment)
    assert "evaluation at step 3 given up: SIGTERM" in capsys.readouterr().out
    assert steps(tmp_path) == [2, 3]
    assert not (tmp_path / "results").exists()
    assert train(experiment) == tiny_run.scores


def test_sigterm_in_the_last_step_is_a_finished_run(tiny_world, tmp_path, monkeypatch):
    interrupt(monkeypatch, 6)
    train(tiny_experiment(tiny_world, tmp_path))
    assert steps(tmp_path)[-1] == 6


def test_a_checkpoint_never_carries_the_scores_of_another_step(tiny_world, tmp_path, monkeypatch):
    saved: dict[int, Any] = {}
    save = loop.Run.save

    def save_and_note(self: Any, metrics: dict[str, float] | None = None) -> None:
        saved[int(self.state.step)] = metrics
        save(self, metrics)

    monkeypatch.setattr(loop.Run, "save", save_and_note)
    monkeypatch.setattr(loop.Run, "evaluate", lambda self, number, stop=None: {"score": float(number)})
    interrupt(monkeypatch, 4)
    with pytest.raises(Preempted):
        train(tiny_experiment(tiny_world, tmp_path, eval_every=2, save_every=1))
    # An evaluation was due in step 4 too, but the signal came first.
    assert saved == {1: None, 2: {"score": 2.0}, 3: None, 4: None}


def spoil_metric(monkeypatch: pytest.MonkeyPatch, name: str, *steps: int) -> list[np.ndarray]:
    """Let a metric of some steps be NaN; the list gets the rows drawn in every step."""
    advance, drawn = loop.Run.advance, []

    def advance_and_spoil(self: Any, number: int) -> Any:
        sent = advance(self, number)
        drawn.append(sent.index)
        if number in steps:
            sent.metrics[name] = np.float32("nan")
        return sent

    monkeypatch.setattr(loop.Run, "advance", advance_and_spoil)
    return drawn


@pytest.mark.parametrize(("metric", "said"), [("loss", "loss"), ("grad_norm", "gradient's norm")])
def test_non_finite_numbers_stop_the_run_with_the_clips(metric, said, tiny_world, tmp_path, monkeypatch):
    drawn = spoil_metric(monkeypatch, metric, 4)
    experiment = tiny_experiment(tiny_world, tmp_path)
    experiment = dataclasses.replace(experiment, max_nonfinite=0)
    with pytest.raises(NonFiniteLoss, match=f"the {said} of step 4 is nan; ids of its batch: ") as problem:
        train(experiment)
    assert problem.value.exit_code == 4
    ids = str(problem.value).split("batch: ")[1].split(". The newest checkpoint is of step 2;")[0].split(", ")
    (row,) = map(json.loads, (tmp_path / "nonfinite.jsonl").read_text().splitlines())
    assert row["ids"] == ids and row["step"] == 4 and row[metric] == "nan"
    table = experiment.source.load()
    assert ids == [table[int(row)].id for row in drawn[3]]
    # Step 4 was a step to save at; what it made is not there.
    assert steps(tmp_path) == [2]


def test_non_finite_steps_are_passed_over_up_to_the_limit_also_after_a_restart(
    tiny_world, tmp_path, monkeypatch, capsys
):
    experiment = tiny_experiment(tiny_world, tmp_path, max_nonfinite=2)
    with monkeypatch.context() as patch:
        spoil_metric(patch, "loss", 2, 3)
        interrupt(patch, 4)
        with pytest.raises(Preempted):
            train(experiment)
    told = [
        line for line in capsys.readouterr().out.splitlines() if " passed over: the loss is nan (" in line
    ]
    assert [line.split(";")[0] for line in told] == [
        "step 2 passed over: the loss is nan (1 of at most 2 in 100 steps)",
        "step 3 passed over: the loss is nan (2 of at most 2 in 100 steps)",
    ]
    assert "passed_over" not in rows(tmp_path)[0] and rows(tmp_path)[2]["passed_over"] == 2
    # The checkpoint remembers the two, and a third one stops the run that goes on from it.
    spoil_metric(monkeypatch, "grad_norm", 6)
    with pytest.raises(NonFiniteLoss, match=r"It is number 3 in 100 steps, max_nonfinite = 2\. The newest"):
        train(experiment)
    kept = [json.loads(line) for line in (tmp_path / "nonfinite.jsonl").read_text().splitlines()]
    assert [row["step"] for row in kept] == [2, 3, 6]
    assert all(len(row["ids"]) == BATCH for row in kept)


def test_a_log_row_of_a_step_that_was_passed_over_is_json(tiny_world, tmp_path, monkeypatch):
    spoil_metric(monkeypatch, "loss", 2)
    train(tiny_experiment(tiny_world, tmp_path))

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is no JSON")

    text = (tmp_path / "log.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=refuse) for line in text]
    assert found[1]["loss"] is None and found[1]["grad_norm"] > 0


def test_best_must_be_a_score_of_the_protocols(tiny_run: TrainedRun, tmp_path):
    evals = tiny_run.experiment.evals[1:2]
    with pytest.raises(
        ConfigError, match=r"best = 'EgoMCQ/mcq.intre' is no score .*did you mean 'EgoMCQ/mcq.intra'"
    ):
        train(
            dataclasses.replace(tiny_run.experiment, run=str(tmp_path), evals=evals, best="EgoMCQ/mcq.intre")
        )


@pytest.fixture
def damaged(tiny_world: Path, tmp_path: Path) -> Path:
    """The toy world with one of its four training videos cut to a stub."""
    world = shutil.copytree(tiny_world, tmp_path / "world")
    (world / "videos/P01/P01_02.mp4").write_bytes(b"no video")
    return world


def with_limit(world: Path, run: Path, share: float) -> Any:
    loader = LoaderOptions(batch=BATCH, frames=FRAMES, threads=1, max_bad_share=share)
    source = EpicSource(csv=f"{world}/EPIC_100_retrieval_train.csv", videos=f"{world}/videos")
    return tiny_experiment(world, run, loader=loader, source=source)


def test_one_damaged_file_is_skipped_and_told(damaged, tmp_path, capsys):
    train(with_limit(damaged, tmp_path / "run", 0.5))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped ")]
    assert len(told) == 1
    assert "P01_02.mp4 (row " in told[0]
    assert steps(tmp_path / "run") == [4, 6]


def test_too_many_damaged_files_stop_the_run(damaged, tmp_path):
    with pytest.raises(
        TrainingError, match=r"samples \(.*\) were damaged, the limit \(max_bad_share\) is 1.0%"
    ) as problem:
        train(with_limit(damaged, tmp_path / "run", 0.01))
    assert "P01_02.mp4 (row " in str(problem.value)
