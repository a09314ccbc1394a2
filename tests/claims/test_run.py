"""Claims run end to end at a few steps: records, resumption, repeatability, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from stvl.claims.catalogue import CLAIMS
from stvl.claims.record import Record, read_records
from stvl.claims.run import Runner, commit, load_params, refuse_damage, save_params, seeded, summary
from stvl.claims.spec import Arm, Budget
from stvl.core.config import from_dict
from stvl.core.errors import ConfigError, DataError, TrainingError
from tests.fixtures import leaves

SMALL = Budget(steps=2, videos=5)


@pytest.fixture(scope="module")
def shrunken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Both claims with two steps a run: one loss, a second seed of its start, one kind of positions. Read only."""
    out, said = tmp_path_factory.mktemp("claims"), []
    losses = Runner(CLAIMS["losses"], out, SMALL, said.append)
    losses.run((0,), ("sms",))
    losses.run((1,), ("pretrain",))
    Runner(CLAIMS["motion"], out, SMALL, said.append).run((0,), ("split",))
    return out, said


def copied(shrunken: tuple[Path, list[str]], tmp_path: Path) -> Path:
    shutil.copytree(shrunken[0], tmp_path / "claims")
    return tmp_path / "claims"


@pytest.mark.slow
def test_records_hold_scores_settings_and_versions(shrunken):
    records = {(found.arm, found.seed): found for found in read_records(shrunken[0] / "losses")}
    assert set(records) == {("pretrain", 0), ("sms", 0), ("pretrain", 1)}
    found = records["sms", 0]
    told = CLAIMS["losses"]
    assert set(told.metrics | told.details) <= set(found.metrics) == set(found.chance)
    assert all(0 <= value <= 1 for value in found.metrics.values())
    assert (found.steps, found.start) == (2, "pretrain")
    made = from_dict(found.config)
    assert (made.seed, made.loader.seed, made.steps, made.loss.margin) == (0, 0, 2, 0.6)
    assert made.source.csv == "world/EPIC_100_retrieval_train.csv"
    assert from_dict(found.world).train_videos == 5
    assert found.where["jax"] == jax.__version__
    assert found.where["commit"] == commit() != ""
    assert found.wall_seconds >= found.train_seconds > 0
    assert {"loss", "higher", "lower", "equal", "tau"} <= set(found.training["last"])
    assert records["pretrain", 0].training != records["pretrain", 1].training


@pytest.mark.slow
def test_motion_is_measured_at_three_readings(shrunken):
    (found,) = read_records(shrunken[0] / "motion")
    told = CLAIMS["motion"]
    assert set(told.metrics | told.details) <= set(found.metrics)
    assert found.chance["long/opposites.mean"] == 0.5
    assert found.metrics["long/opposites.mean"] != found.metrics["slow/opposites.mean"]


@pytest.mark.slow
def test_a_finished_run_is_not_repeated(shrunken, monkeypatch):
    fresh: list[tuple[str, int]] = []
    known = Record.read(shrunken[0] / "losses/seed-0/sms.json")

    def count(self: Runner, arm: Arm, told: Arm, seed: int) -> Record:
        fresh.append((arm.name, seed))
        return known

    monkeypatch.setattr(Runner, "_fresh", count)
    said: list[str] = []
    runner = Runner(CLAIMS["losses"], shrunken[0], SMALL, said.append)
    assert [found.arm for found in runner.run((0,), ("sms",))] == ["pretrain", "sms"]
    assert fresh == []
    assert said == ["losses seed 0 pretrain: done before", "losses seed 0 sms: done before"]
    runner.run((1,), ("sms",))
    assert fresh == [("sms", 1)]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_whatever_ran_before(shrunken, tmp_path):
    out = copied(shrunken, tmp_path)
    path = out / "losses/seed-0/sms.json"
    before = Record.read(path)
    path.unlink()
    said: list[str] = []
    Runner(CLAIMS["losses"], out, SMALL, said.append).run((0,), ("sms",))
    after = Record.read(path)
    assert (after.metrics, after.training) == (before.metrics, before.training)
    assert [line.endswith("done before") for line in said] == [True, False]


@pytest.mark.slow
def test_records_of_other_settings_are_refused(shrunken, tmp_path):
    out = copied(shrunken, tmp_path)
    with pytest.raises(
        ConfigError, match=r"of other settings \(steps = 2 there, 3 asked.*name another --out"
    ):
        Runner(CLAIMS["losses"], out, Budget(steps=3, videos=5)).run((0,), ("sms",))
    with pytest.raises(DataError, match="holds a toy world of other options"):
        Runner(CLAIMS["losses"], out, Budget(steps=2, videos=6)).run((7,), ("sms",))
    (out / "losses/seed-0/pretrain.npz").unlink()
    (out / "losses/seed-0/sms.json").unlink()
    with pytest.raises(DataError, match=r"pretrain\.npz: there is no such file"):
        Runner(CLAIMS["losses"], out, SMALL).run((0,), ("sms",))


def test_seeds_reach_parameters_and_data():
    made = seeded(CLAIMS["motion"].arms(SMALL, "world")[0].experiment, 7)
    assert (made.seed, made.loader.seed) == (7, 7)


def test_summary_is_the_mean_of_the_last_rows():
    rows = [{"step": 10.0 * i, "loss": float(i)} for i in range(1, 21)]
    found = summary(rows)
    # The last ten losses are 11 ... 20; every second row stands in the curve.
    assert found["last"] == {"loss": 15.5} and found["rows"] == 10
    assert found["loss"][0] == [20.0, 2.0] and found["loss"][-1] == [200.0, 20.0] and len(found["loss"]) == 10


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_what_is_not_finite_stops_a_run(name):
    row = {"step": 10.0, "loss": 1.0, "grad_norm": 1.0}
    refuse_damage(row, "sms", 3)
    with pytest.raises(TrainingError, match=rf"sms, seed 3: {name} of step 10 is nan"):
        refuse_damage(row | {name: float("nan")}, "sms", 3)


def test_parameters_come_back_bit_by_bit_and_others_are_refused(tmp_path):
    tree = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.ones(4, np.float32)}
    save_params(tmp_path / "one.npz", tree)
    found = load_params(tmp_path / "one.npz", jax.tree.map(np.zeros_like, tree))
    assert all(np.array_equal(value, leaves(tree)[name]) for name, value in leaves(found).items())
    with pytest.raises(DataError, match="parameters of another model"):
        load_params(tmp_path / "one.npz", tree | {"b": np.ones(5, np.float32)})


def test_files_that_are_no_records_are_refused(tmp_path):
    (tmp_path / "seed-0").mkdir()
    with pytest.raises(DataError, match="holds no records: run `stvl claims run"):
        read_records(tmp_path)
    (tmp_path / "seed-0/a.json").write_text(json.dumps({"claim": "losses"}))
    with pytest.raises(DataError, match=r"a\.json is not a record of stvl claims"):
        read_records(tmp_path)
