"""EVA02-AT pre-trained on Ego4D narrations (arXiv 2506.14356): InfoNCE, five epochs of four frames a clip.

    stvl train configs/ego4d_pretrain.py csv=egoclip.csv videos=ego4d egomcq=egomcq.json clips=ROWS
    stvl train configs/ego4d_pretrain.py init=eva02-clip-b16 init.fresh=projection,log_scale csv=...   # as the paper starts
    stvl train configs/ego4d_pretrain.py size=l14 csv=...                        # batch 512
    stvl train configs/ego4d_pretrain.py size=tiny batch=16 epochs=1 clips=800 loader.workers=0 csv=... # a try on one CPU

Data, none of which comes with stvl: the Ego4D videos, one file a video; ``egomcq.json`` of EgoVLP for the evaluation; and
the clips as path,start,end,text, which EgoVLP's ``egoclip.csv`` (tabs between columns) becomes by

    import csv

    with open("egoclip_raw.csv", newline="") as old, open("egoclip.csv", "w", newline="") as new:
        out = csv.writer(new)
        out.writerow(["path", "start", "end", "text"])
        for row in csv.DictReader(old, delimiter="\\t", quoting=csv.QUOTE_NONE):
            out.writerow([row["video_uid"] + ".mp4", row["clip_start"], row["clip_end"], row["clip_text"]])

(look at the header of your file first: these are the column names of EgoVLP's release), and EgoClip+ (35 M pairs, with
LaViLa's narrations) in the same way. `clips` is the number of rows: the length of the run follows from it. The whole
table lies in memory, in every decoding process.

What to expect: the paper reports EgoMCQ inter/intra 95.0/63.2 (B) and 95.9/66.5 (L) after EgoClip+, and zero-shot EK-100 MIR
mAP/nDCG 34.3/34.1 and 38.9/36.2. It starts from EVA02-CLIP's image weights: make a folder of them for four frames with
`stvl convert` (docs/weights.md) and name it with ``init=``. Without, this config starts from random ones and will not come
near these numbers; nobody has run it to its end either way. The paper gives no weight decay, betas, bound on the gradient
or crop, and not whether the loss adds or averages its directions.
"""

from __future__ import annotations

from stvl.data.augment import EvalTransform, TrainTransform
from stvl.data.pipeline import LoaderOptions
from stvl.data.sources import ManifestSource
from stvl.data.text import ClipTokenizer
from stvl.eval.protocols.egomcq import EgoMCQ
from stvl.losses.infonce import InfoNCE
from stvl.models.eva02_at.presets import preset
from stvl.train.experiment import Experiment
from stvl.train.optimizers import AdamW, Schedule

#: The paper's global batches; for the other sizes the one of B is ours.
BATCH = {"l14": 512, "l14-336": 512}


def experiment(
    csv: str = "egoclip.csv",
    videos: str = "ego4d",
    egomcq: str = "egomcq.json",
    egomcq_videos: str = "",
    size: str = "b16",
    batch: int = 0,
    epochs: int = 5,
    clips: int = 3_800_000,
) -> Experiment:
    """The run.

    Args:
        csv: the clips, path,start,end,text.
        videos: folder that these paths are in.
        egomcq: questions of the evaluation.
        egomcq_videos: folder of their videos; empty: the same folder.
        size: name of a preset: b16, l14 ...
        batch: global batch; 0 takes the paper's.
        epochs: passes over the clips.
        clips: rows of `csv`.
    """
    model = preset(size)
    batch = batch or BATCH.get(size, 1024)
    epoch = max(clips // batch, 1)
    pixels = model.video.image_size
    return Experiment(
        name="ego4d_pretrain",
        model=model,
        source=ManifestSource(csv=csv, root=videos),
        # The share of the frame is ours.
        train_transform=TrainTransform(size=pixels, scale=(0.5, 1.0)),
        eval_transform=EvalTransform(size=pixels),
        tokenizer=ClipTokenizer(context_length=model.text.context),
        # Workers and threads are ours.
        loader=LoaderOptions(batch=batch, frames=4, workers=8),
        # That the directions are averaged is ours.
        loss=InfoNCE(temperature=0.05, directions="mean"),
        # The rate is the paper's; betas, decay and the bound on the gradient are ours.
        optimizer=AdamW(
            schedule=Schedule(peak=3e-5, shape="constant"), b1=0.9, b2=0.999, weight_decay=0.01, clip=1.0
        ),
        steps=epochs * epoch,
        evals=(EgoMCQ(json=egomcq, videos=egomcq_videos or videos),),
        eval_every=epoch,
        best="EgoMCQ/mcq.intra",
        save_every=min(1000, epoch),
        log_every=50,
    )
