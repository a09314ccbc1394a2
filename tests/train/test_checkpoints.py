"""Checkpoints of a state so small that every case is quick: what is kept, what is refused, and onto which mesh."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from stvl.core.errors import TrainingError
from stvl.data.mining import HardMining
from stvl.dist.mesh import MeshConfig, make_mesh, replicated
from stvl.train.checkpoints import Checkpoints, saved_experiment, steps, write_experiment
from stvl.train.optimizers import LAMB
from stvl.train.state import TrainState
from tests.fixtures import same, shrunk_model, tiny_experiment

ONE = make_mesh(MeshConfig(data=1), jax.devices()[:1])
DATA = {"position": 7, "seed": 0, "size": 24, "batch": 8}


def experiment(folder: Path, **changes: Any) -> Any:
    return tiny_experiment("no", folder, **({"ema": None} | changes))


def state(step: int) -> TrainState:
    rng = np.random.default_rng(step)
    params = {
        "w": rng.standard_normal((16, 4)).astype(np.float32),
        "b": rng.standard_normal(3).astype(np.float32),
    }
    made = TrainState(step=np.int32(step), params=params, opt_state={"mu": params}, ema=None)
    return jax.device_put(made, replicated(ONE))


def target(sharding: Any = None) -> TrainState:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding or replicated(ONE)),
        state(0),
    )


def written(folder: Path, *numbers: int, scores: tuple[float, ...] = (), **changes: Any) -> Checkpoints:
    checkpoints = Checkpoints(folder, experiment(folder, **changes))
    for place, number in enumerate(numbers):
        metrics = {"EpicMIR/map.avg": scores[place]} if scores else None
        checkpoints.save(state(number), {**DATA, "position": number}, metrics)
    checkpoints.wait()
    return checkpoints


def test_a_saved_state_comes_back_bit_by_bit(tmp_path):
    checkpoints = written(tmp_path, 3, 6)
    assert checkpoints.last == 6
    found = checkpoints.restore(target())
    same(found.state, state(6))
    assert (found.step, found.data) == (6, {**DATA, "position": 6})
    same(checkpoints.restore(target(), 3).state, state(3))


def test_a_state_of_one_device_is_restored_onto_eight(tmp_path):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    split = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    wanted = target(replicated(mesh))
    for tree in (wanted.params, wanted.opt_state["mu"]):
        tree["w"] = jax.ShapeDtypeStruct((16, 4), np.float32, sharding=split)
    found = written(tmp_path, 5).restore(wanted).state
    same(found, state(5))
    assert {shard.data.shape for shard in found.params["w"].addressable_shards} == {(4, 2)}
    assert len(found.params["w"].addressable_shards) == 8


def test_a_state_of_eight_devices_is_restored_onto_one(tmp_path):
    mesh = make_mesh(MeshConfig(fsdp=8, data=1))
    checkpoints = Checkpoints(tmp_path, experiment(tmp_path))
    made = jax.device_put(state(5), replicated(mesh))
    made.params["w"] = jax.device_put(made.params["w"], NamedSharding(mesh, PartitionSpec("fsdp")))
    checkpoints.save(made, DATA)
    checkpoints.wait()
    same(checkpoints.restore(target()).state, state(5))


def test_the_last_ones_are_kept(tmp_path):
    written(tmp_path, 1, 2, 3, 4, keep=2).close()
    assert steps(tmp_path) == [3, 4]


def test_the_best_one_is_kept_beside_the_last(tmp_path):
    written(tmp_path, 1, 2, 3, 4, scores=(0.1, 0.9, 0.5, 0.3), keep=1, best="EpicMIR/map.avg").close()
    assert steps(tmp_path) == [2, 4]


def test_saving_a_step_again_does_nothing(tmp_path):
    checkpoints = written(tmp_path, 2)
    checkpoints.save(dataclasses.replace(state(9), step=state(2).step), DATA)
    checkpoints.wait()
    same(checkpoints.restore(target()).state, state(2))


def test_an_unfinished_save_is_ignored_and_cleaned_up(tmp_path):
    written(tmp_path, 2, 4).close()
    torn = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "4", torn, ignore=shutil.ignore_patterns("commit_success.txt"))
    assert steps(tmp_path) == [2, 4]
    assert saved_experiment(tmp_path) == experiment(tmp_path)
    # An evaluation may look in while a run is saving: it leaves the folder alone.
    assert Checkpoints(tmp_path, experiment(tmp_path), read_only=True).last == 4
    assert torn.is_dir()
    checkpoints = Checkpoints(tmp_path, experiment(tmp_path))
    assert checkpoints.last == 4
    assert checkpoints.torn == ("skipped 6.orbax-checkpoint-tmp: a save that did not finish",)
    checkpoints.save(state(6), DATA)
    checkpoints.close()
    assert not torn.exists()
    same(Checkpoints(tmp_path, experiment(tmp_path)).restore(target()).state, state(6))


@pytest.mark.parametrize(
    "lost", ["state/manifest.ocdbt", "data", "experiment/metadata", "_CHECKPOINT_METADATA", "."]
)
def test_a_checkpoint_that_lacks_a_part_is_ignored_and_written_anew(tmp_path, lost):
    written(tmp_path, 2, 4).close()
    path = tmp_path / "checkpoints" / "4" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "checkpoints" / "4").mkdir(exist_ok=True)
    checkpoints = Checkpoints(tmp_path, experiment(tmp_path))
    assert checkpoints.last == 2
    (line,) = checkpoints.torn
    assert line.startswith("skipped the torn checkpoint 4: it lacks ")
    assert lost == "." or line.removeprefix("skipped the torn checkpoint 4: it lacks ").startswith(lost)
    same(checkpoints.restore(target()).state, state(2))
    checkpoints.save(state(4), DATA)
    checkpoints.wait()
    assert checkpoints.last == 4
    same(checkpoints.restore(target()).state, state(4))


@pytest.mark.parametrize("lost", ["state/manifest.ocdbt", "experiment/metadata"])
def test_a_damaged_checkpoint_is_passed_over_with_a_line_and_written_anew(tmp_path, lost):
    written(tmp_path, 2, 4).close()
    (tmp_path / "checkpoints" / "4" / lost).write_bytes(b"")
    checkpoints = Checkpoints(tmp_path, experiment(tmp_path))
    assert checkpoints.last == 4
    found = checkpoints.restore(target())
    same(found.state, state(2))
    (line,) = checkpoints.torn
    assert line.startswith(f"skipped: the checkpoint of step 4 in {tmp_path} is damaged: ")
    checkpoints.save(state(4), DATA)
    checkpoints.wait()
    same(checkpoints.restore(target()).state, state(4))


def test_where_every_checkpoint_is_damaged_the_newest_is_named(tmp_path):
    written(tmp_path, 2, 4).close()
    for step in (2, 4):
        (tmp_path / "checkpoints" / str(step) / "state/manifest.ocdbt").write_bytes(b"")
    message = r"of step 4 in .* is damaged: ValueError: DATA_LOSS.*\. Delete its folder to go on from the one before it"
    with pytest.raises(TrainingError, match=message):
        Checkpoints(tmp_path, experiment(tmp_path)).restore(target())


def test_several_processes_do_not_choose_a_checkpoint_one_by_one(tmp_path):
    written(tmp_path, 2, 4).close()
    (tmp_path / "checkpoints" / "4" / "state/manifest.ocdbt").write_bytes(b"")
    checkpoints = Checkpoints(tmp_path, experiment(tmp_path))
    checkpoints._alone = False
    with pytest.raises(TrainingError, match=r"of step 4 in .* is damaged: ValueError: DATA_LOSS"):
        checkpoints.restore(target())


def test_an_error_of_the_disk_is_told_at_the_next_look(tmp_path, monkeypatch):
    checkpoints = written(tmp_path, 2)

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.manager, "check_for_errors", full)
    with pytest.raises(
        TrainingError, match=r"OSError: .*No space left.* newest finished checkpoint is of step 2"
    ):
        checkpoints.check()
    monkeypatch.setattr(checkpoints.manager, "wait_until_finished", full)
    with pytest.raises(TrainingError, match="No space left on device"):
        checkpoints.wait()


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    with pytest.raises(TrainingError, match="holds no finished checkpoint"):
        Checkpoints(tmp_path, experiment(tmp_path)).restore(target())
    with pytest.raises(TrainingError, match="a run folder is what `stvl train"):
        saved_experiment(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_another_architecture_is_refused_field_by_field(tmp_path):
    written(tmp_path, 2).close()
    model = shrunk_model(width=48, temporal_positions="rope")
    other = experiment(tmp_path, model=model, ema=0.99)
    with pytest.raises(TrainingError, match="was trained with another architecture") as problem:
        Checkpoints(tmp_path, other).restore(target())
    lines = str(problem.value).splitlines()
    assert "  model.video.width: the checkpoint has 32, this run asks for 48" in lines
    assert "  model.video.temporal_positions: the checkpoint has both, this run asks for rope" in lines
    assert "  ema: the checkpoint has None, this run asks for 0.99" in lines
    assert len(lines) == 5
    assert lines[-1].startswith("set these fields back, or choose another run folder with run=DIR")


def test_another_optimizer_and_switched_mining_are_refused_by_name(tmp_path):
    written(tmp_path, 2).close()
    asked = experiment(tmp_path)
    loader = dataclasses.replace(asked.loader, mining=HardMining(threshold=0.1))
    lamb = LAMB(schedule=asked.optimizer.schedule, clip=None)
    other = dataclasses.replace(asked, optimizer=lamb, loader=loader)
    with pytest.raises(TrainingError, match="was trained in another way") as problem:
        Checkpoints(tmp_path, other).restore(target())
    lines = str(problem.value).splitlines()
    assert lines[1:4] == [
        "  optimizer: the checkpoint has AdamW, this run asks for LAMB",
        "  optimizer.clip: the checkpoint has 1.0, this run asks for None",
        "  loader.mining: the checkpoint has None, this run asks for HardMining",
    ]
    assert "starts a new run from the parameters of this one" in lines[4]
    assert len(lines) == 5
    # Numbers of the same optimizer and of the same kind of mining may change.
    rates = dataclasses.replace(asked.optimizer, b2=0.98, clip=0.5)
    assert Checkpoints(tmp_path, dataclasses.replace(asked, optimizer=rates)).restore(target()).step == 2


def test_mining_that_was_on_is_not_switched_off(tmp_path):
    loader = dataclasses.replace(experiment(tmp_path).loader, mining=HardMining(threshold=0.1))
    written(tmp_path, 2, loader=loader).close()
    with pytest.raises(
        TrainingError, match=r"loader\.mining: the checkpoint has HardMining, this run asks for None"
    ):
        Checkpoints(tmp_path, experiment(tmp_path)).restore(target())
    stricter = dataclasses.replace(loader, mining=HardMining(threshold=0.5))
    assert Checkpoints(tmp_path, experiment(tmp_path, loader=stricter)).restore(target()).step == 2


def test_what_changes_no_parameter_may_change(tmp_path):
    written(tmp_path, 2).close()
    model = shrunk_model(remat="full", unroll=2)
    changed = experiment(tmp_path, model=model, steps=99, save_every=7, mesh=MeshConfig(fsdp=2))
    assert Checkpoints(tmp_path, changed).restore(target()).step == 2


def test_the_experiment_lies_beside_every_checkpoint_and_comes_back(tmp_path):
    asked = experiment(tmp_path, ema=0.5, steps=11, best="EpicMIR/map.avg")
    Checkpoints(tmp_path, asked).close()
    checkpoints = Checkpoints(tmp_path, asked)
    checkpoints.save(state(1), DATA, {"EpicMIR/map.avg": 0.5})
    checkpoints.close()
    assert saved_experiment(tmp_path) == asked
    assert saved_experiment(tmp_path, 1) == asked
    write_experiment(tmp_path, asked)
    assert json.loads((tmp_path / "experiment.json").read_text())["model"]["video"]["width"] == 32
