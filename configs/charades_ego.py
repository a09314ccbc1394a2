"""EVA02-AT fine-tuned on Charades-Ego (arXiv 2506.14356): SMS for hard multi-labels (Eq. 17), LAMB, ten epochs of 16 frames.

    python configs/charades_ego.py CharadesEgo_v1_train_only1st.csv Charades_v1_classes.txt CharadesEgo_v1_480 actions.csv
    stvl train configs/charades_ego.py csv=actions.csv videos=CharadesEgo_v1_480 clips=ROWS init=runs/ego4d_pretrain
    stvl eval charades-ego --run runs/charades_ego --setting fine-tuned --csv CharadesEgo_v1_test_only1st.csv \\
        --classes Charades_v1_classes.txt --videos CharadesEgo_v1_480
    stvl train configs/charades_ego.py size=tiny batch=16 epochs=2 clips=800 loader.workers=0 csv=... # a try on one CPU

The first line turns the official file into a clip an action, with the name of its class as text, and prints the number
of rows. Classes are written into the columns of EK-100's files, as verb and as only noun: two clips share a label where
they have the same class. Data, none of which comes with stvl: the official CSV files, the classes and the videos as
``ID.mp4``.

What to expect: the paper reports first-person mAP 36.1 (B) and 42.2 (L) fine-tuned, with SMS 38.0 and 42.5, and zero-shot
27.8 and 30.9. It starts from the model that was pre-trained on Ego4D: the run of `configs/ego4d_pretrain.py`, or converted
weights, named with ``init=``. Without, this config starts from random weights and will not come near; nobody has run it to
its end either way. The paper gives no batch, no tau, no schedule after the warm-up, no weight decay, betas, bound on the
gradient or crop.
"""

from __future__ import annotations

import csv as files
import sys

from stvl.data.augment import EvalTransform, TrainTransform
from stvl.data.pipeline import LoaderOptions
from stvl.data.sets.charades import read_charades_actions
from stvl.data.sets.epic import COLUMNS
from stvl.data.sources import EpicSource
from stvl.data.text import ClipTokenizer
from stvl.losses.sms import SMSHard
from stvl.models.eva02_at.presets import preset
from stvl.train.experiment import Experiment
from stvl.train.optimizers import LAMB, Schedule


def experiment(
    csv: str = "actions.csv",
    videos: str = "CharadesEgo_v1_480",
    size: str = "b16",
    batch: int = 256,
    epochs: int = 10,
    clips: int = 33_000,
) -> Experiment:
    """The run.

    Args:
        csv: what `write_actions` wrote.
        videos: folder of the videos.
        size: name of a preset: b16, l14 ...
        batch: global batch; ours, that of EK-100.
        epochs: passes over the clips; the first one warms up.
        clips: rows of `csv`; the default is a round number.
    """
    model = preset(size)
    pixels, epoch = model.video.image_size, max(clips // batch, 1)
    return Experiment(
        name="charades_ego",
        # 16 frames on the four places of P_t, which is resampled: parameters are those of the pre-trained model.
        model=model,
        source=EpicSource(csv=csv, videos=videos, pattern="{video_id}.mp4"),
        # The share of the frame is ours.
        train_transform=TrainTransform(size=pixels, scale=(0.5, 1.0)),
        eval_transform=EvalTransform(size=pixels),
        tokenizer=ClipTokenizer(context_length=model.text.context),
        # Workers and threads are ours.
        loader=LoaderOptions(batch=batch, frames=16, workers=8),
        # tau is that of EK-100: ours here.
        loss=SMSHard(margin=0.3, tau=0.1),
        # Start, peak and warm-up are the paper's. The cosine to a tenth, betas, decay and bound are ours.
        optimizer=LAMB(
            schedule=Schedule(start=1e-6, peak=3e-5, end=3e-6, warmup=epoch),
            b1=0.9,
            b2=0.999,
            weight_decay=0.01,
            clip=1.0,
        ),
        steps=epochs * epoch,
        save_every=epoch,
        log_every=50,
    )


def write_actions(annotations: str, classes: str, videos: str, out: str) -> int:
    """Write a row for each action of the first-person videos, in the columns of EK-100's files; returns their number.

    Raises:
        DataError: see `read_charades_actions`.
    """
    table = read_charades_actions(annotations, videos, classes)
    with open(out, "w", newline="", encoding="utf-8") as file:
        fields: list[str] = list(COLUMNS)
        rows = files.DictWriter(file, fields)
        rows.writeheader()
        for clip in table.clips:
            times = {"start_timestamp": clip.start, "stop_timestamp": clip.end}
            codes = {"verb_class": clip.verb, "all_noun_classes": list(clip.nouns)}
            names = {"narration_id": clip.id, "participant_id": "", "video_id": clip.video}
            rows.writerow(names | times | {"narration": clip.text} | codes)
    return len(table)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit("usage: python configs/charades_ego.py TRAIN_CSV CLASSES VIDEOS OUT_CSV")
    print(f"clips={write_actions(*sys.argv[1:])}")
