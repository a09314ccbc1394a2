"""The claims themselves: what their arms share, in what they differ, and that each of them makes a step."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from stvl.claims.catalogue import CLAIMS, claim
from stvl.claims.losses import LOSSES
from stvl.claims.motion import POSITIONS
from stvl.claims.spec import Arm, Budget
from stvl.core.config import diff
from stvl.core.errors import ConfigError
from stvl.data.mining import HardMining
from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.losses.margin import MIMM, AdaptiveMIMM
from stvl.losses.sms import SMS, AdaptiveTau
from stvl.rope.scaling import Interpolation
from stvl.rope.schemes import Split3DRope, STRope
from stvl.train.state import Starter, abstract_batch
from stvl.train.step import make_step

ARMS = [(name, arm.name) for name, found in CLAIMS.items() for arm in found.arms(Budget(), "world")]


def arm(claim_name: str, name: str, budget: Budget | None = None) -> Arm:
    return {made.name: made for made in CLAIMS[claim_name].arms(budget or Budget(), "world")}[name]


def differing(one: Arm, other: Arm) -> set[str]:
    """Fields in which two arms' experiments differ, their names left out."""
    return {path.split(":")[0] for path, _, _ in diff(one.experiment, other.experiment)} - {"name"}


def test_losses_and_margins_are_the_papers():
    assert {name: loss for name, (_, loss) in LOSSES.items()} == {
        "mimm": MIMM(margin=0.2),
        "adaptive-mimm": AdaptiveMIMM(margin=0.4),
        "sms-without-tau": SMS(margin=0.6, tau=0.0),
        "sms": SMS(margin=0.6, tau=0.1),
        "sms-adaptive-tau": SMS(margin=0.6, adaptive_tau=AdaptiveTau()),
    }


def test_fine_tuned_arms_differ_in_their_loss_alone():
    first = arm("losses", "mimm")
    assert first.experiment.loader.mining == HardMining()
    for name in LOSSES:
        made = arm("losses", name)
        assert made.start == "pretrain"
        assert all(path.startswith("loss") for path in differing(first, made))
        assert made.evaluations == first.evaluations


def test_arms_of_motion_differ_in_their_positions_alone():
    first = arm("motion", "none")
    for name in POSITIONS:
        changed = differing(first, arm("motion", name))
        assert all(
            path.startswith(("model.video.rope", "model.video.temporal_positions")) for path in changed
        )


def test_schemes_share_what_means_the_same():
    split, st = (arm("motion", name).experiment.model.video.rope for name in ("split", "st"))
    assert (type(split), type(st)) == (Split3DRope, STRope)
    for field in ("base_time", "base_space", "reference_grid"):
        assert getattr(split, field) == getattr(st, field)


def test_the_stretched_evaluation_slows_time_only_where_time_turns():
    frames = {item.name: item.frames for item in arm("motion", "st").evaluations}
    assert frames == {"short": 4, "long": 16, "slow": 16, "mir": 4}
    model = {item.name: item.model for item in arm("motion", "split").evaluations}["slow"]
    assert model is not None and model.video.rope.scaling_time == Interpolation(factor=4.0)
    trained = arm("motion", "split").experiment.model
    assert {path.split(":")[0].split(".")[-1] for path, *_ in diff(trained, model)} == {
        "scaling_time",
        "factor",
    }
    assert "slow" not in {item.name for item in arm("motion", "learned").evaluations}


@pytest.mark.parametrize("name", CLAIMS)
def test_budgets_change_steps_and_videos_only(name):
    small = CLAIMS[name].arms(Budget(steps=3, videos=7), "world")
    for plain, made in zip(CLAIMS[name].arms(Budget(), "world"), small, strict=True):
        assert made.experiment.steps == 3
        kept = {"steps", "optimizer.schedule.warmup"}
        assert differing(plain, made) <= kept
    assert CLAIMS[name].world(Budget(videos=7)).train_videos == 7
    assert CLAIMS[name].world(Budget(videos=7)).test_videos == 7
    assert CLAIMS[name].world(Budget(videos=2)).test_videos == 5


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_names_its_baseline_and_starts_before_what_starts_from_them(name):
    names = [made.name for made in CLAIMS[name].arms(Budget(), "world")]
    assert CLAIMS[name].baseline in names
    assert len(CLAIMS[name].seeds) >= 3
    for place, made in enumerate(CLAIMS[name].arms(Budget(), "world")):
        assert not made.start or made.start in names[:place]


@pytest.mark.slow
@pytest.mark.parametrize(("claim_name", "name"), ARMS)
def test_an_arm_makes_a_step(claim_name, name):
    made = arm(claim_name, name).experiment
    starter = Starter(made, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    batch = abstract_batch(made, made.loader.batch)
    if made.loader.mining:
        batch |= {"text_verb": batch["verb"], "text_nouns": batch["nouns"]}
    state, metrics = jax.eval_shape(make_step(starter), starter.target(), batch)
    assert jax.tree.structure(state) == jax.tree.structure(starter.abstract)
    assert metrics["loss"].shape == ()
    if isinstance(made.loss, SMS):
        assert set(CLAIMS["losses"].diagnostics) <= set(metrics)


def test_chosen_arms_bring_their_start():
    found = CLAIMS["losses"].chosen(("sms",), Budget(), "world")
    assert [made.name for made in found] == ["pretrain", "sms"]
    assert len(CLAIMS["losses"].chosen((), Budget(), "world")) == 7
    with pytest.raises(ConfigError, match=r"the claim 'losses' has no arm 'sns' \(did you mean 'sms'"):
        CLAIMS["losses"].chosen(("sns",), Budget(), "world")


def test_unknown_claims_show_the_nearest():
    with pytest.raises(ConfigError, match=r"there is no claim 'motoin' \(did you mean 'motion'\?\)"):
        claim("motoin")


def test_budgets_of_nothing_are_refused():
    with pytest.raises(ConfigError, match="steps is at least 1, found 0"):
        Budget(steps=0)
    with pytest.raises(ConfigError, match="videos is at least 1, found -1"):
        dataclasses.replace(Budget(), videos=-1)
