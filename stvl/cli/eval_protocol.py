"""``stvl eval PROTOCOL``: any protocol with a run's model, or with scores that another program saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from stvl.cli.main import console, parse_args


@dataclasses.dataclass
class ModelArgs:
    """What is evaluated, and where the result goes."""

    run: str | None = None
    """Run folder of the model; default: the newest under runs/."""
    weights: str | None = None
    """Weights folder of the model instead, as `stvl convert` writes it."""
    frames: int | None = None
    """Frames a clip; default: as in training."""
    step: int | None = None
    """Checkpoint; default: the newest."""
    scores: tuple[str, ...] = ()
    """Saved scores (.npy) instead of a model; no video is looked at. See docs/evaluation.md for the shapes."""
    out: str | None = None
    """File for the result with its protocol card; default: results/PROTOCOL.json in the run or weights folder."""


def protocols() -> dict[str, type]:
    """First word -> the class of the protocol."""
    from stvl.eval.protocols.charades_ego import CharadesEgo
    from stvl.eval.protocols.egomcq import EgoMCQ
    from stvl.eval.protocols.epic_recognition import EpicRecognition
    from stvl.eval.protocols.recognition import Recognition
    from stvl.eval.protocols.retrieval import TextVideoRetrieval
    from stvl.eval.protocols.zero_shot import ZeroShot

    return {
        "egomcq": EgoMCQ,
        "charades-ego": CharadesEgo,
        "epic-recognition": EpicRecognition,
        "recognition": Recognition,
        "zero-shot": ZeroShot,
        "retrieval": TextVideoRetrieval,
    }


def arguments(name: str) -> type:
    """The dataclass of a protocol's options: its own fields and those of `ModelArgs`."""
    protocol = protocols()[name]
    made = dataclasses.make_dataclass(
        "Args",
        [
            ("protocol", Annotated[protocol, tyro.conf.OmitArgPrefixes]),
            (
                "model",
                Annotated[ModelArgs, tyro.conf.OmitArgPrefixes],
                dataclasses.field(default_factory=ModelArgs),
            ),
        ],
    )
    made.__doc__ = (protocol.__doc__ or "").partition("\n")[0]
    return made


def runner(name: str) -> Callable[[list[str]], int]:
    """The command of one protocol."""

    def run(argv: list[str]) -> int:
        # Saved scores need no videos, which the protocols themselves cannot do without.
        blank = ["--videos", ""] if "--scores" in argv and "--videos" not in argv else []
        args: Any = parse_args(arguments(name), [*argv, *blank], f"eval {name}")
        return _evaluate(args.protocol, args.model)

    return run


def _evaluate(protocol: Any, model: ModelArgs) -> int:
    from stvl.core.errors import ConfigError

    if model.scores:
        if model.run or model.weights or model.frames or model.step:
            raise ConfigError("give saved --scores or a model (--run, --weights, --frames, --step), not both")
        from stvl.eval.score_files import score_files

        result, path = score_files(protocol, model.scores), model.out
    else:
        from stvl.cli.runs import load_model

        encoders, folder = load_model(model.run, model.weights, step=model.step, frames=model.frames)
        suffix = f"-{encoders.frames}f" if model.frames else ""
        path = model.out or str(folder / "results" / f"{type(protocol).__name__}{suffix}.json")
        result = protocol.run(encoders)
    console().print(result.table())
    if path:
        result.to_json(path)
        print(f"written: {path}")
    return 0
