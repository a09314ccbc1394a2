"""The paper's recipes: their numbers as the paper has them, their losses, their arguments, and Charades' file."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import jax
import pytest

from stvl.core.errors import ConfigError
from stvl.data.sets.epic import read_epic
from stvl.dist.mesh import make_mesh
from stvl.losses.catalogue import AnyLoss
from stvl.losses.infonce import InfoNCE
from stvl.losses.margin import MIMM, AdaptiveMIMM
from stvl.losses.sms import SMS, SMSHard, SMSPaper, SMSRelease
from stvl.train.experiment import Experiment, load_experiment
from stvl.train.optimizers import LAMB, AdamW
from stvl.train.state import Starter, abstract_batch
from stvl.train.step import make_step
from tests.fixtures import ROOT, shrink


def recipe(name: str, *arguments: str) -> Experiment:
    return load_experiment(ROOT / "configs" / f"{name}.py", arguments)


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "configs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def rates(made: Experiment, at: list[int]) -> list[float]:
    rate = made.optimizer.schedule.make(made.steps)
    return [float(rate(step)) for step in at]


@pytest.mark.parametrize(("size", "batch"), [("b16", 1024), ("l14", 512)])
def test_pre_training_is_the_papers(size, batch):
    made = recipe("ego4d_pretrain", f"size={size}", "clips=10240")
    assert made.loss == InfoNCE(temperature=0.05)
    assert type(made.optimizer) is AdamW
    assert (made.loader.batch, made.loader.frames, made.steps) == (batch, 4, 5 * 10240 // batch)
    assert made.model.video.image_size == 224
    assert rates(made, [0, 1, made.steps]) == pytest.approx([3e-5] * 3)


def test_ek100_is_the_papers():
    made = recipe("ek100_mir")
    assert made.loss == SMS(margin=0.6, tau=0.1, variant=SMSPaper(threshold=0.1))
    assert type(made.optimizer) is AdamW
    # 67,217 clips are 262 full batches of 256.
    assert (made.loader.batch, made.loader.frames, made.steps) == (256, 16, 26200)
    assert rates(made, [0, 131, 262, 26200]) == pytest.approx([1e-6, 1.05e-5, 2e-5, 2e-6], rel=1e-5)
    mining = made.loader.mining
    assert mining is not None and (mining.threshold, mining.inclusive) == (0.1, False)


def test_charades_is_the_papers():
    made = recipe("charades_ego", "clips=2560")
    assert made.loss == SMSHard(margin=0.3, tau=0.1)
    assert type(made.optimizer) is LAMB
    assert (made.loader.frames, made.steps) == (16, 100)
    assert rates(made, [0, 5, 10]) == pytest.approx([1e-6, 1.55e-5, 3e-5], rel=1e-5)


def test_ek100_has_each_loss_with_the_papers_margins():
    losses = module("ek100_mir").LOSSES
    assert {type(loss) for loss in losses.values()} == set(get_args(AnyLoss)) - {SMSHard}
    assert losses["mimm"] == MIMM(margin=0.2)
    assert losses["adaptive-mimm"] == AdaptiveMIMM(margin=0.4)
    assert losses["sms-without-tau"] == SMS(margin=0.6, tau=0.0)
    assert losses["sms-release"] == SMS(margin=0.6, tau=0.1, variant=SMSRelease())
    for name, loss in losses.items():
        assert recipe("ek100_mir", f"loss={name}").loss == loss


def test_a_loss_is_named_and_its_fields_changed_together():
    made = recipe("ek100_mir", "loss=adaptive-mimm", "loss.margin=0.3", "loader.mining=none")
    assert made.loss == AdaptiveMIMM(margin=0.3)
    assert made.loader.mining is None
    with pytest.raises(ConfigError, match=r"unknown loss 'adaptive-mim'.*'adaptive-mimm'"):
        recipe("ek100_mir", "loss=adaptive-mim")


@pytest.mark.parametrize("name", ["ego4d_pretrain", "ek100_mir", "charades_ego"])
def test_a_recipe_shrinks_by_its_arguments(name):
    made = recipe(name, "size=tiny", "batch=16", "epochs=2", "clips=800")
    assert (made.loader.batch, made.steps, made.model.video.width) == (16, 100, 128)
    with pytest.raises(ConfigError, match=r"unknown EVA02-AT preset 'b61'"):
        recipe(name, "size=b61")


CHARADES = """id,egocentric,length,actions
AAAAAEGO,Yes,12.0,c002 1.00 4.50;c001 0.00 2.00
AAAAA,No,12.0,c002 1.00 4.50
BBBBBEGO,Yes,9.0,
"""


def test_charades_actions_become_clips(tmp_path: Path):
    (tmp_path / "train.csv").write_text(CHARADES)
    names = [f"c{i:03d} Doing thing, number {i}" for i in range(157)]
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    (tmp_path / "AAAAAEGO.mp4").touch()
    found = subprocess.run(
        [sys.executable, "configs/charades_ego.py"]
        + [str(tmp_path / part) for part in ("train.csv", "classes.txt", "", "actions.csv")],
        env={"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "clips=2\n"
    source = recipe("charades_ego", f"csv={tmp_path}/actions.csv", f"videos={tmp_path}").source
    first, second = source.load().clips
    assert (first.text, first.start, first.end, first.verb, first.nouns) == (
        "Doing thing, number 2",
        1.0,
        4.5,
        2,
        (2,),
    )
    assert (second.text, second.verb, second.video) == ("Doing thing, number 1", 1, "AAAAAEGO")
    assert read_epic(tmp_path / "actions.csv", tmp_path, "{video_id}.mp4").clips == (first, second)


def test_charades_file_without_its_arguments_says_how_it_is_used():
    found = subprocess.run(
        [sys.executable, "configs/charades_ego.py"],
        env={"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert re.match(r"usage: python configs/charades_ego\.py TRAIN_CSV", found.stderr)


@pytest.mark.slow
def test_ek100_takes_a_step_with_each_loss():
    for name in module("ek100_mir").LOSSES:
        made = shrink(recipe("ek100_mir", f"loss={name}"))
        starter = Starter(made, make_mesh(made.mesh, jax.devices()[:1]))
        batch = abstract_batch(made, made.loader.batch)
        batch |= {"text_verb": batch["verb"], "text_nouns": batch["nouns"]}
        state, metrics = jax.eval_shape(make_step(starter), starter.target(), batch)
        assert jax.tree.structure(state) == jax.tree.structure(starter.abstract), name
        assert metrics["loss"].shape == () and metrics["loss"].dtype == "float32", name
