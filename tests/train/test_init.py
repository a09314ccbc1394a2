"""Runs that start from given parameters: a weights folder or another run, on one device and on four."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.config import from_dict, to_dict
from stvl.core.errors import ConfigError, TrainingError, WeightsError
from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.eval.protocols.charades_ego import CharadesEgo
from stvl.eval.protocols.epic_recognition import EpicRecognition
from stvl.eval.protocols.recognition import ActionList, Recognition
from stvl.eval.protocols.retrieval import TextVideoRetrieval
from stvl.eval.protocols.zero_shot import ZeroShot
from stvl.models.dual import DualEncoderConfig
from stvl.nn.positions import resample_matrix
from stvl.pretrained.encoders import load_weights, weights_sha256
from stvl.train.checkpoints import saved_experiment
from stvl.train.encoders import load_run
from stvl.train.experiment import load_experiment
from stvl.train.init import Pretrained
from stvl.train.loop import train
from stvl.train.state import Starter
from tests.fixtures import ROOT, TrainedRun, leaves, same, shrunk_model, tiny_experiment
from tests.pretrained.small import random_tree, write

CONFIG = '''
"""A config that starts from a folder."""

from stvl.train.init import Pretrained
from tests.fixtures import tiny_experiment


def experiment():
    return tiny_experiment("no", init=Pretrained(folder="a", fresh=("projection",)))
'''


@pytest.fixture(scope="module")
def base() -> tuple[DualEncoderConfig, dict[str, Any]]:
    """The tiny experiment's model, its table P_t not of zeros."""
    model = shrunk_model()
    params = random_tree(model)
    params["video"]["positions"]["time"] = jnp.asarray(
        np.random.default_rng(3).standard_normal((2, 32)), jnp.float32
    )
    return model, params


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("weights") / "base"
    write(out, *base, frames=2)
    return str(out)


def starter(init: Pretrained | None, mesh: MeshConfig | None = None, **changes: Any) -> Starter:
    devices = 1 if mesh is None else 4
    mesh = MeshConfig(data=1) if mesh is None else mesh
    made = tiny_experiment("no", "no", init=init, mesh=mesh, **changes)
    return Starter(made, make_mesh(mesh, jax.devices()[:devices]))


def test_the_first_state_holds_the_folders_parameters(base, folder):
    start = starter(Pretrained(folder=folder))
    state = start.start()
    same(state.params, base[1])
    same(state.ema, base[1])
    assert int(state.step) == 0
    # Moments are those of a new run.
    same(state.opt_state, starter(None).start().opt_state)
    # Two buffers: the step donates the state.
    one, two = state.params["text"]["tokens"], state.ema["text"]["tokens"]
    assert one.unsafe_buffer_pointer() != two.unsafe_buffer_pointer()


def test_four_devices_start_as_one(base, folder):
    four = starter(Pretrained(folder=folder), MeshConfig(data=1, fsdp=4))
    state = four.start()
    same(state, starter(Pretrained(folder=folder)).start())
    tokens = state.params["text"]["tokens"]
    assert len(tokens.addressable_shards) == 4
    assert {shard.data.shape for shard in tokens.addressable_shards} == {(49408, 4)}
    wanted = jax.tree.leaves(four.shardings)
    assert all(leaf.sharding == place for leaf, place in zip(jax.tree.leaves(state), wanted, strict=True))


def test_what_was_read_is_told_with_its_hash(base, folder):
    given = starter(Pretrained(folder=folder)).pretrained()
    assert given.init == Pretrained(folder=folder, sha256=weights_sha256(base[1]))
    # It is the hash of protocol cards.
    assert given.init.sha256 == load_weights(folder).describe()["weights_sha256"]
    count = len(leaves(base[1]))
    assert given.notes == (
        f"start from {folder} (sha256 {given.init.sha256[:12]}): {count} of {count} parameters",
    )
    assert starter(given.init).pretrained().init == given.init
    with pytest.raises(
        WeightsError, match=r"holds parameters of sha256 [0-9a-f]{64}, init.sha256 asks for 00"
    ):
        starter(Pretrained(folder=folder, sha256="00")).pretrained()


def test_frames_and_image_size_are_resized_by_the_rules_of_convert(base, folder):
    model = shrunk_model(frames=4, image_size=32)
    sizes = {"train_transform": None, "eval_transform": None}
    made = tiny_experiment("no", "no")
    sizes = {name: dataclasses.replace(getattr(made, name), size=32) for name in sizes}
    given = starter(Pretrained(folder=folder), model=model, **sizes).pretrained()
    old, new = base[1]["video"]["positions"], given.params["video"]["positions"]
    np.testing.assert_allclose(new["time"], resample_matrix(4, 2) @ np.asarray(old["time"]), atol=1e-6)
    assert new["space"].shape == (16, 32)
    # Bicubic resampling keeps what is the same everywhere; here only the mean of the four corners is known by symmetry.
    np.testing.assert_allclose(np.mean(new["space"], axis=0), np.mean(old["space"], axis=0), atol=2e-2)
    resized = [line for line in given.notes if "resized" in line]
    assert [line.split()[1] for line in resized] == ["video/positions/space", "video/positions/time"]
    assert "(4, 32) to (16, 32)" in resized[0] and "(2, 32) to (4, 32)" in resized[1]
    same(given.params["text"], base[1]["text"])


def test_another_embedding_starts_fresh_by_name(base, folder):
    model = dataclasses.replace(base[0], embedding=24, temperature=0.07)
    with pytest.raises(WeightsError) as problem:
        starter(Pretrained(folder=folder), model=model).pretrained()
    text = str(problem.value)
    assert "only in the model:\n    log_scale" in text
    assert "video/projection/kernel (32, 16), the model has (32, 24)" in text
    assert "in init.fresh" in text
    start = starter(Pretrained(folder=folder, fresh=("projection", "log_scale")), model=model)
    given = start.pretrained()
    same(given.params["video"]["stack"], base[1]["video"]["stack"])
    # Fresh parameters are those of a start from random ones.
    random = starter(None, model=model).start().params
    same(given.params["video"]["projection"], random["video"]["projection"])
    same(given.params["text"]["projection"], random["text"]["projection"])
    assert float(given.params["log_scale"]) == pytest.approx(np.log(1 / 0.07))
    lines = ["  fresh: log_scale", "  fresh: text/projection/kernel", "  fresh: video/projection/kernel"]
    assert sorted(given.notes[1:]) == lines


def test_parameters_that_stay_behind_are_named(base, tmp_path):
    model = dataclasses.replace(base[0], temperature=0.07)
    write(tmp_path / "warm", model, random_tree(model))
    with pytest.raises(WeightsError, match=r"only in the folder:\s+log_scale"):
        starter(Pretrained(folder=str(tmp_path / "warm"))).pretrained()
    given = starter(Pretrained(folder=str(tmp_path / "warm"), fresh=("log_scale",))).pretrained()
    assert given.notes[1:] == ("  left behind: log_scale",)
    assert "log_scale" not in given.params


def test_another_model_is_refused_field_by_field(folder):
    model = shrunk_model(width=48, temporal_positions="rope", mean=(0.5, 0.5, 0.5))
    with pytest.raises(WeightsError, match="holds another model") as problem:
        starter(Pretrained(folder=folder), model=model).pretrained()
    lines = str(problem.value).splitlines()
    assert f"  model.video.width: {folder} has 32, this run asks for 48" in lines
    assert f"  model.video.temporal_positions: {folder} has both, this run asks for rope" in lines
    assert any("model.video.mean" in line for line in lines)
    assert len(lines) == 5
    # A change on purpose is named, and parameters are still compared one by one.
    positions = shrunk_model(temporal_positions="rope")
    asked = Pretrained(folder=folder, changed=("video.temporal_positions",))
    with pytest.raises(WeightsError, match=r"only in the folder:\s+video/positions/time"):
        starter(asked, model=positions).pretrained()
    given = starter(dataclasses.replace(asked, fresh=("positions/time",)), model=positions).pretrained()
    assert set(given.params["video"]["positions"]) == {"space"}


def test_what_holds_no_parameter_may_differ(base, folder):
    model = dataclasses.replace(shrunk_model(drop_path=0.1, remat="full", unroll=2))
    same(starter(Pretrained(folder=folder), model=model).start().params, base[1])


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        ({"fresh": ("projction",)}, ConfigError, "init.fresh: no parameter matches 'projction'.*projection"),
        ({"step": 3}, ConfigError, "init.step is for run folders"),
        ({"folder": "nowhere"}, WeightsError, "is neither a weights folder .* nor a run folder"),
    ],
)
def test_starts_that_cannot_be_used(folder, init, error, message):
    with pytest.raises(error, match=message):
        starter(Pretrained(**({"folder": folder} | init))).pretrained()
    with pytest.raises(ConfigError, match=r"'\(' is no regular expression"):
        Pretrained(folder=folder, fresh=("(",))
    with pytest.raises(ConfigError, match="this experiment starts from random parameters"):
        starter(None).pretrained()


def test_a_damaged_number_is_named(base, tmp_path):
    params = jax.tree.map(lambda leaf: leaf, base[1])
    params["video"]["stem"]["bias"] = params["video"]["stem"]["bias"].at[3].set(jnp.nan)
    write(tmp_path / "bad", base[0], params)
    with pytest.raises(WeightsError, match="video/stem/bias holds NaN or infinities"):
        starter(Pretrained(folder=str(tmp_path / "bad"))).pretrained()


def test_a_run_starts_from_another_run(tiny_run: TrainedRun):
    asked = Pretrained(folder=str(tiny_run.folder))
    given = starter(asked).pretrained()
    averaged = load_run(tiny_run.folder)
    same(given.params, averaged.params)
    assert given.init == dataclasses.replace(asked, step=6, sha256=averaged.weights_sha256)
    older = starter(dataclasses.replace(asked, step=4, ema=False)).pretrained()
    assert older.init.step == 4
    assert older.init.sha256 not in (given.init.sha256, load_run(tiny_run.folder, step=4).weights_sha256)
    with pytest.raises(TrainingError, match="holds no checkpoint of step 5"):
        starter(dataclasses.replace(asked, step=5)).pretrained()


@pytest.mark.slow
def test_a_chained_run_records_its_start_and_a_resume_wins(tiny_run, tiny_world, base, tmp_path, capsys):
    source = shutil.copytree(tiny_run.folder, tmp_path / "first")
    init = Pretrained(folder=str(source))
    experiment = tiny_experiment(tiny_world, tmp_path / "second", steps=3, ema=None, init=init)
    train(experiment)
    assert f"start from {source} (sha256 " in capsys.readouterr().out
    done = dataclasses.replace(init, step=6, sha256=load_run(source).weights_sha256)
    assert saved_experiment(tmp_path / "second").init == done
    written = json.loads((tmp_path / "second" / "experiment.json").read_text())
    assert from_dict(written).init == done == from_dict(to_dict(done))
    assert load_run(tmp_path / "second").describe()["init"] == to_dict(done)
    # The folder that it started from is not needed any more, and another one is not looked at.
    shutil.rmtree(source)
    moved = dataclasses.replace(experiment, steps=4, init=Pretrained(folder="elsewhere"))
    train(moved)
    out = capsys.readouterr().out
    assert "resumed from step 3" in out and "start from" not in out
    assert saved_experiment(tmp_path / "second").init == done


def test_a_folder_of_half_precision_starts_in_float32(base, tmp_path):
    from stvl.pretrained.folder import items_of, write_folder

    full = write(tmp_path / "full", *base, frames=2)
    write_folder(tmp_path / "half", full, items_of(base[1], "float16"))
    given = starter(Pretrained(folder=str(tmp_path / "half"))).pretrained()
    found = leaves(given.params)
    assert {leaf.dtype for leaf in found.values()} == {np.dtype(np.float32)}
    halved = leaves(jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), base[1]))
    assert all(np.array_equal(found[name], halved[name]) for name in found)


@pytest.mark.parametrize("name", ["ego4d_pretrain", "ek100_mir", "charades_ego"])
def test_any_config_starts_from_a_folder_by_one_word(name):
    path = ROOT / "configs" / f"{name}.py"
    plain = load_experiment(path)
    assert plain.init is None
    assert load_experiment(path, ["init=runs/a"]) == dataclasses.replace(
        plain, init=Pretrained(folder="runs/a")
    )
    words = ["init.fresh=projection,log_scale", "init=runs/a", "init.ema=false"]
    wanted = Pretrained(folder="runs/a", fresh=("projection", "log_scale"), ema=False)
    assert load_experiment(path, words).init == wanted
    assert load_experiment(path, ["init.folder=runs/a"]).init == Pretrained(folder="runs/a")
    assert load_experiment(path, ["init=none"]).init is None
    with pytest.raises(ConfigError, match=r"init\.fresh needs a folder to start from: init=DIR"):
        load_experiment(path, ["init.fresh=projection"])
    with pytest.raises(ConfigError, match=r"Pretrained has no field 'frsh' \(did you mean 'fresh'\?\)"):
        load_experiment(path, ["init=runs/a", "init.frsh=x"])


def test_a_config_that_has_a_start_can_take_another_folder(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(CONFIG)
    assert load_experiment(config, ["init=b"]).init == Pretrained(folder="b", fresh=("projection",))
    assert load_experiment(config, ["init.fresh="]).init == Pretrained(folder="a")
    assert load_experiment(config, ["init=none"]).init is None


def test_all_protocols_of_encoders_are_protocols_of_a_run():
    lists = ActionList(annotations="a", videos="v")
    evals = (
        CharadesEgo(csv="c", classes="k", videos="v"),
        EpicRecognition(csv="c", verbs="v", nouns="n", videos="v"),
        Recognition(data=lists),
        ZeroShot(data=lists),
        TextVideoRetrieval(annotations="a", videos="v"),
    )
    made = tiny_experiment("no", "no", evals=evals)
    assert from_dict(json.loads(json.dumps(to_dict(made)))) == made
