"""The small setting that the claims share: one toy world, one tiny model, one optimizer."""

from __future__ import annotations

from stvl.claims.spec import Budget
from stvl.data.augment import EvalTransform, TrainTransform
from stvl.data.pipeline import LoaderOptions
from stvl.data.sources import EpicSource
from stvl.data.text import ClipTokenizer
from stvl.data.toy import OPPOSITES, ToyOptions
from stvl.eval.protocols.epic_mir import EpicMIR, Opposites
from stvl.losses.infonce import InfoNCE
from stvl.models.clip_text import ClipTextConfig
from stvl.models.dual import DualEncoderConfig
from stvl.models.eva02_at.module import EVA02ATConfig
from stvl.rope.schemes import STRope
from stvl.train.experiment import Experiment
from stvl.train.optimizers import AdamW, Schedule

FRAMES, WORDS = 4, 16

#: With the paper's base of 10000 and four frames, most of the time ladder hardly turns: `configs/quickstart.py`.
ROPE = STRope(base_time=10.0)


def world_options(budget: Budget) -> ToyOptions:
    """400 training and 96 test videos of 40 x 40 pixels, six clips each."""
    train = 400 if budget.videos is None else budget.videos
    return ToyOptions(train_videos=train, test_videos=max(5, min(96, train)), size=40)


def video_tower(patch: int, side: int, **changes: object) -> EVA02ATConfig:
    """A video tower of 0.17 M parameters on frames of `side` x `side` patches; `changes` are fields of it."""
    fields = {"width": 64, "depth": 3, "heads": 2, "patch": patch, "image_size": patch * side}
    return EVA02ATConfig(**(fields | {"frames": FRAMES, "unroll": 3, "rope": ROPE} | changes))  # type: ignore[arg-type]


def experiment(name: str, world: str, steps: int, video: EVA02ATConfig, peak: float = 2e-3) -> Experiment:
    """A run of InfoNCE on the world's training clips, in float32 so that it is the same on every kind of device."""
    text = ClipTextConfig(width=32, depth=1, heads=2, context=WORDS)
    warmup = min(50, steps // 4)
    return Experiment(
        name=name,
        model=DualEncoderConfig(video=video, text=text, embedding=64),
        source=EpicSource(csv=f"{world}/EPIC_100_retrieval_train.csv", videos=f"{world}/videos"),
        train_transform=TrainTransform(size=video.image_size, scale=(0.7, 1.0), kernel="bilinear"),
        eval_transform=EvalTransform(size=video.image_size, kernel="bilinear"),
        tokenizer=ClipTokenizer(context_length=WORDS),
        loader=LoaderOptions(batch=32, frames=FRAMES, threads=1),
        loss=InfoNCE(temperature=0.05),
        optimizer=AdamW(
            schedule=Schedule(peak=peak, end=peak / 100, warmup=warmup), b2=0.98, weight_decay=0.05
        ),
        steps=steps,
        dtype="float32",
    )


def retrieval(world: str) -> EpicMIR:
    """Retrieval over the world's test clips."""
    return EpicMIR(
        csv=f"{world}/EPIC_100_retrieval_test.csv",
        sentences=f"{world}/EPIC_100_retrieval_test_sentence.csv",
        videos=f"{world}/videos",
    )


def opposites(world: str) -> Opposites:
    """Every test clip of the five pairs of opposite motions."""
    pairs = tuple((one, other) for one, other in OPPOSITES.items() if one < other)
    return Opposites(csv=f"{world}/EPIC_100_retrieval_test.csv", videos=f"{world}/videos", pairs=pairs)
