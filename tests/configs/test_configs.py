"""Every experiment in configs/: imported, shape-evaluated at its full size, and trained when shrunk."""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import pytest

from stvl.core.config import from_dict, to_dict
from stvl.dist.mesh import make_mesh
from stvl.train.checkpoints import saved_experiment, steps
from stvl.train.experiment import Experiment, load_experiment
from stvl.train.loop import train
from stvl.train.state import Starter, abstract_batch
from stvl.train.step import make_step
from tests.fixtures import ROOT, shrink

#: Config -> arguments that let it read a toy world in ``{world}``. A new config is added here.
CONFIGS: dict[str, list[str]] = {
    "quickstart": ["world={world}"],
    "folder": ["folder={world}", "captions=manifest_train.csv"],
    "ego4d_pretrain": [
        "csv={world}/manifest_train.csv",
        "videos={world}",
        "egomcq={world}/egomcq.json",
        "egomcq_videos={world}/videos/P02",
    ],
    "ek100_mir": ["annotations={world}", "videos={world}/videos"],
    "charades_ego": ["csv={world}/EPIC_100_retrieval_train.csv", "videos={world}/videos/P01"],
}

each = pytest.mark.parametrize("name", CONFIGS)


def load(name: str, world: Path | str = "nowhere") -> Experiment:
    return load_experiment(
        ROOT / "configs" / f"{name}.py", [item.format(world=world) for item in CONFIGS[name]]
    )


def test_every_config_is_tested():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == set(CONFIGS)


@each
def test_config_says_its_command_and_takes_no_data_to_import(name):
    text = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text())) or ""
    assert f"stvl train configs/{name}.py" in text
    made = load(name)
    assert made.name == name
    assert from_dict(json.loads(json.dumps(to_dict(made)))) == made


@each
def test_config_is_shape_evaluated_at_full_size(name):
    made = load(name)
    # One device: a batch that is right for a laptop may not divide among the eight fake ones.
    starter = Starter(made, make_mesh(made.mesh, jax.devices()[:1]))
    batch = abstract_batch(made, made.loader.batch)
    state, metrics = jax.eval_shape(make_step(starter), starter.target(), batch)
    assert jax.tree.map(lambda leaf: leaf.shape, state) == jax.tree.map(
        lambda leaf: leaf.shape, starter.abstract
    )
    assert {leaf.shape for leaf in jax.tree.leaves(metrics)} == {()}
    parts = functools.reduce(
        lambda tree, key: tree[key], ("video", "stack", "layers", "mlp", "up", "kernel"), state.params
    )
    assert parts.shape == (made.model.video.depth, made.model.video.width, made.model.video.mlp_hidden)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_compiles")
@each
def test_config_trains_when_shrunk(name, tiny_world, tmp_path):
    small: Any = shrink(load(name, tiny_world), run=str(tmp_path))
    scores = train(small)
    assert steps(tmp_path) == [2]
    assert saved_experiment(tmp_path) == small
    assert {score.split("/")[0] for score in scores} == {type(protocol).__name__ for protocol in small.evals}
    if small.best:
        assert small.best in scores
    assert dataclasses.replace(small, evals=(), best="").evals == ()
