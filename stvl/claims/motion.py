"""Claim: joint space-time rotation tells motion from its opposite better than other temporal positions (ST-RoPE)."""

from __future__ import annotations

import dataclasses
from typing import Any

from stvl.claims.setting import FRAMES, ROPE, experiment, opposites, retrieval, video_tower, world_options
from stvl.claims.spec import Arm, Budget, Claim, Evaluation
from stvl.data.toy import OPPOSITES, VERBS
from stvl.models.eva02_at.module import EVA02ATConfig
from stvl.rope.scaling import Interpolation
from stvl.rope.schemes import Split3DRope

STEPS = 1000
#: More frames than in training, and how much slower time turns where positions are interpolated.
LONG = 4

_SPLIT = Split3DRope(base_time=ROPE.base_time, reference_grid=ROPE.reference_grid)

#: Arm -> title and fields of the video tower. All share the base of time and the rescaled grid of places.
POSITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "st": ("ST-RoPE", {"temporal_positions": "rope"}),
    "st-learned": ("ST-RoPE and learned P_t", {"temporal_positions": "both"}),
    "split": ("split 3-D", {"temporal_positions": "rope", "rope": _SPLIT}),
    "learned": ("learned P_t", {"temporal_positions": "learned"}),
    "none": ("none", {"temporal_positions": "none"}),
    "st-10000": (
        "ST-RoPE, base 10000",
        {"temporal_positions": "rope", "rope": dataclasses.replace(ROPE, base_time=10000.0)},
    ),
    "split-10000": (
        "split 3-D, base 10000",
        {"temporal_positions": "rope", "rope": dataclasses.replace(_SPLIT, base_time=10000.0)},
    ),
}


def arms(budget: Budget, world: str) -> tuple[Arm, ...]:
    """Each kind of temporal positions from random weights with InfoNCE, at four frames."""
    made = []
    for name, (title, fields) in POSITIONS.items():
        video = video_tower(8, 4, **fields)
        run = experiment(name, world, budget.steps or STEPS, video)
        slow = dataclasses.replace(run.model, video=_stretched(video, float(LONG)))
        measured = [
            Evaluation(name="short", protocol=opposites(world), frames=FRAMES),
            Evaluation(name="long", protocol=opposites(world), frames=LONG * FRAMES),
        ]
        if slow != run.model:
            measured.append(
                Evaluation(name="slow", protocol=opposites(world), frames=LONG * FRAMES, model=slow)
            )
        measured.append(Evaluation(name="mir", protocol=retrieval(world), frames=FRAMES))
        made.append(Arm(name=name, title=title, experiment=run, evaluations=tuple(measured)))
    return tuple(made)


def _stretched(video: EVA02ATConfig, factor: float) -> EVA02ATConfig:
    """The tower whose frame index reads as ``index / factor``; the same one where time does not rotate."""
    if video.temporal_positions not in ("rope", "both"):
        return video
    rope = dataclasses.replace(video.rope, scaling_time=Interpolation(factor=factor))  # type: ignore[call-arg]
    return dataclasses.replace(video, rope=rope)


CLAIM = Claim(
    name="motion",
    question="Trained from scratch at 4 frames, which temporal positions tell a motion from its opposite, at 4 and at 16?",
    world=world_options,
    arms=arms,
    metrics={
        "short/opposites.mean": "opposites, 4 frames",
        "long/opposites.mean": "16 frames",
        "slow/opposites.mean": "16 frames, index / 4",
        "mir/map.avg": "mAP, 4 frames",
        "mir/ndcg.avg": "nDCG, 4 frames",
    },
    details={
        f"short/opposites.{one}-{other}": f"{VERBS[one].key} or {VERBS[other].key}"
        for one, other in OPPOSITES.items()
        if one < other
    },
    diagnostics={"loss": "training loss", "accuracy": "training accuracy"},
    baseline="st",
    seeds=(0, 1, 2),
)
