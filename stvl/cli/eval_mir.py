"""``stvl eval mir`` and ``stvl eval relevancy``: EPIC-KITCHENS-100 retrieval from saved similarities or with a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from stvl.cli.main import console, parse_args

if TYPE_CHECKING:
    from stvl.eval.result import Result
    from stvl.eval.saved import EpicRelevancy


@dataclasses.dataclass
class MirArgs:
    """EPIC-KITCHENS-100 multi-instance retrieval: of saved similarities (--similarity) or of a model (--run, --videos)."""

    annotations: str
    """EPIC_100_retrieval_test.csv."""
    sentences: str
    """EPIC_100_retrieval_test_sentence.csv."""
    similarity: str | None = None
    """.npy file, clips x sentences, in the order of the two files; nothing in it is executed."""
    json: str | None = None
    """File for the six numbers, in [0, 1]: map.v2t, map.t2v, map.avg, ndcg.v2t, ndcg.t2v, ndcg.avg."""
    out: str | None = None
    """File for the whole result with its protocol card; with --similarity chance is computed for it too."""
    run: str | None = None
    """Run folder of a model; default: the newest under runs/."""
    weights: str | None = None
    """Weights folder of the model instead, as `stvl convert` writes it."""
    videos: str | None = None
    """Folder of the video files, for a model."""
    pattern: str = "{participant_id}/{video_id}.mp4"
    """A video's file in --videos, with column names in braces."""
    frames: int | None = None
    """Frames a clip; default: as in training."""
    step: int | None = None
    """Checkpoint; default: the newest."""


@dataclasses.dataclass
class RelevancyArgs:
    """Write the relevancy matrix of EPIC-KITCHENS-100 retrieval annotations, or compare it with another one."""

    annotations: str
    """EPIC_100_retrieval_test.csv, or the train file."""
    sentences: str
    """EPIC_100_retrieval_test_sentence.csv, or the train file."""
    out: str | None = None
    """.npy file to write: float32, clips x sentences."""
    compare: str | None = None
    """.npy, or a .pkl that holds one numpy array; it is read without running anything in it."""


def run_mir(argv: list[str]) -> int:
    """Run ``stvl eval mir``."""
    args = parse_args(MirArgs, argv, "eval mir")
    from stvl.core.errors import ConfigError
    from stvl.eval.metrics.mir import mir
    from stvl.eval.report import MIR_KEYS
    from stvl.eval.result import atomic_write

    if (args.similarity is None) == (args.videos is None):
        raise ConfigError(
            "give --similarity FILE.npy for saved scores, or --videos FOLDER to evaluate a model"
        )
    if args.similarity is None:
        metrics = _with_model(args)
    else:
        from stvl.eval.saved import epic_relevancy, load_scores

        similarity = load_scores(args.similarity)
        truth = epic_relevancy(args.annotations, args.sentences)
        metrics = mir(similarity, truth.matrix)
        _print_mir(metrics, *truth.matrix.shape)
        if args.out:
            _saved_result(args, metrics, truth).to_json(args.out)
            print(f"written: {args.out}")
    if args.json:
        text = json.dumps({key: metrics[key] for key in MIR_KEYS}, indent=2) + "\n"
        atomic_write(args.json, lambda file: file.write(text.encode()))
        print(f"written: {args.json}")
    return 0


def _with_model(args: MirArgs) -> dict[str, float]:
    from stvl.cli.runs import load_model
    from stvl.eval.protocols.epic_mir import EpicMIR

    encoders, _ = load_model(args.run, args.weights, step=args.step, frames=args.frames)
    protocol = EpicMIR(
        csv=args.annotations, sentences=args.sentences, videos=args.videos or "", pattern=args.pattern
    )
    result = protocol.run(encoders)
    console().print(result.table())
    if args.out:
        result.to_json(args.out)
        print(f"written: {args.out}")
    return result.metrics


def _saved_result(args: MirArgs, metrics: dict[str, float], truth: EpicRelevancy) -> Result:
    from stvl.eval.card import Split
    from stvl.eval.metrics.mir import random_mir
    from stvl.eval.published import MIR
    from stvl.eval.result import Result
    from stvl.eval.saved import saved_card

    split = Split(
        name=Path(args.annotations).stem,
        table=truth.table,
        annotations=(args.annotations, args.sentences),
        texts=truth.texts,
    )
    card = saved_card(MIR, split, (str(args.similarity),), baseline_seeds=[0])
    return Result(metrics=metrics, baseline=random_mir(truth.matrix, (0,)), card=card)


def _print_mir(metrics: dict[str, float], clips: int, sentences: int) -> None:
    from rich.table import Table

    print(f"EPIC-KITCHENS-100 MIR, {clips:,} clips x {sentences:,} sentences, in percent")
    table = Table("")
    for way in ("v2t", "t2v", "avg"):
        table.add_column(way, justify="right")
    for name in ("map", "ndcg"):
        table.add_row(name, *[f"{100 * metrics[f'{name}.{way}']:.2f}" for way in ("v2t", "t2v", "avg")])
    console().print(table)


def run_relevancy(argv: list[str]) -> int:
    """Run ``stvl eval relevancy``; 1 where the two matrices differ by more than rounding."""
    args = parse_args(RelevancyArgs, argv, "eval relevancy")
    from stvl.eval.saved import compare_matrices, epic_relevancy, load_matrix, save_matrix

    matrix = epic_relevancy(args.annotations, args.sentences).matrix
    ones, above = int((matrix == 1).sum()), float((matrix > 0).mean())
    print(
        f"{matrix.shape[0]:,} clips x {matrix.shape[1]:,} sentences: {ones:,} of relevancy 1, {above:.3%} above 0"
    )
    if args.out:
        save_matrix(args.out, matrix)
        print(f"written: {args.out}")
    if args.compare is None:
        return 0
    found = compare_matrices(matrix, load_matrix(args.compare))
    print(
        f"{args.compare}: {found['ones_other']:,} of relevancy 1, {found['above_0_other']:.3%} above 0;"
        f" {found['different']:,} of {found['cells']:,} cells differ, by {found['max_difference']:.3g} at most"
        + (f" (row {found['at'][0]}, column {found['at'][1]})" if found["max_difference"] else "")
    )
    return 0 if not found["different"] else 1
