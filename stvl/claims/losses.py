"""Claim: graded margins rank graded relevancy better than one margin for all (SMS, arXiv 2506.14356, Section IV)."""

from __future__ import annotations

import dataclasses

from stvl.claims.setting import FRAMES, experiment, retrieval, video_tower, world_options
from stvl.claims.spec import Arm, Budget, Claim, Evaluation
from stvl.data.mining import HardMining
from stvl.losses.catalogue import AnyLoss
from stvl.losses.margin import MIMM, AdaptiveMIMM
from stvl.losses.sms import SMS, AdaptiveTau

#: Arm -> title and loss, with the margin that the paper found best on EK-100 for each; nothing was tuned here.
LOSSES: dict[str, tuple[str, AnyLoss]] = {
    "mimm": ("MI-MM, g = 0.2", MIMM(margin=0.2)),
    "adaptive-mimm": ("adaptive MI-MM, g = 0.4", AdaptiveMIMM(margin=0.4)),
    "sms-without-tau": ("SMS without tau, g = 0.6", SMS(margin=0.6, tau=0.0)),
    "sms": ("SMS, g = 0.6, tau = 0.1", SMS(margin=0.6, tau=0.1)),
    "sms-adaptive-tau": ("SMS, g = 0.6, adaptive tau", SMS(margin=0.6, adaptive_tau=AdaptiveTau())),
}

PRETRAIN_STEPS, STEPS = 600, 400
#: Peak learning rate of fine-tuning, a quarter of that of pre-training.
PEAK = 5e-4


def arms(budget: Budget, world: str) -> tuple[Arm, ...]:
    """InfoNCE from random weights, then each loss from its parameters, with texts drawn by hard mining; and InfoNCE
    without mining for as long, which shows what the same steps bring without any of these losses."""
    measured = (Evaluation(name="mir", protocol=retrieval(world), frames=FRAMES),)
    video = video_tower(10, 3, temporal_positions="both")
    first = experiment("pretrain", world, budget.steps or PRETRAIN_STEPS, video)
    made = [
        Arm(
            name="pretrain",
            title="InfoNCE pre-training, the start of all",
            experiment=first,
            evaluations=measured,
            compared=False,
        )
    ]
    for name, (title, loss) in LOSSES.items():
        tuned = experiment(name, world, budget.steps or STEPS, video, peak=PEAK)
        tuned = dataclasses.replace(
            tuned, loss=loss, loader=dataclasses.replace(tuned.loader, mining=HardMining())
        )
        made.append(Arm(name=name, title=title, experiment=tuned, evaluations=measured, start="pretrain"))
    longer = experiment("infonce", world, budget.steps or STEPS, video, peak=PEAK)
    made.append(
        Arm(
            name="infonce",
            title="InfoNCE continued, each clip with its own text",
            experiment=longer,
            evaluations=measured,
            start="pretrain",
            compared=False,
        )
    )
    return tuple(made)


CLAIM = Claim(
    name="losses",
    question="Fine-tuned with the same budget and the same mining, which loss ranks graded relevancy best?",
    world=world_options,
    arms=arms,
    metrics={
        "mir/map.avg": "mAP",
        "mir/ndcg.avg": "nDCG",
    },
    details={
        "mir/map.v2t": "mAP v2t",
        "mir/map.t2v": "mAP t2v",
        "mir/ndcg.v2t": "nDCG v2t",
        "mir/ndcg.t2v": "nDCG t2v",
    },
    diagnostics={
        "higher": "own pair more relevant, share",
        "lower": "other more relevant, share",
        "equal": "equal, share",
        "tau": "tau",
        "positive_similarity": "similarity of pairs",
        "negative_similarity": "similarity of others",
    },
    baseline="mimm",
    seeds=(0, 1, 2),
)
