"""EVA02-AT (tiny) on a folder of videos of your own with a CSV of captions (path,start,end,text).

    stvl train configs/folder.py folder=my_videos
    stvl search --run runs/folder --build my_videos "a dog jumps"

From random weights this memorises the clips it is shown: a check that files, captions and training work (in-batch
accuracy goes to 100 %). Knowledge of the world takes pre-trained weights.
"""

from __future__ import annotations

import dataclasses

from stvl.data.augment import EvalTransform, TrainTransform
from stvl.data.pipeline import LoaderOptions
from stvl.data.sources import ManifestSource
from stvl.data.text import ClipTokenizer
from stvl.models.eva02_at.presets import preset
from stvl.train.experiment import Experiment
from stvl.train.optimizers import AdamW, Schedule


def experiment(
    folder: str = "clips", captions: str = "captions.csv", exclude: tuple[str, ...] = ()
) -> Experiment:
    """The run.

    Args:
        folder: where the videos are.
        captions: CSV in that folder, with columns path,start,end,text (seconds).
        exclude: file names whose rows are left out.
    """
    tiny = preset("tiny")
    video = dataclasses.replace(tiny.video, image_size=64, patch=16)
    return Experiment(
        name="folder",
        model=dataclasses.replace(tiny, video=video),
        source=ManifestSource(csv=f"{folder}/{captions}", exclude=exclude),
        train_transform=TrainTransform(size=64, scale=(0.8, 1.0)),
        eval_transform=EvalTransform(size=64),
        tokenizer=ClipTokenizer(context_length=32),
        loader=LoaderOptions(batch=26, frames=4),
        optimizer=AdamW(schedule=Schedule(peak=1e-3, warmup=10), b2=0.98),
        steps=150,
        save_every=50,
        log_every=10,
    )
