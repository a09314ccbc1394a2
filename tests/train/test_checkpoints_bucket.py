"""Checkpoints in a bucket, where nothing can be renamed: what counts as whole, and what becomes of the rest."""

from __future__ import annotations

import pytest

from stvl.core.errors import TrainingError
from stvl.core.paths import AnyPath, files_below, make_folder, to_path
from stvl.train.checkpoints import Checkpoints, saved_experiment, steps, write_experiment
from stvl.weights.source import open_source
from tests.fixtures import same
from tests.train.test_checkpoints import DATA, experiment, state, target, written


def test_a_saved_state_comes_back_bit_by_bit_and_the_last_are_kept(gcs, bucket):
    folder = to_path(f"gs://{bucket}/run")
    checkpoints = written(folder, 1, 2, 3, keep=2)
    assert checkpoints.last == 3
    found = checkpoints.restore(target())
    same(found.state, state(3))
    assert (found.step, found.data) == (3, {**DATA, "position": 3})
    same(checkpoints.restore(target(), 2).state, state(2))
    checkpoints.close()
    assert steps(folder) == [2, 3]
    assert gcs.names(bucket, "run/checkpoints/1/") == []
    assert saved_experiment(folder) == experiment(folder, keep=2)


def test_the_best_is_kept_beside_the_last(bucket):
    folder = to_path(f"gs://{bucket}/run")
    written(folder, 1, 2, 3, scores=(0.9, 0.5, 0.3), keep=1, best="EpicMIR/map.avg").close()
    assert steps(folder) == [1, 3]


@pytest.mark.parametrize(
    "lost",
    ["commit_success.txt", "state/manifest.ocdbt", "data/metadata", "experiment/metadata", "_CHECKPOINT_METADATA"],
)  # fmt: skip
def test_a_checkpoint_that_lacks_a_part_is_ignored_and_written_anew(gcs, bucket, lost):
    folder = to_path(f"gs://{bucket}/run")
    written(folder, 2, 4).close()
    gcs.delete(bucket, f"run/checkpoints/4/{lost}", {})
    assert steps(folder) == [2]
    if lost == "commit_success.txt":
        assert open_source(folder).path == folder / "checkpoints/2/state"
    checkpoints = Checkpoints(folder, experiment(folder))
    assert checkpoints.last == 2
    same(checkpoints.restore(target()).state, state(2))
    checkpoints.save(state(4), DATA)
    checkpoints.wait()
    assert checkpoints.last == 4
    same(checkpoints.restore(target()).state, state(4))
    checkpoints.close()


def test_a_reader_cleans_nothing_up(gcs, bucket):
    folder = to_path(f"gs://{bucket}/run")
    written(folder, 2, 4).close()
    gcs.delete(bucket, "run/checkpoints/4/commit_success.txt", {})
    before = gcs.names(bucket)
    reader = Checkpoints(folder, experiment(folder), read_only=True)
    same(reader.restore(target()).state, state(2))
    reader.close()
    assert gcs.names(bucket) == before
    with pytest.raises(TrainingError, match=r"holds no checkpoint of step 4 \(there are: 2\)"):
        saved_experiment(folder, 4)


def test_an_empty_bucket_has_nothing_to_restore(gcs, bucket):
    folder = to_path(f"gs://{bucket}/run")
    with pytest.raises(TrainingError, match=f"gs://{bucket}/run holds no finished checkpoint"):
        saved_experiment(folder)
    with pytest.raises(TrainingError, match="holds no finished checkpoint"):
        Checkpoints(folder, experiment(folder)).restore(target())
    write_experiment(folder, experiment(folder))
    assert gcs.names(bucket) == ["run/experiment.json"]


def test_a_folder_that_was_copied_is_gone_on_with_on_the_other_side(gcs, bucket, tmp_path):
    def copy(source: AnyPath, to: AnyPath) -> None:
        for file in files_below(source):
            place = to / file.relative_to(source).as_posix()
            make_folder(place.parent)
            place.write_bytes(file.read_bytes())

    here, there, back = tmp_path / "here", to_path(f"gs://{bucket}/there"), tmp_path / "back"
    written(here, 2, 4).close()
    copy(here, there)
    assert steps(there) == [2, 4]
    checkpoints = Checkpoints(there, experiment(there))
    same(checkpoints.restore(target()).state, state(4))
    checkpoints.save(state(6), DATA)
    checkpoints.close()
    assert steps(there) == [4, 6]
    copy(there, back)
    same(Checkpoints(back, experiment(back)).restore(target()).state, state(6))
