"""Plans of a tiny step on CPU devices, compiled for real; GPU plans by analysis; what-ifs on made-up plans."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import pytest

from stvl.core.errors import ConfigError
from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.dist.params import param_shardings
from stvl.models.flops import train_flops
from stvl.plan.ahead import Memory, refused_memory
from stvl.plan.analytic import analyse, executed_flops, saved_bytes
from stvl.plan.planner import Plan, largest_batch, of_analysis, plan, with_batch
from stvl.plan.report import as_json, as_text, shardings_text
from stvl.plan.shardings import explained, replicated_big
from stvl.plan.topology import parse
from stvl.plan.whatif import (
    Row,
    faults_of,
    neighbours,
    recommended,
    remedies,
    what_if,
    with_remat,
    with_sharding,
)
from stvl.train.experiment import Experiment
from tests.fixtures import shrunk_model, tiny_experiment

ROOT = Path(__file__).resolve().parents[2]

#: Top-level keys of the JSON, as docs/plan.md lists them.
KEYS = {
    *("version", "method", "experiment", "topology", "fits", "refused", "memory", "flops", "hbm_bytes"),
    *(
        "collectives",
        "blocking_in_layers",
        "roofline",
        "mfu",
        "attention",
        "shardings",
        "replicated_big",
        "faults",
    ),
    *("remedies", "run", "compile_seconds", "largest_batch", "what_if", "recommendation"),
}


def experiment(**changes: object) -> Experiment:
    fields = {
        "model": shrunk_model(width=64, depth=4, remat="full"),
        "mesh": MeshConfig(data=2, fsdp=4),
        "ema": None,
    }
    return tiny_experiment("no", **(fields | changes))


@pytest.fixture(scope="module")
def tiny() -> Plan:
    return plan(experiment(), parse("cpu:8"))


def test_memory_is_that_of_the_shardings(tiny):
    state = tiny.memory
    # Two moments and one counter for each parameter's copy; all but tables of few rows are cut in four.
    assert state.optimizer == pytest.approx(2 * state.params, rel=0.01)
    whole = sum(one.whole for one in tiny.shardings)
    assert whole / 4 <= state.params <= whole / 3
    # InfoNCE reads no labels, so the program takes none.
    assert state.params + state.optimizer < state.arguments <= state.params + state.optimizer + state.batch
    assert state.total == state.arguments + state.temp + state.outputs + state.code
    assert tiny.fits and state.ema == 0


@pytest.mark.slow
def test_flops_count_every_trip_of_the_loop_over_layers(tiny):
    # Remat computes blocks twice; the loss and the stem add little; nothing may be lost or counted thrice.
    assert tiny.flops.model * 8 == train_flops(tiny.experiment.model, 2, 12, 8)
    assert 1.0 < tiny.flops.matrix / tiny.flops.model < 1.5
    # One row a device: the optimizer's elementwise work on 0.2 M numbers, about 40 for each, is nearly as much.
    assert 20 < tiny.flops.vector / (tiny.memory.params / 4) < 60
    deeper = plan(experiment(model=shrunk_model(width=64, depth=8, remat="full")), parse("cpu:8"))
    more, added = deeper.flops.matrix - tiny.flops.matrix, deeper.flops.model - tiny.flops.model
    assert 1.1 < more / added < 1.5


@pytest.mark.slow
def test_exchanges_of_fsdp_lie_in_the_layers_and_those_of_zero2_do_not(tiny):
    inside = [one.what for one in tiny.moved if one.what.loop.endswith("video/stack")]
    assert {one.kind for one in inside} & {"all-gather", "all-reduce", "reduce-scatter"}
    assert all(one.times == 4 for one in inside)
    once = plan(experiment(mesh=MeshConfig(data=2, fsdp=4, gather="step")), parse("cpu:8"))
    assert [one.what for one in once.moved if one.what.loop.endswith("stack")] == []
    assert any(one.what.kind == "all-gather" for one in once.moved)


def test_json_has_its_keys_and_no_nan(tiny):
    found = as_json(tiny)
    assert set(found) == KEYS
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["topology"]["devices"] == 8 and found["experiment"]["mesh"]["fsdp"] == 4
    assert found["roofline"]["step_seconds"] is None and found["mfu"] is None
    assert {row["kind"] for row in found["collectives"]} >= {"all-gather", "all-reduce"}
    assert found["attention"][0]["q"] == [8, 9, 2, 32]
    assert found["memory"]["total_bytes"] == tiny.memory.total


def test_text_says_what_it_knows(tiny):
    text = as_text(tiny)
    assert "on cpu:8: 8 chips, mesh data 2 x fsdp 4, float32" in text
    assert "step: unknown" in text and ": fits" in text
    assert "text/tokens: [vocabulary 49408, width 16/fsdp]" in shardings_text(tiny)


def test_every_parameter_is_explained_and_big_copies_are_named():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    boxed = {
        "split": nn.LogicallyPartitioned(jnp.zeros((8, 1024, 6)), ("layer", "width", "mlp_width")),
        "odd": nn.LogicallyPartitioned(jnp.zeros((1023, 513)), ("width", "mlp_width")),
        "none": nn.LogicallyPartitioned(jnp.zeros((1024, 512)), ("embedding", None)),
        "bare": jnp.zeros((1024, 512)),
        "twice": nn.LogicallyPartitioned(jnp.zeros((4, 4)), ("width", "width")),
    }
    found = {one.path: one for one in explained(boxed, param_shardings(boxed, mesh))}
    assert found["split"].spec == ((), ("fsdp",), ("tensor",))
    assert found["split"].bytes == found["split"].whole // 4 == 4 * 8 * 1024 * 6 // 4
    assert found["split"].reasons == ()
    assert found["odd"].reasons == (
        "width: fsdp = 2 does not divide 1023",
        "mlp_width: tensor = 2 does not divide 513",
    )
    assert found["none"].reasons == (
        "no rule splits embedding over a mesh axis that has more than one device",
    )
    assert found["bare"].reasons == ("it carries no logical axes",)
    assert found["twice"].reasons == ("width: fsdp already splits another axis",)
    big = replicated_big(list(found.values()), dict(mesh.shape))
    assert [one.path for one in big] == ["odd", "bare", "none"]
    assert replicated_big(list(found.values()), {"data": 8, "fsdp": 1, "tensor": 1}) == []


def test_a_width_that_fsdp_does_not_divide_is_a_fault():
    # 16 slices divide the text tower's width of 16, but not 40.
    model = shrunk_model(width=40, depth=80)
    topology = parse("h200x16")
    found = analyse(with_batch(experiment(model=model, mesh=MeshConfig(data=1, fsdp=16)), 16), topology)
    made = of_analysis(found, topology)
    paths = [one.path for one in made.replicated]
    assert "video/stack/layers/mlp/up/kernel" in paths and any(
        path.startswith("optimizer/") for path in paths
    )
    assert "width: fsdp = 16 does not divide 40" in made.replicated[0].reasons
    assert "whole on every device" in " ".join(faults_of(made)) and "--sharding fsdp" in " ".join(
        remedies(made)
    )


def test_gpus_by_analysis(tiny):
    asked = with_batch(experiment(mesh=MeshConfig(data=4, fsdp=4)), 64)
    made = plan(asked, parse("h200x8", 2))
    assert made.method == "analytic" and made.fits and made.roofline is None
    assert made.memory.params == tiny.memory.params
    kinds = {one.what.kind: one.what for one in made.moved}
    assert set(kinds) == {"all-gather", "reduce-scatter", "all-reduce"}
    assert kinds["all-reduce"].group == (0, 4, 8, 12)
    assert as_json(made)["flops"]["matrix"] is None and "by analysis only" in as_text(made)
    assert made.step == pytest.approx(max(made.network, made.flops.compiled / 989e12))


def test_what_remat_computes_again_is_counted():
    plain, again = experiment(model=shrunk_model()), experiment(model=shrunk_model(remat="full"))
    video = 2 * (executed_flops(again) - executed_flops(plain)) / 2
    assert 0 < video < train_flops(plain.model, 2, 12, 8) / 3


def test_saved_activations_follow_depth_and_remat():
    def saved(depth: int, remat: str) -> int:
        return saved_bytes(experiment(model=shrunk_model(width=64, depth=depth, remat=remat)), 8)

    # With full remat a block keeps its input alone: 8 samples of 9 tokens of 64 floats.
    assert saved(6, "full") - saved(4, "full") == pytest.approx(2 * 8 * 9 * 64 * 4, rel=0.05)
    assert saved(6, "none") - saved(4, "none") > 5 * (saved(6, "full") - saved(4, "full"))


def scaled(first: Plan, batch: int, total: int, **changes: object) -> Plan:
    memory = dataclasses.replace(first.memory, total=total)
    return dataclasses.replace(
        first, experiment=with_batch(first.experiment, batch), memory=memory, **changes
    )


def test_largest_batch_by_hand(tiny):
    topology = parse("v5e:2x4")
    first = dataclasses.replace(scaled(tiny, 64, 5 * 2**30), topology=topology)
    asked = []

    def again(other: Experiment) -> Plan:
        asked.append(other.loader.batch)
        return dataclasses.replace(scaled(first, other.loader.batch, 3 * 2**30), topology=topology)

    found = largest_batch(first, again)
    # 1 GiB without a batch and 1/16 GiB a sample: 14.75 GiB hold 236 samples, which 8 devices divide at 232.
    assert asked == [32] and found.points == ((32, 3 * 2**30), (64, 5 * 2**30))
    assert found.batch == 232 and "affine" in found.method


def test_recommendation_prefers_sound_rows(tiny):
    fast = Row(("dp:",), scaled(tiny, 8, 1, step=0.1, replicated=tiny.shardings[:1]))
    sound = Row(("fsdp:",), scaled(tiny, 8, 1, step=0.2))
    slow = Row((), scaled(tiny, 8, 1, step=0.4))
    refused = Row(("loader.batch=16",), scaled(tiny, 16, 1, fits=False, step=0.01))
    assert recommended([slow, fast, sound, refused]) == (
        sound,
        "40 samples a second at best; it has 20 as it stands",
    )
    best, why = recommended([fast, refused])
    assert best is fast and "no row is free of faults" in why
    assert recommended([refused])[0] is None


def test_neighbours_change_one_thing_each(tiny):
    words = [changes for changes, _ in neighbours(tiny)]
    assert ("model.video.remat=none", "model.text.remat=none") in words and ("loader.batch=16",) in words
    heads = [change[0] for change in words if change[0].endswith(":")]
    assert heads == ["dp:", "fsdp:", "zero2:"]

    def again(other: Experiment) -> Plan:
        if other.loader.batch == 16:
            raise ConfigError("too much")
        return dataclasses.replace(tiny, experiment=other, step=1.0)

    seen: list[Row] = []
    rows = what_if(tiny, again, seen.append)
    assert rows[0].plan is tiny and rows[1:] == seen and len(seen) == len(words) >= 6
    assert (rows[-1].plan, rows[-1].reason) == (None, "too much")
    assert "too much" in as_text(tiny, rows=rows)


def test_changes_are_made_where_they_belong():
    topology = parse("v5e:4x4")
    assert with_sharding(experiment(), "zero2", topology).mesh == MeshConfig(data=1, fsdp=16, gather="step")
    changed = with_remat(experiment(), "none").model
    assert (changed.video.remat, changed.text.remat) == ("none", "none")
    with pytest.raises(ConfigError, match=r"unknown remat policy 'nine' \(did you mean 'none'\?\)"):
        with_remat(experiment(), "nine")


@pytest.mark.parametrize(
    ("words", "total"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.00G of 15.75G hbm.", 17 * 2**30),
        (
            "E1000: memory required for HLO temporaries (68.50G) exceeds available HBM (15.75G)",
            68.5 * 2**30 + 10,
        ),
    ],
)
def test_what_the_compiler_says_when_it_does_not_fit(words, total):
    found = refused_memory(Memory(params=3, optimizer=6, ema=0, batch=1), RuntimeError(words))
    assert found.total == total


def test_another_refusal_is_an_error():
    with pytest.raises(ConfigError, match="the compiler refused the step: Mosaic failed"):
        refused_memory(
            Memory(params=1, optimizer=1, ema=0, batch=1), RuntimeError("Mosaic failed to compile")
        )


def child(*words: str, **variables: str) -> str:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **variables}
    done = subprocess.run(
        [sys.executable, *words], env=env, capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_predicted_memory_is_what_a_real_step_takes():
    words = ["-m", "stvl.plan.resident", "configs/quickstart.py", "loader.batch=192"]
    found = json.loads(child(*words, XLA_FLAGS="").splitlines()[-1])
    assert found["temp"] > 2**30
    assert found["ratio"] == pytest.approx(1.0, abs=0.1)


@pytest.mark.libtpu
@pytest.mark.slow
def test_tpu_plan_of_a_small_step(tmp_path):
    pytest.importorskip("libtpu", reason="the libtpu wheel is an optional package")
    out = tmp_path / "plan.json"
    words = [
        "-m",
        "stvl",
        "plan",
        "configs/quickstart.py",
        "--topology",
        "v5e:2x2",
        "--sharding",
        "zero2",
        "--json",
        str(out),
    ]
    sizes = [
        "loader.batch=64",
        "model.video.unroll=1",
        "model.text.unroll=1",
        "loader.frames=16",
        "model.video.frames=16",
    ]
    text = child(*words, "--quick", *sizes, XLA_FLAGS="")
    found = json.loads(out.read_text(encoding="utf-8"))
    assert set(found) == KEYS
    assert found["topology"]["chip"] == "v5e" and found["fits"] and "v5e:2x2: 4 chips" in text
    # 257 tokens go to the Pallas kernels, whose own estimate is counted: two products forward, five backward.
    video = 16 * 4 * 2 * 4 * 257**2 * 64
    assert found["attention"][0]["impl"] == "tpu" and found["flops"]["kernels"] == pytest.approx(3.5 * video)
    assert found["blocking_in_layers"] == [] and found["replicated_big"] == []
    assert 0 < found["roofline"]["step_seconds"] < 1 and 0 < found["mfu"] < 1
